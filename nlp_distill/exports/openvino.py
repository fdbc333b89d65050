"""OpenVINO, through Optimum: fp32, static int8 by NNCF, and weights of 8 or 4 bits.

OpenVINO computes in bf16 where a CPU has it, and rounds activations over whole batches where weights are compressed;
both are turned off, so that the answers are those that were proven.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nlp_distill.errors import MissingExtra, ModelNotFound
from nlp_distill.exports.format import Attempt, Form, Format, Work
from nlp_distill.first_token import can_read_first, first_token_only
from nlp_distill.loading import load_config, load_generation, load_model
from nlp_distill.vetting import check_folder, inside

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from nlp_distill.recipe import Export
    from nlp_distill.task import Task

PARTS = ("openvino_model", "openvino_encoder_model", "openvino_decoder_model", "openvino_decoder_with_past_model")
PRECISE = {"INFERENCE_PRECISION_HINT": "f32"}
OWN_ROWS = {**PRECISE, "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
"""For compressed weights: activations are not quantized, which OpenVINO would do over the batch."""


class OpenVino(Format):
    """OpenVINO's IR: an .xml with the graph and a .bin with the weights."""

    name = "openvino"
    title = "OpenVINO"
    folder = "openvino"
    runtime = "openvino"
    module = "optimum.intel"
    loader = "optimum.intel"
    extra = "openvino"
    forms = (
        Form("openvino", "small", "student-openvino-q4", "int4", "_q4"),
        Form("openvino", "fast", "student-openvino-int8", "int8", "_quantized"),
        Form("openvino", "dynamic", "student-openvino-dynamic", "int8", "_int8", batch=1),
        Form("openvino", "exact", "student-openvino-fp32", "fp32"),
    )
    source = "exact"

    def check(self, config: PretrainedConfig, task: Task, settings: Export) -> None:
        """Optimum's word on the type and the task."""
        form = self.form(settings.profile)
        try:
            import nncf  # noqa: F401
            from optimum.exporters.openvino import export_from_model  # noqa: F401
        except ImportError as error:
            raise MissingExtra(what="Export to OpenVINO", extra=self.extra) from error
        from optimum.exporters.tasks import TasksManager

        try:
            tasks = TasksManager.get_supported_tasks_for_model_type(
                config.model_type, "openvino", library_name="transformers"
            )
        except KeyError as error:
            raise self.refuse(config, task, "the type is unknown to Optimum") from error
        if task.pipeline_task not in tasks:
            raise self.refuse(config, task, f"Optimum exports {', '.join(tasks)}")
        if config.is_encoder_decoder and form.profile == "dynamic":
            raise self.refuse(config, task, "the profile `dynamic` is for encoders; take `fast`")

    def attempts(self, work: Work, form: Form, settings: Export) -> Iterator[Attempt]:
        """Fp32 by Optimum; the others by NNCF from the fp32 files."""
        if form.exact:
            yield Attempt({}, lambda folder: _export(work, folder))
            return
        files = _graphs(work.model, self.form("exact"))
        if form.profile == "fast" and len(files) == 1:
            for says, settings_of in _STATIC.items():
                yield Attempt(
                    {"quantization": f"static int8, {says}"}, partial(_static, work, files[0], form, settings_of)
                )
        for says, settings_of in _WEIGHTS[form.profile].items():
            said = {"quantization": says, "precision": str(settings_of["mode"]).removesuffix("_asym")}
            yield Attempt(said, partial(_compress, files, form, settings_of))

    def files(self, model: Path, form: Form) -> list[Path]:
        """Graphs and weights."""
        pairs = [(file, file.with_suffix(".bin")) for file in _graphs(model, form)]
        return [part for pair in pairs for part in pair if part.is_file()]

    def settings(self, model: Path, form: Form) -> dict[str, Any]:
        """Arguments of an Optimum OVModelFor….from_pretrained."""
        names = [file.name for file in _graphs(model, form)]
        named = {"file_name": names[0]} if len(names) == 1 else {"files": names}
        return {**named, "subfolder": self.folder, "ov_config": _options(form)}

    def load(self, model: Path, auto_class: str, form: Form, threads: int | None = None) -> Any:
        """An Optimum OVModelFor…."""
        try:
            import openvino
            from optimum import intel
        except ImportError as error:
            raise MissingExtra(what="OpenVINO", extra=self.extra) from error
        check_folder(model)
        files = _graphs(model, form)
        for file in self.files(model, form):
            inside(model, f"{self.folder}/{file.name}")
        options: dict[str, Any] = {**_options(form), "PERFORMANCE_HINT": "LATENCY"}
        if threads is not None:
            options["INFERENCE_NUM_THREADS"] = threads
        core = openvino.Core()
        try:
            graphs = [core.read_model(file) for file in files]
        except RuntimeError as error:
            names = " and ".join(file.name for file in files)
            told = str(error).strip().split("\n")[-1]
            raise ModelNotFound(
                reference=model, reason=f"its {names} cannot be read ({told})", fix="Export it anew."
            ) from error
        kind = getattr(intel, auto_class.replace("AutoModel", "OVModel"))
        config = load_config(model)
        if len(graphs) == 1:
            return kind(graphs[0], config=config, ov_config=options)
        generation = load_generation(model)
        return kind(*graphs, config=config, ov_config=options, generation_config=generation, model_save_dir=model)

    def pipeline(self, model: Any, task: Task, tokenizer: Any) -> Any:
        """Optimum Intel's own: `optimum.pipelines` does not take its models."""
        from optimum.intel.pipelines import pipeline

        settings = task.pipeline_settings(tokenizer)
        return pipeline(task.pipeline_task, model=model, tokenizer=tokenizer, accelerator="openvino", **settings)


