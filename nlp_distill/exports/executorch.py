"""ExecuTorch programs (`.pte`), which run on Android and iOS."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nlp_distill.errors import MissingExtra
from nlp_distill.exports.format import Attempt, Form, Format, Work
from nlp_distill.first_token import can_read_first

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from nlp_distill.recipe import Export
    from nlp_distill.task import Task

WORD_BITS: dict[str, tuple[int, ...]] = {"small": (4, 8), "mobile": (8,)}
"""Bits of the table of words, the second where the first lost too much."""
_INT8 = "int8, activations by token, words int{}"
KNOWN = ("albert", "bert", "distilbert", "electra", "mpnet", "roberta", "xlm-roberta")
"""Architectures that were exported and compared with PyTorch; others need not have shapes that can be traced."""


class Executorch(Format):
    """A program for one row of any length; it runs on XNNPACK and the portable kernels."""

    name = "executorch"
    title = "ExecuTorch"
    folder = "mobile"
    runtime = "executorch"
    module = "executorch"
    loader = "executorch.runtime"
    extra = "executorch"
    forms = (
        Form("executorch", "small", "student-executorch-int4", "int8, words int4", "_q4", batch=1),
        Form("executorch", "mobile", "student-executorch-int8", "int8", "_quantized", batch=1),
        Form("executorch", "exact", "student-executorch-fp32", "fp32", batch=1),
    )

    def check(self, config: PretrainedConfig, task: Task, settings: Export) -> None:
        """An encoder whose shapes can be traced, and the extra."""
        self.form(settings.profile)
        if not self.installed:
            raise MissingExtra(what="Export to ExecuTorch", extra=self.extra)
        if config.is_encoder_decoder:
            raise self.refuse(config, task, "a program reads a text and writes none")
        if config.model_type not in KNOWN:
            raise self.refuse(config, task, f"known are {', '.join(KNOWN)}")

    def attempts(self, work: Work, form: Form, settings: Export) -> Iterator[Attempt]:
        """Float32; or int8 with the table of words in 4 or 8 bits, at last of a student trained to be rounded."""
        from nlp_distill.exports.executorch_files import write_program
        from nlp_distill.loading import load_config, load_model

        inputs = [name for name in work.tokenizer.model_input_names if name != "attention_mask"]
        longest, tables = work.tokenizer.model_max_length, WORD_BITS.get(form.profile, ())
        first = work.task.reads_first and can_read_first(load_config(work.model))
        says = {"last_layer": "first token" if first else "all tokens", "max_length": longest, "inputs": inputs}

        def written(bits: int | None, source: Callable[[], Path]) -> Callable[[Path], None]:
            def write(folder: Path) -> None:
                model = load_model(source(), work.task.auto_class)
                write_program(model, inputs, longest, folder / f"model{form.suffix}.pte", bits, first)

            return write

        if not tables:
            yield Attempt(says, written(None, lambda: work.model))
        for bits in tables:
            said = {**says, "quantization": _INT8.format(bits), **({"precision": "int8"} if bits == 8 else {})}
            yield Attempt(said, written(bits, lambda: work.model))
        if tables and (retrained := work.retrained):
            said = {
                **says,
                "quantization": _INT8.format(8),
                "precision": "int8",
                "trained": "one epoch, quantization-aware",
            }
            yield Attempt(said, written(8, lambda: retrained(8)))

    def files(self, model: Path, form: Form) -> list[Path]:
        """One program."""
        file = model / self.folder / f"model{form.suffix}.pte"
        return [file] if file.is_file() else []

    def settings(self, model: Path, form: Form) -> dict[str, Any]:
        """The file; what it takes is said in it, too."""
        return {"file_name": f"{self.folder}/model{form.suffix}.pte", "backend": "XnnpackBackend"}

    def load(self, model: Path, auto_class: str, form: Form, threads: int | None = None) -> Any:
        """A `ProgramModel`."""
        if not self.installed:
            raise MissingExtra(what="ExecuTorch", extra=self.extra)
        from nlp_distill.exports.executorch_model import ProgramModel
        from nlp_distill.loading import load_config

        return ProgramModel(self.files(model, form)[0], load_config(model), threads)

    def pipeline(self, model: Any, task: Task, tokenizer: Any) -> Any:
        """The pipeline of transformers."""
        from nlp_distill.exports.executorch_files import quiet
        from nlp_distill.scores import model_pipeline

        # It says that it knows no such class, and works.
        with quiet(logging.ERROR):
            return model_pipeline(task, model, tokenizer)
