"""Where a phase's teacher signals come from: a teacher that runs beside the student, or its cache on disk."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import torch
from accelerate.utils import gather_object
from datasets import Dataset
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from nlp_distill.cache import (
    FORMAT,
    Biases,
    CachedTeacher,
    Draft,
    Examples,
    Plan,
    fill,
    last_stack,
    longest,
    obstacle,
    plan,
    probe,
    write,
)
from nlp_distill.errors import CacheRefused, CacheTooLarge, DiskFull, Interrupted, NotWritable
from nlp_distill.loading import load_model
from nlp_distill.loop import PROGRESS_SECONDS
from nlp_distill.objective import Objective
from nlp_distill.recipe import Phase
from nlp_distill.road import Road
from nlp_distill.rows import Rows, to_device
from nlp_distill.rundir import disk_errors, place_errors, sha256_json
from nlp_distill.shelf import prune, sealed, sole_writer, teachers_folder, used_now
from nlp_distill.signals import (
    LAYERED,
    LiveTeacher,
    Request,
    TeacherSource,
    first_suffices,
    may_share_encoder,
    same_encoder,
)
from nlp_distill.sources import resolve

AUTO_BYTES = 2e9
"""What `cache: auto` may write."""
FORGOTTEN_SECONDS = 30 * 86_400.0
"""A cache that no run used for so long makes room for the next one."""
LIVE, STOPPED = "none", "stopped"


def teacher_source(
    road: Road, phase: Phase, objective: Objective, rows: Rows, student: PreTrainedModel, name: str, key: str
) -> TeacherSource | None:
    """The phase's teacher; None when no term needs one. It gives what the encoder says where the student, with the
    same frozen one, need not compute it.

    `key`: identity of the phase. What `cache: auto` decided for it is kept, so that a resumed run repeats its bits.
    Raises `CacheRefused`, `CacheTooLarge`, `Interrupted`.
    """
    if objective.teacher_config is None or not objective.teacher_request:
        return None
    lesson = Lesson(road, phase, objective, objective.teacher_config, rows, student, name, key)
    settled = None
    if road.main:
        try:
            settled = lesson.settle()
        except Interrupted:
            settled = STOPPED
    settled = road.agreed(settled)
    while isinstance(settled, Draft):
        lesson.share(settled)
        settled = road.agreed(None)
    if settled == STOPPED:
        raise Interrupted(step=0, stage=name)
    return lesson.live if settled == LIVE else CachedTeacher(Path(settled), road.task)


@dataclass
class Lesson:
    """A phase's rows, its teacher, and what its terms read."""

    road: Road
    phase: Phase
    objective: Objective
    teacher: PretrainedConfig
    rows: Rows
    student: PreTrainedModel
    name: str
    key: str
    told: bool = False

    @cached_property
    def model(self) -> PreTrainedModel:
        """The teacher's model."""
        model: PreTrainedModel = load_model(self.road.rundir.teacher, self.road.task.auto_class)
        return model

    @cached_property
    def request(self) -> Request:
        """What the terms read, and what the encoder says where that spares the student its own."""
        request = self.objective.teacher_request
        if self.rows.twin is not None or not may_share_encoder(self.student, self.objective.student_request):
            return request
        if not same_encoder(self.student, self.model):
            return request
        self.road.notify("note", message="teacher and student share one pass through the encoder")
        return request | Request(encoded=True)

    @cached_property
    def live(self) -> LiveTeacher:
        """The teacher itself."""
        road = self.road
        model = self.model.to(road.accelerator.device)
        ids = road.trim.ids() if road.trim is not None else None
        return LiveTeacher(
            model, road.task, self.request, road.setting().autocast, self.first_suffices, ids, self.words
        )

    @property
    def words(self) -> int | None:
        """The student's words, where the teacher says more of them: rows of its table that stand for no token."""
        ours, theirs = (spoken(config) for config in (self.student.config, self.teacher))
        both_speak = self.rows.twin is None and self.road.trim is None and not self.road.task.label_names
        return ours if both_speak and ours < theirs else None

    @property
    def first_suffices(self) -> bool:
        """Whether the teacher's last layer is run for the first token alone."""
        road, request = self.road, self.request
        return self.phase.lean and first_suffices(road.task, self.teacher, request, road.teacher_tokenizer)

    @cached_property
    def examples(self) -> Examples:
        """The rows as the loop will read them."""
        road = self.road
        collate = road.task.collate(road.tokenizer, self.student.config)
        device = road.accelerator.device
        return Examples(
            self.rows.lengths, lambda numbers, seed: to_device(self.rows.batch(numbers, seed, collate), device)
        )

    @cached_property
    def described(self) -> dict[str, Any]:
        """All that the signals depend on."""
        road, request = self.road, self.request
        twin = self.rows.twin
        wide = self.teacher.is_encoder_decoder and request.logits
        batch = probe(road.task, self.examples)
        features = self.rows.features
        if road.trim is not None:
            # The teacher reads its own ids: runs with other vocabularies share its signals.
            features = road.trim.theirs(features)
            batch = {**batch, "input_ids": road.trim.ids()[batch["input_ids"].cpu()]}
        return {
            "format": FORMAT,
            "teacher": resolve(str(road.rundir.teacher)).identity(),
            "rows": [fingerprint(read) for read in (features, *(twin[:1] if twin else ()))],
            "batch": _hash_of_batch(batch),
            "task": [road.task.name, road.task.options.model_dump(mode="json")],
            "signals": {field.name: _plain(getattr(request, field.name)) for field in fields(request)},
            "temperatures": self.objective.temperatures if wide else [],
            "arithmetic": [str(road.setting().autocast), road.accelerator.device.type, torch.get_num_threads()],
            "first": self.first_suffices,
            **({} if self.words is None else {"words": self.words}),
            "torch": str(torch.__version__),
        }

    def folder(self, precision: str) -> Path:
        """Where the cache is, or would be."""
        return teachers_folder() / sha256_json({**self.described, "precision": precision})[:20]

    def settle(self) -> str:
        """`none`, or the folder of a cache that is there now."""
        asked = self.phase.cache
        settled = self.road.rundir.manifest().get("teaching", {}).get(self.name, {})
        if asked == "auto" and settled.get("key") == self.key:
            asked = settled["cache"]
        if asked == LIVE:
            return LIVE
        reason = obstacle(self.road.task, self.teacher, self.phase.losses, asked)
        if asked == "auto":
            reason = reason or "over a single epoch a cache saves nothing" * (self.phase.epochs == 1)
            try:
                return self._beside(reason) if reason else self._kept("fp32", automatic=True)
            except CacheRefused as error:
                return self._beside(str(error.fields["reason"]))
            except (DiskFull, NotWritable) as error:
                # Nobody asked for a cache.
                return self._beside(str(error))
        if reason:
            raise CacheRefused(reason=reason)
        return self._kept(asked, automatic=False)

    def _kept(self, precision: str, automatic: bool) -> str:
        """Find the cache, or make it where it fits; `auto` takes one of half the size where the exact one does not."""
        folder, found, reason, half = self.folder(precision), True, "", ""
        if sealed(folder) is None:
            with sole_writer(folder, self._wait):
                if sealed(folder) is None:
                    found = False
                    self._make_room()
                    planned = self._plan(precision)
                    reason = self._excess(planned, precision) if automatic else ""
                    half = self._excess(planned, "bf16")
                    if not reason:
                        self._announce(planned, folder, precision)
                        self._write(folder, planned, precision)
        if reason and precision == "fp32" and (not half or sealed(self.folder("bf16"))):
            self.road.notify("note", message=f"the teacher's signals are rounded to bf16: {reason}")
            return self._kept("bf16", automatic)
        if reason:
            return self._beside(half)
        self._remember(precision)
        used_now(folder)
        if found:
            self.road.notify("note", message=f"the teacher's signals are cached already ({precision}), in {folder}")
        return str(folder)

    def _plan(self, precision: str) -> Plan:
        request, temperatures = self.request, self.objective.temperatures
        last = last_stack(self.teacher)
        return plan(self.road.task, self.live, request, self.examples, last, precision, temperatures)

    def _excess(self, planned: Plan, precision: str) -> str:
        """Why `auto` does not write so much; empty where it does."""
        free, size = self._free(), planned.size_in(precision)
        if size <= min(AUTO_BYTES, free // 2):
            return ""
        limit = shown(AUTO_BYTES) if free // 2 > AUTO_BYTES else f"half of the {shown(free)} that are free"
        smaller = shown(planned.size_in("int8"))
        return f"its cache would take {shown(size)} in {precision}, more than {limit}; `cache: int8` {smaller}"

    def _announce(self, planned: Plan, folder: Path, precision: str) -> None:
        """Say the size. Raises `CacheTooLarge`."""
        free, size = self._free(), shown(planned.size)
        if planned.size > free:
            raise CacheTooLarge(size=size, precision=precision, free=shown(free), folder=folder)
        held = summary(self.request)
        self.road.notify("note", message=f"the teacher's signals take {size} ({precision}: {held}), in {folder}")

    def _free(self) -> int:
        folder = teachers_folder()
        with disk_errors(folder), place_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        return shutil.disk_usage(folder).free

    def _write(self, folder: Path, planned: Plan, precision: str) -> None:
        road = self.road
        about = {
            "teacher": road.source.name,
            "data": road.slices.source,
            "examples": len(self.rows.lengths),
            "signals": summary(self.request),
            "precision": precision,
        }
        last = last_stack(self.teacher)
        write(folder, planned, self.examples, last, about, lambda draft: self.share(road.agreed(draft)))

    def share(self, draft: Draft) -> Biases:
        """Every process's part of a cache; ends where all have done theirs, on the main one with what all saw.

        Raises there what went wrong anywhere: `Interrupted`, `CacheRefused`, or its own trouble.
        """
        biases, trouble = Biases(), None
        try:
            biases = self._fill(draft)
        except Exception as error:
            trouble = error
        said = "" if trouble is None else STOPPED if isinstance(trouble, Interrupted) else str(trouble) or repr(trouble)
        all_biases, all_said = zip(*gather_object([(biases, said)]), strict=True)
        if self.road.main:
            if trouble is not None:
                raise trouble
            if STOPPED in all_said:
                raise Interrupted(step=0, stage=self.name)
            for rank, words in enumerate(all_said):
                if words:
                    raise CacheRefused(reason=f"process {rank} could not write its share: {words}")
        return longest(all_biases)

    def _fill(self, draft: Draft) -> Biases:
        road, shown_at = self.road, time.monotonic()

        def progress(done: int, total: int) -> None:
            nonlocal shown_at
            if road.stop():
                raise Interrupted(step=0, stage=self.name)
            if time.monotonic() - shown_at >= PROGRESS_SECONDS or done == total:
                road.notify("progress", stage="the teacher's cache", step=done, steps=total)
                shown_at = time.monotonic()

        process = road.accelerator
        rank, world = process.process_index, process.num_processes
        with disk_errors(draft.folder):
            return fill(draft, road.task, self.live, self.examples, last_stack(self.teacher), progress, rank, world)

    def _make_room(self) -> None:
        """Caches that nobody uses any more go when another one comes."""
        for entry in prune(FORGOTTEN_SECONDS):
            message = f"removed the cache {entry.folder.name}, {shown(entry.size)}: unused for 30 days, or half-written"
            self.road.notify("note", message=message)

    def _wait(self) -> None:
        """Another run is writing the same cache."""
        if self.road.stop():
            raise Interrupted(step=0, stage=self.name)
        if not self.told:
            self.road.notify("note", message="another run is caching the same signals; waiting for it")
        self.told = True

    def _beside(self, reason: str) -> str:
        self.road.notify("note", message=f"the teacher runs beside the student: {reason}")
        self._remember(LIVE)
        return LIVE

    def _remember(self, settled: str) -> None:
        rundir = self.road.rundir
        known = rundir.manifest().get("teaching", {})
        rundir.update_manifest(teaching={**known, self.name: {"key": self.key, "cache": settled}})


def spoken(config: PretrainedConfig) -> int:
    """Rows of a model's table of words."""
    return int(getattr(config, "decoder", config).vocab_size)


def summary(request: Request) -> str:
    """What a request reads, in a few words."""
    layers = {kind: len(getattr(request, kind)) for kind in (*LAYERED, "first")}
    named = {"first": "[CLS]"}
    parts = [f"{count} × {named.get(kind, kind.replace('_', ' '))}" for kind, count in layers.items() if count]
    return ", ".join(["logits"] * request.logits + ["the encoder's output"] * request.encoded + parts)


def shown(size: float) -> str:
    """Bytes, for people."""
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, frozenset) else value


def _hash_of_batch(batch: dict[str, Any]) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(batch.items()):
        if isinstance(value, Tensor):
            digest.update(f"{name}{tuple(value.shape)}".encode() + value.cpu().numpy().tobytes())
        elif isinstance(value, dict):
            digest.update(_hash_of_batch(value).encode())
    return digest.hexdigest()


def fingerprint(features: Dataset) -> str:
    """Hash of tokenised examples, which stands for data, tokenizer, lengths and the task's options at once."""
    table = features.with_format("arrow")[:]
    digest = hashlib.sha256()
    for name in sorted(table.column_names):
        column = table.column(name)
        digest.update(f"{name}{column.type}".encode())
        while pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
            digest.update(pc.list_value_length(column).to_numpy().tobytes())
            column = pc.list_flatten(column)
        if pa.types.is_primitive(column.type):
            digest.update(column.to_numpy().tobytes())
        else:
            digest.update(json.dumps(column.to_pylist(), ensure_ascii=False, default=str).encode())
    return digest.hexdigest()
