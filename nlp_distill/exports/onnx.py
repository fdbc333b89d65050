"""ONNX through Optimum: fp32 beside dynamic int8, in the layout that Optimum and transformers.js both load."""

from __future__ import annotations

import logging
import platform
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

from nlp_distill.errors import MissingExtra, NotExportable
from nlp_distill.loading import load_config
from nlp_distill.recipe import Export
from nlp_distill.sources import Source

FP32, INT8 = "model.onnx", "model_quantized.onnx"


def check_exportable(source: Source, pipeline_task: str, settings: Export) -> None:
    """Refuse before training what could not be exported after. Raises `MissingExtra`, `NotExportable`."""
    try:
        import onnxruntime  # noqa: F401
        from optimum.exporters.tasks import TasksManager
    except ImportError as error:
        raise MissingExtra(what="Export to ONNX", extra="onnx") from error
    import optimum.exporters.onnx.model_configs  # noqa: F401  registers what can be exported

    model_type = load_config(source.folder).model_type
    try:
        tasks = TasksManager.get_supported_tasks_for_model_type(model_type, "onnx", library_name="transformers")
    except KeyError as error:
        raise NotExportable(
            model_type=model_type, task=pipeline_task, format="ONNX", reason="the type is unknown to Optimum"
        ) from error
    if pipeline_task not in tasks:
        raise NotExportable(
            model_type=model_type,
            task=pipeline_task,
            format="ONNX",
            reason=f"Optimum exports {', '.join(tasks)}",
        )


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


def export_fp32(model: Path, pipeline_task: str, folder: Path) -> None:
    """Write `model.onnx` of a model folder into `folder`."""
    from optimum.exporters.onnx import main_export

    with tempfile.TemporaryDirectory() as scratch, _quiet():
        main_export(str(model), output=scratch, task=pipeline_task, do_validation=False, local_files_only=True)
        for file in Path(scratch).glob("model.onnx*"):
            (folder / file.name).write_bytes(file.read_bytes())


def quantize_int8(model: Path, folder: Path, settings: Export) -> dict[str, Any]:
    """Write `model_quantized.onnx` beside `folder/model.onnx`: dynamic int8, weights per channel; its settings.

    `model`: the folder with the config.
    """
    from optimum.onnxruntime import ORTQuantizer
    from optimum.onnxruntime.configuration import AutoQuantizationConfig

    target = instruction_set(settings)
    config = getattr(AutoQuantizationConfig, target)(is_static=False, per_channel=True)
    with tempfile.TemporaryDirectory() as scratch, _quiet():
        quantizer = ORTQuantizer(folder / FP32, config=load_config(model))
        quantizer.quantize(save_dir=scratch, quantization_config=config, file_suffix="quantized")
        (folder / INT8).write_bytes((Path(scratch) / INT8).read_bytes())
    return {"quantization": "dynamic int8, weights per channel", "target": target}


@contextmanager
def _quiet() -> Iterator[None]:
    """Exporters print and warn about what we check ourselves, by parity on real rows."""
    loggers = [logging.getLogger(name) for name in ("optimum", "onnxruntime", "root", "torch.onnx")]
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
