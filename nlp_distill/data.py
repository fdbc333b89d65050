"""The one door for data: files, folders, samples that ship and the Hub.

Tables are read as data only: CSV, TSV, JSON lines and Parquet, as UTF-8.
"""

from __future__ import annotations

import csv
import difflib
import io
import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from nlp_distill.errors import (
    ColumnMissing,
    DataEmpty,
    DataNotFound,
    DataUnreadable,
    DataUnsafe,
    SplitTwice,
)
from nlp_distill.hub_data import FIX, load_hub_tables
from nlp_distill.task import task_folders

if TYPE_CHECKING:
    import pandas as pd
    from datasets import Dataset, DatasetDict

    from nlp_distill.recipe import Data

SPLITS = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "validation_matched": "validation",
    "validation_mismatched": "validation_mismatched",
}
"""File stems → split names."""

MAX_FILE = 4 << 30
MAX_TABLE = 16 << 30
"""Bytes in memory of a table whose file is compressed."""
MAX_CELL = 1_000_000
"""Bytes of one text."""


def require_column(names: list[str], column: str, role: str, source: str) -> None:
    """Refuse a column that a table lacks, with the nearest name. Raises `ColumnMissing`."""
    if column not in names:
        near = difflib.get_close_matches(column, names, n=1)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        raise ColumnMissing(source=source, column=column, columns=", ".join(names), role=role, hint=hint)


def read_splits(spec: Data) -> DatasetDict:
    """Raw rows of each split. Raises `DataNotFound`, `DataUnreadable`, `DataEmpty`, `HubUnreachable`."""
    if isinstance(spec.files, dict):
        return _from_files({split: Path(name) for split, name in spec.files.items()})
    name = spec.files or spec.dataset or ""
    if name.startswith("sample:"):
        return _sample(name)
    if not name:
        raise DataNotFound(name=name, reason="data.dataset is empty", fix="Give a file, a folder or a name.")
    if "://" in name:
        raise DataNotFound(name=name, reason="addresses are not read", fix="Download it, and give the file here.")
    path = Path(os.path.expanduser(name))
    if os.path.isdir(path):
        return _from_folder(path)
    if os.path.isfile(path):
        return _from_files({"train": path})
    if spec.files or name.startswith((".", "/", "~")) or path.suffix in READERS:
        raise DataNotFound(name=name, reason="there is no such file or folder", fix="Check the path.")
    return _from_hub(spec, name)


def _sample(name: str) -> DatasetDict:
    wanted = name.removeprefix("sample:")
    samples = {
        folder.name: folder
        for task in task_folders().values()
        for folder in sorted((task / "data").glob("*"))
        if folder.is_dir()
    }
    if wanted not in samples:
        known = ", ".join(f"sample:{sample}" for sample in samples)
        raise DataNotFound(name=name, reason="no such sample ships", fix=f"Use one of {known}.")
    return _from_folder(samples[wanted])


def _from_folder(folder: Path) -> DatasetDict:
    files: dict[str, Path] = {}
    for file in sorted(folder.iterdir()):
        split = SPLITS.get(file.name.split(".")[0].lower())
        if split and file.suffix in READERS:
            if split in files:
                raise SplitTwice(folder=folder, split=split, files=f"{files[split].name} and {file.name}")
            files[split] = file
    if "train" not in files:
        raise DataNotFound(
            name=str(folder),
            reason="the folder has no train file",
            fix=f"Name the files train, validation and test, each with one of {', '.join(READERS)}.",
        )
    return _from_files(files)


def _from_files(files: dict[Any, Path]) -> DatasetDict:
    from datasets import DatasetDict

    if "train" not in files:
        raise DataNotFound(name="train", reason="data.files names no train file", fix="Add `train: FILE`.")
    return DatasetDict({split: read_table(path) for split, path in files.items()})


