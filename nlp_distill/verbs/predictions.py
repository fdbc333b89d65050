"""`nlp-distill predict`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from nlp_distill.errors import InputInvalid, PairNeeded
from nlp_distill.verbs.common import err


def predict(
    model: Annotated[str, typer.Argument(help="The folder of a run, a model folder, or a Hub id (org/name@revision).")],
    text: Annotated[list[str] | None, typer.Argument(help="Texts; none: one a line from standard input.")] = None,
    file: Annotated[
        Path | None, typer.Option("--file", help="Rows of a CSV, TSV, JSON lines or Parquet file, lines of a .txt.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Write the JSON lines there, all of them or none.")] = None,
    variant: Annotated[str | None, typer.Option("--variant", help="For example student-onnx-int8.")] = None,
    text_pair: Annotated[
        str | None, typer.Option("--text-pair", help="Second text of a pair; the context of a question.")
    ] = None,
    column: Annotated[str | None, typer.Option("--column", help="Column of --file with the texts.")] = None,
    pair_column: Annotated[str | None, typer.Option("--pair-column", help="Column with the second texts.")] = None,
    batch_size: Annotated[
        int | None,
        typer.Option("--batch-size", min=1, help="Rows at once; unset: as many as the scores were made with."),
    ] = None,
) -> None:
    """Predict with the recommended variant, or the best that runs here; one JSON object a line."""
    from nlp_distill.asking import answers, rows_of
    from nlp_distill.display import Display
    from nlp_distill.prediction import choose

    _check(text, file, text_pair, column or pair_column)
    if out is not None and not out.absolute().parent.is_dir():
        raise InputInvalid(what=f"--out {out}", reason="its folder is not there", fix="make it first")
    chosen = choose(model, variant)
    if chosen.pairs and file is None and text_pair is None:
        raise PairNeeded(what="the second text")
    pipe = chosen.pipeline()
    if file is None and not text and out is None:
        # Typed or piped: each line is answered when it comes.
        for line in _typed():
            _print([{"inputs": _inputs(line, text_pair), "outputs": chosen.task.ask(pipe, line, text_pair)}])
        return
    given = text or ([] if file is not None else [*_typed()])
    rows = (
        rows_of(file, chosen.task, column, pair_column, chosen.pairs)
        if file is not None
        else [(t, text_pair) for t in given]
    )

    with Display(err) as display:

        def progress(done: int, total: int) -> None:
            display.notify("progress", stage=f"predicting with {chosen.variant}", step=done, steps=total)

        said = answers(chosen.task, pipe, rows, batch_size or chosen.batch_size, progress)
        if out is None:
            _print(said)
        else:
            _write(out, said)


def _check(text: list[str] | None, file: Path | None, text_pair: str | None, column: str | None) -> None:
    if file is not None and (text or text_pair is not None):
        raise InputInvalid(what="--file", reason="texts were given, too", fix="give one of them")
    if file is None and column is not None:
        raise InputInvalid(what="--column", reason="there is no table to find it in", fix="give one with --file")


def _inputs(text: str, text_pair: str | None) -> Any:
    return text if text_pair is None else {"text": text, "text_pair": text_pair}


def _lines(said: Iterable[dict[str, Any]]) -> Iterator[str]:
    return (json.dumps(line, ensure_ascii=False) + "\n" for line in said)


def _print(said: Iterable[dict[str, Any]]) -> None:
    for line in _lines(said):
        sys.stdout.write(line)
        sys.stdout.flush()


def _write(out: Path, said: Iterable[dict[str, Any]]) -> None:
    from nlp_distill.rundir import new_file

    # A device or a pipe is written into; what takes the place of a file would take its place, too. The way to a pipe
    # (/dev/stdout) ends in a name that is none of a file.
    special = out.exists() and not out.is_file() and not out.is_dir()
    with out.open("w", encoding="utf-8") if special else new_file(out.resolve()) as stream:
        for line in _lines(said):
            stream.write(line)


def _typed() -> Iterator[str]:
    """The lines of standard input that hold something."""
    try:
        yield from (stripped for line in sys.stdin if (stripped := line.rstrip("\n")))
    except UnicodeDecodeError as error:
        raise InputInvalid(what="standard input", reason="it is not UTF-8", fix="save it as UTF-8") from error
