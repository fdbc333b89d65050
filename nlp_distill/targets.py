"""What a teacher generates, as the labels of the training rows (sequence-level distillation, Kim & Rush 2016)."""

from __future__ import annotations

import contextlib
from pathlib import Path

import torch
import transformers
from datasets import Dataset
from datasets.fingerprint import Hasher
from transformers.utils import GENERATION_CONFIG_NAME

from nlp_distill.errors import DiskFull, Interrupted, NotWritable
from nlp_distill.prediction import variant_pipeline
from nlp_distill.road import Road
from nlp_distill.rows import Rows
from nlp_distill.rundir import disk_errors, new_folder, sha256_file, sha256_json, write_text
from nlp_distill.scores import predict, raw_lines, read_raw
from nlp_distill.shelf import seal, sealed, sole_writer, teachers_folder, used_now
from nlp_distill.sources import resolve

FILE = "targets.jsonl"
TARGETS, TARGETS_BATCH, TARGETS_AT_ONCE = "the teacher's targets", 32, 256
"""A part of the targets is sorted by length and kept as a whole."""


def taught_rows(road: Road, shared: bool) -> Rows:
    """The training rows with what the teacher generates as their labels; made once a run, and where they are `shared`
    once for all runs of this teacher and these rows. Raises `Interrupted`.
    """
    rows, file = road.slices.train, road.rundir.path / FILE
    first, like = _distinct(road, rows)
    stopped = False
    if road.main:
        try:
            _find_targets(road, rows.select(first), file, shared)
        except Interrupted:
            stopped = True
    if road.agreed(stopped):
        raise Interrupted(step=0, stage=TARGETS)
    return road.rows(road.task.with_answers(rows, read_raw(file.read_text(encoding="utf-8"))[like]))


def _distinct(road: Road, rows: Dataset) -> tuple[list[int], list[int]]:
    """Rows that ask each something else, and for every row the place of its like among them."""
    asked = [Hasher.hash(it) for it in road.task.pipeline_inputs(rows)]
    first: dict[str, int] = {}
    for number, it in enumerate(asked):
        first.setdefault(it, number)
    places = {it: place for place, it in enumerate(first)}
    return list(first.values()), [places[it] for it in asked]


def _find_targets(road: Road, rows: Dataset, file: Path, shared: bool) -> None:
    """The run's file, from the shelf where another run left the same; what is made here is put there."""
    key = f"{road.rundir.manifest()['stages']['teacher']['key']} of {len(rows)}"
    if road.rundir.manifest().get("targets") != key:
        write_text(file, "")
        road.rundir.update_manifest(targets=key)
    if _lines(file) == len(rows):
        return
    with contextlib.ExitStack() as held:
        folder = _shelf(road, rows, held) if shared else None
        if folder is not None and sealed(folder) is not None:
            write_text(file, (folder / FILE).read_text(encoding="utf-8"))
            used_now(folder)
            return road.notify("note", message=f"what the teacher says is cached already, in {folder}")
        _write_targets(road, rows, file)
        if folder is not None:
            _put(road, rows, file, folder)


def _shelf(road: Road, rows: Dataset, held: contextlib.ExitStack) -> Path | None:
    """The place of these targets among the caches, held for writing; None where nothing can be written."""
    described = {
        "format": "targets 1",
        "teacher": resolve(str(road.rundir.teacher)).identity(),
        "generation": sha256_file(road.rundir.teacher / GENERATION_CONFIG_NAME),
        "asked": Hasher.hash(road.task.pipeline_inputs(rows)),
        "task": [road.task.name, road.task.options.model_dump(mode="json")],
        "arithmetic": [torch.get_num_threads(), str(torch.__version__), str(transformers.__version__)],
    }
    folder = teachers_folder() / sha256_json(described)[:20]
    told = False

    def waiting() -> None:
        nonlocal told
        if road.stop():
            raise Interrupted(step=0, stage=TARGETS)
        if not told:
            road.notify("note", message="another run is writing the same targets; waiting for it")
        told = True

    try:
        held.enter_context(sole_writer(folder, waiting))
    except (DiskFull, NotWritable) as error:
        road.notify("note", message=f"what the teacher says is kept in this run alone: {error}")
        return None
    return folder


def _put(road: Road, rows: Dataset, file: Path, folder: Path) -> None:
    about = {
        "teacher": road.source.name,
        "data": road.slices.source,
        "examples": len(rows),
        "signals": "what it says",
        "precision": "text",
    }
    try:
        with new_folder(folder) as temporary:
            write_text(temporary / FILE, file.read_text(encoding="utf-8"))
            seal(temporary, {"about": about}, index=FILE)
    except (DiskFull, NotWritable) as error:
        road.notify("note", message=f"what the teacher says is kept in this run alone: {error}")


def _lines(file: Path) -> int:
    return file.read_text(encoding="utf-8").count("\n")


def _write_targets(road: Road, rows: Dataset, file: Path) -> None:
    """Line by line what the teacher says; a run that was stopped goes on where a whole part ends."""
    said = file.read_text(encoding="utf-8").split("\n")[:-1]
    said = said[: len(said) // TARGETS_AT_ONCE * TARGETS_AT_ONCE]
    write_text(file, "".join(line + "\n" for line in said))
    pipe = variant_pipeline(road.rundir.teacher, road.task, None)

    def progress(done: int, _: int) -> None:
        if road.stop():
            raise Interrupted(step=0, stage=TARGETS)
        road.notify("progress", stage=TARGETS, step=start + done, steps=len(rows))

    for start in range(len(said), len(rows), TARGETS_AT_ONCE):
        part = rows.select(range(start, min(start + TARGETS_AT_ONCE, len(rows))))
        lines = raw_lines(predict(pipe, road.task, part, TARGETS_BATCH, progress))
        with disk_errors(file), file.open("a", encoding="utf-8") as stream:
            stream.write(lines)