def _graphs(model: Path, form: Form) -> list[Path]:
    files = [model / OpenVino.folder / f"{part}{form.suffix}.xml" for part in PARTS]
    return [file for file in files if file.is_file()]


def _options(form: Form) -> dict[str, str]:
    return PRECISE if form.profile in ("exact", "dynamic") else OWN_ROWS


def _export(work: Work, folder: Path) -> dict[str, Any]:
    """Write the fp32 files; a classifier's last layer for the first token alone, a decoder with its past if it can."""
    from optimum.exporters.openvino import export_from_model

    from nlp_distill.exports.onnx_files import WITHOUT_PAST, quiet

    model = load_model(work.model, work.task.auto_class)
    first = work.task.reads_first and can_read_first(model.config)
    named = work.task.pipeline_task
    if model.config.is_encoder_decoder and model.can_generate() and model.config.model_type not in WITHOUT_PAST:
        named += "-with-past"
    with (
        tempfile.TemporaryDirectory() as scratch,
        quiet(),
        first_token_only(model) if first else nullcontext(),
    ):
        # Stateful decoders cannot be made of a T5.
        export_from_model(model, scratch, task=named, stateful=False)
        for file in Path(scratch).glob("openvino_*model.*"):
            shutil.copyfile(file, folder / file.name)
    return {"last_layer": "first token" if first else "all tokens"}


def _static(work: Work, file: Path, form: Form, chosen: dict[str, Any], folder: Path) -> dict[str, Any]:
    import nncf
    import openvino

    from nlp_distill.exports.onnx_files import quiet
    from nlp_distill.exports.onnx_ladder import calibration

    model = openvino.Core().read_model(file)
    names = {name for entry in model.inputs for name in entry.get_names()}
    feeds = [{name: value for name, value in feed.items() if name in names} for feed in calibration(work)]
    with quiet():
        made = nncf.quantize(
            model,
            nncf.Dataset(feeds),
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(feeds),
            preset=nncf.QuantizationPreset(chosen["preset"]),
            fast_bias_correction=chosen["fast"],
        )
    openvino.save_model(made, folder / f"{file.stem}{form.suffix}.xml", compress_to_fp16=False)
    return {"calibration": {"rows": len(feeds)}}


def _compress(files: list[Path], form: Form, chosen: dict[str, Any], folder: Path) -> None:
    import nncf
    import openvino

    from nlp_distill.exports.onnx_files import quiet

    settings = {**chosen, "mode": nncf.CompressWeightsMode(chosen["mode"])}
    if "group_size" in chosen:
        # A width that groups do not divide takes smaller ones.
        smaller = nncf.GroupSizeFallbackMode.ADJUST
        settings["advanced_parameters"] = nncf.AdvancedCompressionParameters(group_size_fallback_mode=smaller)
    for file in files:
        with quiet():
            made = nncf.compress_weights(openvino.Core().read_model(file), **settings)
        openvino.save_model(made, folder / f"{file.stem}{form.suffix}.xml", compress_to_fp16=False)


_STATIC = {
    "activations symmetric": {"preset": "performance", "fast": True},
    "activations asymmetric, biases corrected": {"preset": "mixed", "fast": False},
}
_EIGHT = {"weights of 8 bits": {"mode": "int8_asym"}}
_FOUR = {
    "weights of 4 bits in groups of 64": {"mode": "int4_asym", "ratio": 1.0, "group_size": 64, "all_layers": True},
    "weights of 4 bits in groups of 32": {"mode": "int4_asym", "ratio": 1.0, "group_size": 32, "all_layers": True},
}
_WEIGHTS: dict[str, dict[str, dict[str, Any]]] = {"fast": _EIGHT, "dynamic": _EIGHT, "small": {**_FOUR, **_EIGHT}}
"""Ways to compress weights, in the order in which they are tried."""
