"""ONNX Runtime's own format (`.ort`), for its mobile builds: a graph that is optimised already, and its operators."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nlp_distill.errors import RunFailed
from nlp_distill.exports.format import Attempt, Form, Work
from nlp_distill.exports.onnx import Onnx
from nlp_distill.loading import load_ort_file
from nlp_distill.recipe import Export

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from nlp_distill.task import Task

OPERATORS = ".required_operators_and_types.config"
"""Ending of the list from which ONNX Runtime is built with nothing else in it."""


class Ort(Onnx):
    """One graph for phones, with the list of its operators beside it."""

    name = "ort"
    title = "ONNX Runtime's .ort"
    folder = "mobile"
    runtime = "onnxruntime-mobile"
    forms = (
        Form("ort", "mobile", "student-ort-int8", "int8", "_quantized", batch=1),
        Form("ort", "exact", "student-ort-fp32", "fp32"),
    )
    source = None

    def check(self, config: PretrainedConfig, task: Task, settings: Export) -> None:
        """What ONNX refuses, and models of more than one graph."""
        super().check(config, task, settings)
        if config.is_encoder_decoder:
            raise self.refuse(config, task, "it is two graphs, an encoder and a decoder")

    def attempts(self, work: Work, form: Form, settings: Export) -> Iterator[Attempt]:
        """A conversion of ONNX files made for it; int8 is for arm64 unless another target is asked for."""
        from nlp_distill.exports.onnx_files import dynamic_int8, export_fp32

        target = "arm64" if settings.target == "auto" else settings.target

        def write(folder: Path) -> None:
            with tempfile.TemporaryDirectory() as scratch:
                graphs = Path(scratch)
                export_fp32(work.model, work.task.pipeline_task, graphs)
                if not form.exact:
                    dynamic_int8(work.model, [graphs / "model.onnx"], graphs, form.suffix, target)
                convert(graphs / f"model{form.suffix}.onnx", folder)

        says = {} if form.exact else {"quantization": "dynamic int8, weights per channel", "target": target}
        yield Attempt(says, write)

    def files(self, model: Path, form: Form) -> list[Path]:
        """The graph, and the list of its operators."""
        names = (f"model{form.suffix}.ort", f"model{form.suffix}{OPERATORS}")
        return [model / self.folder / name for name in names if (model / self.folder / name).is_file()]

    def settings(self, model: Path, form: Form) -> dict[str, Any]:
        """The file, as an `InferenceSession` opens it."""
        return {"file_name": f"{self.folder}/model{form.suffix}.ort", "provider": "CPUExecutionProvider"}

    def load(self, model: Path, auto_class: str, form: Form, threads: int | None = None) -> Any:
        """An Optimum ORTModelFor…."""
        return load_ort_file(model, auto_class, f"{self.folder}/model{form.suffix}.ort", threads)


def convert(graph: Path, folder: Path) -> None:
    """Write `NAME.ort` of a `NAME.onnx` into `folder`, and the operators and types that it needs.

    Optimised as far as any processor allows: what only this machine's could use is left out. Raises `RunFailed`.
    """
    # A process of its own: the converter prints, and sets up the logging of the process that it is in.
    command = [sys.executable, "-m", "onnxruntime.tools.convert_onnx_models_to_ort", str(graph)]
    options = ["--optimization_style", "Fixed", "--target_platform", "arm", "--enable_type_reduction"]
    with tempfile.TemporaryDirectory() as scratch:
        done = subprocess.run([*command, *options, "--output_dir", scratch], capture_output=True, text=True)
        if done.returncode:
            raise RunFailed(stage="export", reason=f"{graph.name} was not converted ({done.stderr.strip()[-300:]})")
        made, operators = Path(scratch) / f"{graph.stem}.ort", Path(scratch) / f"{graph.stem}{OPERATORS}"
        shutil.copyfile(made, folder / made.name)
        lines = operators.read_text(encoding="utf-8").splitlines(keepends=True)
        # Without its comments: they say where the scratch folder was.
        listed = "".join(line for line in lines if not line.startswith("#"))
        (folder / operators.name).write_text(listed, encoding="utf-8")