def read_table(path: Path) -> Dataset:
    """All rows of one file, in memory. Raises `DataNotFound`, `DataUnreadable`, `DataEmpty`."""
    if not path.is_file():
        raise DataNotFound(name=str(path), reason="there is no such file", fix="Check the path.")
    if path.suffix not in READERS:
        raise DataUnreadable(source=path, format="a table", reason=f"unknown ending '{path.suffix}'")
    try:
        size = path.stat().st_size
        if size > MAX_FILE:
            fix = "Split it, or take a sample."
            raise DataUnsafe(name=path, reason=f"it has more than {MAX_FILE >> 30} GiB", fix=fix)
        dataset = READERS[path.suffix](path) if size else []
    except OSError as error:
        raise DataUnreadable(source=path, format="a table", reason=error.strerror or error) from error
    if len(dataset) == 0:
        raise DataEmpty(source=path)
    _check_cells(path, dataset)
    return dataset


def _check_cells(path: Path, dataset: Dataset) -> None:
    import pyarrow as pa
    import pyarrow.compute as pc

    for name, column in zip(dataset.column_names, dataset.data.columns, strict=True):
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            longest = pc.max(pc.binary_length(column)).as_py() or 0
            if longest > MAX_CELL:
                raise DataUnsafe(
                    name=path,
                    reason=f"column '{name}' has a text of {longest:,} bytes (at most {MAX_CELL:,})",
                    fix="Cut such texts.",
                )


def _parquet(path: Path) -> Dataset:
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets import Dataset

    batches, size = [], 0
    try:
        # Batch by batch: a small file may say one value a billion times.
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
            for batch in file.iter_batches(batch_size=10_000):
                batches.append(batch)
                size += batch.nbytes
                if size > MAX_TABLE:
                    raise DataUnsafe(
                        name=path, reason=f"it is a table of more than {MAX_TABLE >> 30} GiB", fix="Take a sample."
                    )
        return Dataset(pa.Table.from_batches(batches, schema).combine_chunks())
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataUnreadable(source=path, format="Parquet", reason=str(error).split("\n")[0]) from error


def _text(path: Path, name: str) -> str:
    """The file as text; a byte order mark is dropped, a binary file refused with the place."""
    raw = path.read_bytes()
    if b"\0" in raw:
        raise DataUnreadable(source=path, format=name, reason=f"it is binary: byte {raw.index(0)} is zero")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise DataUnreadable(source=path, format=name, reason=f"line {line} is not UTF-8") from error


def _texts(path: Path) -> Dataset:
    """A table of one column, `text`: the lines that hold something."""
    from datasets import Dataset

    return Dataset.from_dict({"text": [line for line in _text(path, "text").split("\n") if line.strip()]})


def _separated(separator: str, name: str) -> Callable[[Path], Dataset]:
    def read(path: Path) -> Dataset:
        import pandas as pd

        text = _text(path, name)

        def frame(quoting: Literal[0, 3]) -> pd.DataFrame:
            # Everything as text first: "NA" and "null" are words, "007" keeps its zeros unless all are numbers.
            return pd.read_csv(
                io.StringIO(text),
                sep=separator,
                dtype=str,
                keep_default_na=False,
                on_bad_lines="error",
                index_col=False,
                quoting=quoting,
            )

        try:
            _refuse_twins(next((row for row in csv.reader(io.StringIO(text), delimiter=separator) if row), []))
            with warnings.catch_warnings():
                # Cells beyond the header's would be dropped with a warning.
                warnings.simplefilter("error", pd.errors.ParserWarning)
                return _from_frame(frame(csv.QUOTE_NONE if _bare_quotes(text, separator) else csv.QUOTE_MINIMAL))
        except (pd.errors.ParserError, pd.errors.EmptyDataError, ValueError, csv.Error, Warning) as error:
            reason = str(error).strip().split("\n")[0]
            if isinstance(error, pd.errors.ParserWarning):
                reason = f"a row has more cells than the header ({reason}); put texts with a {separator!r} in quotes"
            raise DataUnreadable(source=path, format=name, reason=reason) from error

    return read


