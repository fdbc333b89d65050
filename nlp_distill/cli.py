"""The command line. Every verb is a thin layer over a public function; exit codes are in `EXIT_CODES`."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from nlp_distill import __version__
from nlp_distill.errors import Interrupted, NlpDistillError, shown
from nlp_distill.outcome import leave_outcome
from nlp_distill.verbs import caches, hub, jobs, measures, predictions, recipes, reports, serve
from nlp_distill.verbs.common import (
    ControlOption,
    JsonOption,
    OutOption,
    OverrideOption,
    RecipeArgument,
    RedoOption,
    err,
    out_console,
    say,
)

EXIT_CODES = {
    0: "ok",
    2: "something to correct",
    3: "the run failed",
    70: "a bug of ours",
    75: "stopped, resumable",
    130: "stopped at once",
}

app = typer.Typer(
    name="nlp-distill",
    help="Turn a large Hugging Face transformer into a small student that runs on a CPU, and prove it.",
    epilog="Exit codes: " + ", ".join(f"{code} {meaning}" for code, meaning in EXIT_CODES.items()) + ".",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(recipes.app, name="recipes")
app.add_typer(caches.app, name="cache")
app.command("predict")(predictions.predict)
app.command("push")(hub.push)
app.command("pull")(hub.pull)
app.command("report")(reports.report)
app.command()(serve.serve)
app.add_typer(jobs.app, name="jobs")
app.command()(jobs.submit)
app.command()(jobs.worker)


def main(arguments: list[str] | None = None) -> None:
    """Entry point: user errors become one sentence and an exit code, never a traceback."""
    _quiet_libraries()
    try:
        app(arguments)
    except Interrupted as error:
        err.print(f"{error}\n  {_command_line()}", highlight=False, markup=False, soft_wrap=True)
        sys.exit(error.exit_code)
    except NlpDistillError as error:
        leave_outcome(error)
        err.print(f"Error: {error}", highlight=False, markup=False, soft_wrap=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        err.print("Stopped.")
        sys.exit(130)
    except Exception as error:
        said = f"Error: {shown(f'{type(error).__name__}: {error}')}; this is a bug, please report it with {_report()}."
        err.print(said, highlight=False, markup=False, soft_wrap=True)
        sys.exit(70)


def _report() -> str:
    """A file with the details of the exception that is being handled."""
    with tempfile.NamedTemporaryFile("w", prefix="nlp-distill-", suffix=".txt", delete=False, encoding="utf-8") as file:
        traceback.print_exc(file=file)
    return file.name


def _quiet_libraries() -> None:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    # torchao, which ExecuTorch brings and peft imports, says what it cannot use here.
    for name in ("torchao", "torchao.kernel.intmm", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _command_line() -> str:
    import shlex

    return "nlp-distill " + shlex.join(sys.argv[1:])


@contextlib.contextmanager
def _stoppable() -> Iterator[Callable[[], bool]]:
    """Gives a function that is true once SIGINT or SIGTERM came; a second one stops at once."""
    asked: list[int] = []

    def handle(number: int, _frame: Any) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)
        err.print("Stopping after this step; once more to stop at once.")

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _run(
    recipe: str,
    out: Path | None,
    overrides: list[str] | None,
    redo: bool,
    control: bool,
    until: str,
    as_json: bool,
    strict: bool = False,
) -> None:
    from nlp_distill.display import Display
    from nlp_distill.recipe_file import recipe_and_folder

    # Before the libraries that take seconds: what is wrong with a recipe is said at once.
    read, folder = recipe_and_folder(recipe, [*(overrides or []), *(["control=true"] if control else [])], out)
    console = err if as_json else out_console
    with _stoppable() as asked, Display(console) as display:
        from nlp_distill.reports.table import next_lines, results_table, verdict
        from nlp_distill.stages import run

        finished = run(
            read,
            out=folder,
            redo=redo,
            until=until,
            strict=strict,
            notify=display.notify,
            stop=asked,
        )
    results = finished.results
    if os.environ.get("RANK", "0") != "0":
        return
    if as_json:
        sys.stdout.write(json.dumps(results if until == "publish" else {"run": str(finished.path)}) + "\n")
    elif until == "publish":
        # Rather lines that a narrow terminal wraps than names cut short.
        out_console.width = max(out_console.width, 100)
        out_console.print(results_table(results))
        for line in [*verdict(results), "", *next_lines(finished.path, results)]:
            say(line)
    else:
        out_console.print(f"{until}: done, in {finished.path}", highlight=False)


@app.command()
def run(
    recipe: RecipeArgument,
    out: OutOption = None,
    override: OverrideOption = None,
    redo: RedoOption = False,
    control: ControlOption = False,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 3 when the budget is missed.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Run a recipe from data to proof: teacher, student, exports, scores, latency, one table, one report."""
    _run(recipe, out, override, redo, control, "publish", as_json, strict)


STAGE_VERBS = {
    "distill": "Train the teacher where needed and distil the student.",
    "export": "Go on until the student is exported and checked against PyTorch.",
    "evaluate": "Go on until every variant is scored through the pipeline that a user would call.",
}


def _add_stage_verb(stage: str, summary: str) -> None:
    @app.command(stage, help=summary)
    def verb(
        recipe: RecipeArgument,
        out: OutOption = None,
        override: OverrideOption = None,
        redo: RedoOption = False,
        as_json: JsonOption = False,
    ) -> None:
        _run(recipe, out, override, redo, False, stage, as_json)


for _stage, _summary_of_stage in STAGE_VERBS.items():
    _add_stage_verb(_stage, _summary_of_stage)
measures.add(app, _run)


@app.command()
def estimate(
    recipe: Annotated[str, typer.Argument(help="A recipe file, or the name of a shipped one.")],
    override: OverrideOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say what a run will take: parameters, memory, disk, steps, time; no weights are read."""
    from dataclasses import asdict

    from nlp_distill.estimate import estimate as take

    found = take(recipe, override or [])
    if as_json:
        sys.stdout.write(json.dumps(asdict(found)) + "\n")
        return
    for line in [f"{recipe}:", *found.lines()]:
        say(line)


@app.command()
def doctor(
    recipe: Annotated[str | None, typer.Argument(help="Also check that this recipe can run here.")] = None,
    override: OverrideOption = None,
    model: Annotated[str | None, typer.Option("--model", help="Say what can be done with this model.")] = None,
    task: Annotated[str, typer.Option("--task", help="The task to judge --model for.")] = "classification",
) -> None:
    """Say what is installed, what this machine offers, and what a recipe or a model can do; trains nothing."""
    from nlp_distill.doctor import check_model, check_recipe, report

    checks = [*(check_recipe(recipe, override or []) if recipe else []), *(check_model(model, task) if model else [])]
    for line in [*report(), *checks]:
        say(line)


@app.command()
def version() -> None:
    """Print the version."""
    sys.stdout.write(f"{__version__}\n")


if __name__ == "__main__":
    main()
