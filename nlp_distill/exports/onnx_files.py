"""ONNX files through Optimum: fp32, and dynamic int8."""

from __future__ import annotations

import logging
import platform
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

from nlp_distill.errors import NotExportable
from nlp_distill.first_token import can_read_first, first_token_only
from nlp_distill.loading import load_config, load_model
from nlp_distill.recipe import Export
from nlp_distill.task import Task
from nlp_distill.vetting import clean_copy

WITHOUT_PAST = ("encoder-decoder",)
"""Types whose decoder Optimum exports wrongly, or not at all, with its past."""


def export_task(model_type: str, pipeline_task: str) -> str:
    """Optimum's name of the export: with the decoder's past wherever Optimum can. Raises `NotExportable`."""
    import optimum.exporters.onnx.model_configs  # noqa: F401  registers what can be exported
    from optimum.exporters.tasks import TasksManager

    try:
        tasks = TasksManager.get_supported_tasks_for_model_type(model_type, "onnx", library_name="transformers")
    except KeyError as error:
        raise NotExportable(
            model_type=model_type, task=pipeline_task, format="ONNX", reason="the type is unknown to Optimum"
        ) from error
    past = f"{pipeline_task}-with-past"
    if past in tasks and model_type not in WITHOUT_PAST:
        return past
    if pipeline_task not in tasks:
        raise NotExportable(
            model_type=model_type,
            task=pipeline_task,
            format="ONNX",
            reason=f"Optimum exports {', '.join(tasks)}",
        )
    return pipeline_task


def instruction_set(settings: Export) -> str:
    """What int8 is made for: the setting, or what this machine has."""
    if settings.target != "auto":
        return settings.target
    if platform.machine().lower() in ("arm64", "aarch64"):
        return "arm64"
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        flags = ""
    return "avx512_vnni" if "avx512_vnni" in flags else "avx2"


def export(model: Path, task: Task, folder: Path) -> dict[str, Any]:
    """Write `model.onnx`, its last layer for the first token alone where the task reads no other."""
    if task.reads_first and can_read_first(load_config(model)):
        export_first(model, task, folder)
        return {"last_layer": "first token"}
    export_fp32(model, task.pipeline_task, folder)
    return {"last_layer": "all tokens"}


def export_first(model: Path, task: Task, folder: Path) -> None:
    """Write `model.onnx` of a classifier whose last layer is run for the first token alone."""
    from optimum.exporters.onnx import onnx_export_from_model

    loaded = load_model(model, task.auto_class)
    with tempfile.TemporaryDirectory() as scratch, quiet(), first_token_only(loaded):
        onnx_export_from_model(loaded, scratch, task=task.pipeline_task, do_validation=False)
        for file in Path(scratch).glob("*.onnx*"):
            shutil.copyfile(file, folder / file.name)


def export_fp32(model: Path, pipeline_task: str, folder: Path) -> None:
    """Write the ONNX files of a model folder into `folder`: `model.onnx`, or an encoder and a decoder."""
    from optimum.exporters.onnx import main_export

    task = export_task(load_config(model).model_type, pipeline_task)
    with clean_copy(model, weights=True, tokenizer=True) as clean, tempfile.TemporaryDirectory() as scratch, quiet():
        main_export(str(clean), output=scratch, task=task, do_validation=False, local_files_only=True)
        written = {file.name for file in Path(scratch).glob("*.onnx*")}
        if "decoder_model_merged.onnx" in written:
            # The merged decoder holds both of the others.
            written -= {"decoder_model.onnx", "decoder_with_past_model.onnx"}
            _name_in_order(Path(scratch) / "decoder_model_merged.onnx")
        for name in written:
            shutil.copyfile(Path(scratch) / name, folder / name)


def _name_in_order(file: Path) -> None:
    """Give shared weights names by their place: Optimum picks one of two from a set, another in each process."""
    import onnx

    model = onnx.load(file, load_external_data=False)
    names = {tensor.name: f"shared_{number}" for number, tensor in enumerate(model.graph.initializer)}
    for tensor in model.graph.initializer:
        tensor.name = names[tensor.name]
    graphs = [model.graph]
    for graph in graphs:
        for node in graph.node:
            node.input[:] = [names.get(name, name) for name in node.input]
            graphs += [part.g for part in node.attribute if part.type == onnx.AttributeProto.GRAPH]
    onnx.save(model, file)


def dynamic_int8(model: Path, sources: list[Path], folder: Path, suffix: str, target: str) -> None:
    """Write dynamic int8 of fp32 files into `folder`, weights per channel. `model`: the folder with the config."""
    import onnx
    from optimum.onnxruntime import ORTQuantizer
    from optimum.onnxruntime.configuration import AutoQuantizationConfig

    from nlp_distill.exports.onnx_graph import opened

    config = getattr(AutoQuantizationConfig, target)(is_static=False, per_channel=True)
    for file in sources:
        with tempfile.TemporaryDirectory() as scratch, tempfile.TemporaryDirectory() as source, quiet():
            onnx.save(opened(file), Path(source) / file.name)
            quantizer = ORTQuantizer(Path(source) / file.name, config=load_config(model))
            quantizer.quantize(save_dir=scratch, quantization_config=config, file_suffix=suffix.removeprefix("_"))
            for made in Path(scratch).glob("*.onnx*"):
                shutil.copyfile(made, folder / made.name)


@contextmanager
def quiet() -> Iterator[None]:
    """Exporters print and warn about what we check ourselves, by parity on real rows."""
    loggers = [logging.getLogger(name) for name in ("optimum", "onnxruntime", "root", "torch.onnx", "nncf")]
    before = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings(), redirect_stdout(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
