"""When a stage is skipped, resumed, made, or refused: each stage's key is the hash of what it depends on.

Same key and intact output → skipped; same key and a checkpoint → resumed (by the loop); other settings of its
own → refused, naming them, unless `redo`; only an earlier stage remade → made anew. A stage that was begun and
has a checkpoint counts as one that was made.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from nlp_distill.errors import Interrupted, StageChanged
from nlp_distill.recipe import Recipe
from nlp_distill.recipe_file import flat
from nlp_distill.rundir import RunDir, sha256_file, sha256_json

UPSTREAM: dict[str, tuple[str, ...]] = {
    "data": (),
    "teacher": ("data",),
    "student": ("teacher",),
    "distill": ("student",),
    "control": ("student",),
    "export": ("distill",),
    "evaluate": ("export", "control"),
    "measure": ("export", "control"),
    "results": ("evaluate", "measure"),
    "report": ("results",),
    "publish": ("report",),
}
"""The stages in order, each with those whose output it reads."""


class StageKeys:
    """The keys of one run's stages, kept in its manifest."""

    def __init__(self, rundir: RunDir, settings: dict[str, dict[str, Any]], redo: bool, main: bool = True) -> None:
        self.rundir, self.settings, self.main = rundir, settings, main
        self.keys: dict[str, str] = {}
        for stage, upstream in UPSTREAM.items():
            keys = [self.keys[name] for name in upstream]
            self.keys[stage] = sha256_json({"stage": stage, "settings": settings[stage], "upstream": keys})
        self._compare(redo)

    def complete(self, stage: str) -> bool:
        """Whether the stage's output is there, made with this key and intact."""
        record = self.records().get(stage)
        if record is None or record["key"] != self.keys[stage]:
            return False
        outputs: dict[str, str] = record["outputs"]
        files = {self.rundir.path / name: sha for name, sha in outputs.items()}
        return all(file.is_file() and sha256_file(file) == sha for file, sha in files.items())

    def record(self, stage: str, files: list[str], seconds: float, **facts: Any) -> None:
        """Say that a stage is complete; `files` are relative to the run folder."""
        entry = {
            "key": self.keys[stage],
            "settings": self.settings[stage],
            "outputs": {name: sha256_file(self.rundir.path / name) for name in files},
            "seconds": round(self._spent(stage) + seconds, 1),
            **facts,
        }
        before, records = self.records().get(stage), self.records()
        if before and before["key"] == entry["key"] and before["outputs"] != entry["outputs"]:
            # Other bits than those that later stages read: made on another machine, or with other versions.
            records = self._without(records, after := self._after(stage))
            self._forget_half_made(after)
        self.rundir.update_manifest(stages={**records, stage: entry}, begun={})

    def _forget_half_made(self, stages: set[str]) -> None:
        """What stages that were never complete went through: its keys name settings, not the bits that were read."""
        for stage in stages:
            self.drop_checkpoints(stage)
        if "distill" in stages:
            self.rundir.update_manifest(targets=None, teaching={})
        if "export" in stages:
            shutil.rmtree(self.rundir.path / "retrained", ignore_errors=True)

    def _after(self, stage: str) -> set[str]:
        """The stages that stand on one."""
        found = {stage}
        for name, upstream in UPSTREAM.items():
            if found.intersection(upstream):
                found.add(name)
        return found - {stage}

    def _without(self, records: dict[str, Any], forgotten: set[str]) -> dict[str, Any]:
        """The records of the other stages; what the forgotten ones made must not be served under other settings."""
        for stage in forgotten.intersection(records):
            for name in records[stage]["outputs"]:
                (self.rundir.path / name).unlink(missing_ok=True)
            self.drop_checkpoints(stage)
        return {stage: record for stage, record in records.items() if stage not in forgotten}

    def drop_checkpoints(self, stage: str) -> None:
        """Free what a complete stage went through."""
        shutil.rmtree(self.rundir.checkpoints / stage, ignore_errors=True)

    def start(self, stage: str) -> None:
        """Say that a stage is being made."""
        self._begin(stage, 0.0)

    @contextmanager
    def counted(self, stage: str) -> Iterator[None]:
        """The time of an attempt that is stopped counts where the stage is resumed."""
        start = time.monotonic()
        try:
            yield
        except Interrupted:
            if self.main:
                self._begin(stage, time.monotonic() - start)
            raise

    def _begin(self, stage: str, seconds: float) -> None:
        spent = self._spent(stage) + seconds
        self.rundir.update_manifest(begun={stage: {"settings": self.settings[stage], "outputs": {}, "spent": spent}})

    def _spent(self, stage: str) -> float:
        begun = self.rundir.manifest().get("begun", {}).get(stage, {})
        return float(begun.get("spent", 0.0)) if begun.get("settings") == self.settings[stage] else 0.0

    def records(self) -> dict[str, Any]:
        """What the manifest says of complete stages."""
        records: dict[str, Any] = self.rundir.manifest().get("stages", {})
        return records

    def _compare(self, redo: bool) -> None:
        """Refuse changed settings of complete stages, or forget those stages and what stands on them."""
        begun = self.rundir.manifest().get("begun", {})
        half = {stage: it for stage, it in begun.items() if any((self.rundir.checkpoints / stage).rglob("step-*"))}
        records = {**half, **self.records()}
        forgotten: set[str] = set()
        for stage, upstream in UPSTREAM.items():
            if stage not in records:
                continue
            old, new = flat(records[stage]["settings"]), flat(self.settings[stage])
            changes = [name for name in sorted({*old, *new}) if old.get(name) != new.get(name)]
            if changes and not redo and not _nothing(records[stage]):
                shown = ", ".join(f"{name}: {old.get(name)!r} → {new.get(name)!r}" for name in changes)
                made = "begun" if stage in half else "made"
                raise StageChanged(folder=self.rundir.path, stage=stage, made=made, changes=shown)
            if changes or forgotten.intersection(upstream):
                forgotten.add(stage)
        if forgotten and self.main:
            self._without(records, forgotten)
            self.rundir.update_manifest(stages={k: v for k, v in self.records().items() if k not in forgotten})


def _nothing(record: dict[str, Any]) -> bool:
    """Whether a stage was not asked for: what was not made can be made now, with any settings."""
    return record.get("published", True) is None or record.get("trained", True) is None


def standing(rundir: RunDir, recipe: Recipe) -> set[str]:
    """Stages that need not be made again unless settings change: what the manifest says, before a run is entered."""
    records: dict[str, Any] = rundir.manifest().get("stages", {})
    stand = {stage for stage, record in records.items() if not _nothing(record)}
    if not recipe.control:
        return stand | {"control"}
    # What is after a control that is yet to be trained is made anew.
    return stand if "control" in stand else stand - {"publish"}
