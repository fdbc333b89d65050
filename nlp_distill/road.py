"""What the stages of one run share: recipe, folder, task, rows, teacher reference, and where training happens."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from datetime import timedelta
from functools import cached_property
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import (
    DistributedDataParallelKwargs,
    GradientAccumulationPlugin,
    InitProcessGroupKwargs,
    broadcast_object_list,
)
from datasets import Dataset
from transformers import PretrainedConfig

from nlp_distill.cutting import slices
from nlp_distill.errors import RunFailed, TrackerMissing
from nlp_distill.graphs import check_compiler
from nlp_distill.loading import load_model, load_tokenizer
from nlp_distill.loop import Notify, Setting
from nlp_distill.precision import autocast_dtype
from nlp_distill.recipe import Recipe
from nlp_distill.rows import Rows
from nlp_distill.rundir import RunDir, versions
from nlp_distill.sources import resolve
from nlp_distill.starts import first_source
from nlp_distill.task import load_task
from nlp_distill.vocabulary import Trim, reads_alike, trimmed

PACKAGES = (
    "nlp-distill",
    "torch",
    "transformers",
    "tokenizers",
    "datasets",
    "accelerate",
    "optimum",
    "onnxruntime",
)


class Road:
    """One run on its way. Rows and tokenizer are read once, on first use."""

    def __init__(self, recipe: Recipe, rundir: RunDir, notify: Notify, stop: Callable[[], bool]) -> None:
        self.recipe, self.rundir, self.stop = recipe, rundir, stop
        self.task = load_task(recipe.task, recipe.options)
        self.accelerator = _accelerator(recipe, rundir)
        self.main: bool = self.accelerator.is_main_process
        self.notify: Notify = notify if self.main else lambda kind, **fields: None
        self.slices = slices(self.task.load_data(recipe.data), recipe.data, self.task)
        self.source = first_source(recipe, self.task, self.slices.train, self.slices.sha256)

    @property
    def strict(self) -> bool:
        """Whether the run must repeat its bits."""
        asked = self.recipe.determinism
        on_cpu = self.accelerator.device.type == "cpu"
        return asked == "strict" or (asked == "auto" and on_cpu and not self.recipe.compile)

    @cached_property
    def tokenizer(self) -> Any:
        """The student's tokenizer: its teacher's, unless it is another checkpoint with one of its own."""
        own, theirs = self._chosen_tokenizer, self.teacher_tokenizer
        if own is None:
            return theirs if self.trim is None else self.trim.tokenizer
        if not reads_alike(own, theirs):
            return own
        own.model_max_length = theirs.model_max_length
        # BERT's rows have token types, for which DistilBERT has no place.
        return theirs if set(own.model_input_names) == set(theirs.model_input_names) else own

    @cached_property
    def teacher_tokenizer(self) -> Any:
        """The teacher's tokenizer; a student's own where there is no teacher. Where both read alike, both cut alike."""
        theirs, own = load_tokenizer(self.source.folder, self.recipe.max_length), self._chosen_tokenizer
        if own is not None and reads_alike(own, theirs):
            theirs.model_max_length = min(theirs.model_max_length, own.model_max_length)
        return theirs

    @cached_property
    def _chosen_tokenizer(self) -> Any:
        """That of the checkpoint that the student starts from, if it is one of its own."""
        chosen = self.recipe.student.model
        return None if chosen is None else load_tokenizer(resolve(chosen).folder, self.recipe.max_length)

    @cached_property
    def trim(self) -> Trim | None:
        """The student's part of its teacher's vocabulary; None where it keeps all."""
        if self.recipe.student.vocabulary == "keep":
            return None
        return trimmed(self.teacher_tokenizer, self._whole_rows.features)

    def tell_vocabulary(self, trim: Trim) -> dict[str, Any]:
        """Say what the smaller vocabulary does to the reported rows, which nobody learns from."""
        rows = self.rows(self.slices.evaluation)
        about = trim.about(self.for_teacher(rows).features, rows.features)
        message = (
            f"vocabulary: {about['tokens']:,} of {about['before']:,} tokens are kept; {about['respelled']:.2%} of the "
            f"tokens of the reported rows are spelled with smaller ones, in {about['rows']:.1%} of them"
        )
        self.notify("note", stage="student", message=message, vocabulary=about)
        return about

    @cached_property
    def _whole_rows(self) -> Rows:
        """The rows to learn from as the teacher reads them."""
        return self.rows(self.slices.train, self.teacher_tokenizer)

    @cached_property
    def train_rows(self) -> Rows:
        """The rows to learn from."""
        if self.trim is None:
            return self.rows(self.slices.train)
        return Rows(self.trim.ours(self._whole_rows.features), self.slices.train)

    @cached_property
    def selection_rows(self) -> Rows:
        """The rows that choose epochs and gate exports; never trained on, never reported."""
        return self.rows(self.slices.selection)

    @cached_property
    def notes(self) -> dict[str, str]:
        """What there is to say about the rows, all of them tokenised: what no model could read is refused here."""
        # Those of train first: a task's notes are about them.
        _ = (self.train_rows, self.for_teacher(self.train_rows), self.selection_rows, self.rows(self.slices.evaluation))
        notes, limit = self.task.notes(), self.tokenizer.model_max_length
        if limit < self.recipe.max_length:
            notes = {**notes, "max_length": f"{limit}, as the model has no more positions"}
        return notes

    def try_out(self) -> None:
        """Read all rows and weights once: what cannot be read is refused before there is a folder."""
        if self.recipe.compile:
            check_compiler(self.accelerator.device)
        self.notes  # noqa: B018
        settings = self.task.config_settings()
        load_model(self.source.folder, self.task.auto_class, **settings)
        chosen = self.recipe.student.model
        if chosen is not None:
            load_model(resolve(chosen).folder, self.task.auto_class, **settings)

    def rows(self, raw: Dataset, tokenizer: Any = None) -> Rows:
        """Rows as the student reads them, or another tokenizer."""
        tokenizer = tokenizer or self.tokenizer
        return Rows(self.task.features(raw, tokenizer, tokenizer.model_max_length), raw)

    def for_teacher(self, rows: Rows) -> Rows:
        """The same rows as the teacher reads them."""
        if self.trim is not None and rows is self.train_rows:
            return self._whole_rows
        return rows if self.teacher_tokenizer is self.tokenizer else self.rows(rows.raw, self.teacher_tokenizer)

    def with_twin(self, rows: Rows, teacher: PretrainedConfig) -> Rows:
        """Rows that also carry the teacher's reading, where its tokenizer is another."""
        if self.teacher_tokenizer is self.tokenizer or self.trim is not None:
            return rows
        read = self.task.collate(self.teacher_tokenizer, teacher)
        return Rows(rows.features, rows.raw, (self.task.twins(rows.raw, self.tokenizer, self.teacher_tokenizer), read))

    def setting(self, tokenizer: Any = None) -> Setting:
        """Where a training of this run happens, in the precision that the run settled on."""
        manifest = self.rundir.manifest()
        return Setting(
            task=self.task,
            tokenizer=tokenizer or self.tokenizer,
            accelerator=self.accelerator,
            seed=self.recipe.seed,
            autocast=autocast_dtype(manifest["precision"]["precision"]),
            compile=self.recipe.compile,
            notify=self.notify,
            stop=self.stop,
        )

    def agreed(self, value: Any) -> Any:
        """The main process's value, on every process."""
        if self.accelerator.num_processes == 1:
            return value
        return broadcast_object_list([value])[0]

    def versions(self) -> dict[str, str]:
        """Versions of what the numbers depend on."""
        return {"python": platform.python_version(), **versions(PACKAGES)}

    def machine(self) -> dict[str, Any]:
        """What the run ran on."""
        return {
            "platform": platform.platform(),
            "processor": _processor(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            "processes": self.accelerator.num_processes,
        }

    def sign(self) -> None:
        """Note what the run depends on; say where it goes on with other versions, or on another machine."""
        manifest, versions, machine = self.rundir.manifest(), self.versions(), self.machine()
        before = {**manifest.get("versions", versions), **manifest.get("machine", machine)}
        now = {**versions, **machine, "threads": before["threads"]}
        changed = ", ".join(
            f"{name}: {before.get(name)} → {now[name]}" for name in now if before.get(name) != now[name]
        )
        if changed and manifest.get("stages"):
            self.notify("warning", message=f"the run goes on elsewhere, where the last bits may differ ({changed})")
        self.rundir.update_manifest(
            schema=1,
            recipe_sha256=self.recipe.sha256(),
            versions=versions,
            machine=manifest.get("machine") or machine,
            determinism="strict" if self.strict else "fast",
        )


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as stream:
            names = [line.split(":", 1)[1].strip() for line in stream if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor()


def _accelerator(recipe: Recipe, rundir: RunDir) -> Accelerator:
    available = {str(getattr(tracker, "value", tracker)) for tracker in get_available_trackers()}
    for name in recipe.trackers:
        if name not in available:
            raise TrackerMissing(name=name)
    accelerator = Accelerator(
        log_with=list(recipe.trackers) or None,
        # Precision and accumulation are ours, whatever `accelerate launch` puts into the environment.
        mixed_precision="no",
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        project_dir=str(rundir.path),
        kwargs_handlers=[
            # A term may leave the head or the pooler without gradients.
            DistributedDataParallelKwargs(find_unused_parameters=True),
            # Other processes wait while the main one exports and scores.
            InitProcessGroupKwargs(timeout=timedelta(hours=24)),
        ],
    )
    asked = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != asked:
        raise RunFailed(stage="start", reason=f"{asked} processes were asked for, {accelerator.num_processes} run")
    return accelerator
