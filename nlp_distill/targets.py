"""What a teacher generates, as the labels of the training rows (sequence-level distillation, Kim & Rush 2016)."""

from __future__ import annotations

from pathlib import Path

from datasets import Dataset
from datasets.fingerprint import Hasher

from nlp_distill.errors import Interrupted
from nlp_distill.prediction import variant_pipeline
from nlp_distill.road import Road
from nlp_distill.rows import Rows
from nlp_distill.rundir import disk_errors, write_text
from nlp_distill.scores import predict, raw_lines, read_raw

TARGETS, TARGETS_BATCH, TARGETS_AT_ONCE = "the teacher's targets", 32, 256
"""A part of the targets is sorted by length and kept as a whole."""


def taught_rows(road: Road) -> Rows:
    """The training rows with what the teacher generates as their labels; made once a run. Raises `Interrupted`."""
    rows, file = road.slices.train, road.rundir.path / "targets.jsonl"
    first, like = _distinct(road, rows)
    stopped = False
    if road.main:
        try:
            _write_targets(road, rows.select(first), file)
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


def _write_targets(road: Road, rows: Dataset, file: Path) -> None:
    """Line by line what the teacher says; a run that was stopped goes on where a whole part ends."""
    key = f"{road.rundir.manifest()['stages']['teacher']['key']} of {len(rows)}"
    if road.rundir.manifest().get("targets") != key:
        write_text(file, "")
        road.rundir.update_manifest(targets=key)
    said = file.read_text(encoding="utf-8").split("\n")[:-1]
    if len(said) == len(rows):
        return
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