def _bare_quotes(text: str, separator: str) -> bool:
    """Whether a table between tabs has quotation marks that are words' own, as GLUE's have: they would join rows.

    They are where the marks break the rules of quoted cells. Where they keep them by chance, each line is a row, with
    as many tabs as all, and no mark is doubled.
    """
    if separator != "\t":
        return False
    # Python's own limit of a cell, 131,072 characters, is below ours.
    csv.field_size_limit(2**31 - 1)
    try:
        rows = [*csv.reader(io.StringIO(text), "excel-tab", strict=True)]
    except csv.Error:
        return True
    joined = any("\n" in cell and "\t" in cell for row in rows for cell in row)
    alike = len({line.count("\t") for line in text.split("\n") if line.strip()}) == 1
    return joined and alike and '""' not in text


def _refuse_twins(header: list[str]) -> None:
    for name in header:
        if name and header.count(name) > 1:
            raise ValueError(f"its header has the column {name!r} twice")


def _from_frame(frame: pd.DataFrame) -> Dataset:
    from datasets import Dataset

    columns = {str(name): _typed(frame[name].tolist()) for name in frame.columns}
    return Dataset.from_dict(columns)


def _typed(values: list[str]) -> list[Any]:
    """Whole numbers of 64 bits or numbers where every value is one; else the text as it is."""
    for kind in (int, float):
        try:
            numbers = [kind(value) for value in values]
            # Python also takes 1_000 for a number; a table means a word.
            if not any("_" in value for value in values) and (kind is float or max(map(abs, numbers)) < 2**63):
                return numbers
        except ValueError:
            continue
    return values


def _whole(value: str) -> int:
    number = int(value)
    if not -(1 << 63) <= number < 1 << 63:
        raise ValueError(value)
    return number


def _json_lines(path: Path) -> Dataset:
    import pyarrow as pa
    from datasets import Dataset

    text = _text(path, "JSON lines")
    rows: list[Any] = []
    if path.suffix == ".json" and text.lstrip().startswith("["):
        try:
            rows = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DataUnreadable(source=path, format="JSON", reason=str(error)) from error
    else:
        for number, line in enumerate(text.split("\n"), 1):
            if not line.strip():
                continue
            try:
                rows.append(json.loads(line))
            except (ValueError, RecursionError) as error:
                raise DataUnreadable(source=path, format="JSON lines", reason=f"line {number}: {error}") from error
    odd = [number for number, row in enumerate(rows, 1) if not isinstance(row, dict)]
    if odd:
        raise DataUnreadable(source=path, format="JSON lines", reason=f"row {odd[0]} is not an object")
    names = list(dict.fromkeys(name for row in rows for name in row))
    try:
        return Dataset.from_dict({name: [row.get(name) for row in rows] for name in names})
    except UnicodeEncodeError as error:
        raise DataUnreadable(source=path, format="JSON lines", reason="a text in it is half a letter") from error
    except OverflowError as error:
        raise DataUnreadable(source=path, format="JSON lines", reason="a number is beyond 64 bits") from error
    except RecursionError as error:
        raise DataUnreadable(source=path, format="JSON lines", reason="it is nested too deeply") from error
    except pa.ArrowException as error:
        raise DataUnreadable(source=path, format="JSON lines", reason=f"a column mixes types: {error}") from error


READERS: dict[str, Callable[[Path], Any]] = {
    ".csv": _separated(",", "CSV"),
    ".tsv": _separated("\t", "TSV"),
    ".jsonl": _json_lines,
    ".json": _json_lines,
    ".parquet": _parquet,
    ".txt": _texts,
}


def _from_hub(spec: Data, name: str) -> DatasetDict:
    from datasets import DatasetDict

    loaded = load_hub_tables(name, spec.config, spec.revision)
    if "train" not in loaded:
        raise DataNotFound(name=name, reason=f"it has no split train (splits: {', '.join(loaded)})", fix=FIX)
    return DatasetDict({SPLITS.get(split, split): rows for split, rows in loaded.items()})
