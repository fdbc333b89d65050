"""ONNX, run by ONNX Runtime through Optimum, in the layout that Optimum and transformers.js both load."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from nlp_distill.errors import ExportInvalid, MissingExtra
from nlp_distill.exports.format import Attempt, Form, Format, Work
from nlp_distill.loading import load_ort, onnx_files

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from nlp_distill.recipe import Export, Profile
    from nlp_distill.task import Task


class Onnx(Format):
    """ONNX files; the suffixes are what transformers.js calls q4, q8, uint8 and int8."""

    name = "onnx"
    title = "ONNX"
    folder = "onnx"
    runtime = "onnxruntime"
    module = "onnxruntime"
    loader = "optimum.onnxruntime"
    extra = "onnx"
    forms: ClassVar[tuple[Form, ...]] = (
        Form("onnx", "small", "student-onnx-q4", "int4", "_q4"),
        Form("onnx", "fast", "student-onnx-int8", "int8", "_quantized"),
        Form("onnx", "mobile", "student-onnx-mobile", "int8", "_uint8"),
        Form("onnx", "dynamic", "student-onnx-dynamic", "int8", "_int8", batch=1),
        Form("onnx", "exact", "student-onnx-fp32", "fp32"),
    )
    source: ClassVar[Profile | None] = "exact"

    def check(self, config: PretrainedConfig, task: Task, settings: Export) -> None:
        """Optimum's word on the type and the task."""
        try:
            import onnxruntime  # noqa: F401
            from optimum.exporters.tasks import TasksManager  # noqa: F401
        except ImportError as error:
            raise MissingExtra(what="Export to ONNX", extra="onnx") from error
        from nlp_distill.exports.onnx_files import export_task

        form = self.form(settings.profile)
        if settings.target != "auto" and form.profile != "dynamic":
            reason = (
                f"`target` is for the profile `dynamic`; a file of `{form.profile}` runs on every CPU: leave it out"
            )
            raise ExportInvalid(reason=reason)
        export_task(config.model_type, task.pipeline_task)
        if form.profile == "mobile" and config.is_encoder_decoder:
            raise self.refuse(config, task, "the profile `mobile` is for encoders; take `small`")

    def attempts(self, work: Work, form: Form, settings: Export) -> Iterator[Attempt]:
        """Fp32 as it is; the others from the fp32 files."""
        from nlp_distill.exports.onnx_files import dynamic_int8, export, instruction_set
        from nlp_distill.exports.onnx_ladder import rungs

        if form.exact:
            yield Attempt({}, lambda folder: export(work.model, work.task, folder))
            return
        sources = self.files(work.model, self.form("exact"))
        if any(file.suffix != ".onnx" for file in sources):
            # Beyond 2 GB the weights lie beside the graph, which no quantizer takes apart in memory.
            return
        if form.profile != "dynamic":
            yield from rungs(work, form, sources)
            return
        target = instruction_set(settings)
        yield Attempt(
            {"quantization": "dynamic int8, weights per channel", "target": target},
            lambda folder: dynamic_int8(work.model, sources, folder, form.suffix, target),
        )

    def files(self, model: Path, form: Form) -> list[Path]:
        """The graphs, and the weights beyond 2 GB beside them (`model.onnx_data`)."""
        names = onnx_files(model, form.suffix).values()
        return [file for name in names for file in sorted((model / self.folder).glob(f"{name}*"))]

    def settings(self, model: Path, form: Form) -> dict[str, Any]:
        """Arguments of an Optimum ORTModelFor….from_pretrained."""
        return {
            **onnx_files(model, form.suffix),
            "subfolder": self.folder,
            "provider": "CPUExecutionProvider",
        }

    def load(self, model: Path, auto_class: str, form: Form, threads: int | None = None) -> Any:
        """An Optimum ORTModelFor…."""
        return load_ort(model, auto_class, form.suffix, threads)

    def pipeline(self, model: Any, task: Task, tokenizer: Any) -> Any:
        """Optimum's pipeline."""
        from optimum.pipelines import pipeline

        settings = task.pipeline_settings(tokenizer)
        return pipeline(task.pipeline_task, model=model, tokenizer=tokenizer, accelerator="ort", **settings)
