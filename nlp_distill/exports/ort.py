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

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from nlp_distill.recipe import Export
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
        Form("ort", "mobile", "student-ort-int8", "int8", "_quantized"),
        Form("ort", "exact", "student-ort-fp32", "fp32"),
    )
    source = None

    def check(self, config: PretrainedConfig, task: Task, settings: Export) -> None:
        """Models of more than one graph are refused, and what ONNX refuses."""
        if config.is_encoder_decoder:
            raise self.refuse(config, task, "it is two graphs, an encoder and a decoder")
        super().check(config, task, settings)

    def attempts(self, work: Work, form: Form, settings: Export) -> Iterator[Attempt]:
        """Conversions of what ONNX would make for the same profile, from fp32 files made for it."""
        from nlp_distill.exports.onnx_ladder import rungs

        onnx = Onnx()
        twin = onnx.form(form.profile)
        with tempfile.TemporaryDirectory() as scratch:
            exact = next(onnx.attempts(work, onnx.form("exact"), settings))
            exact.write(Path(scratch))
            graphs = [Path(scratch) / "model.onnx"]
            for attempt in [exact] if form.exact else rungs(work, twin, graphs):

                def write(folder: Path, attempt: Attempt = attempt) -> None:
                    with tempfile.TemporaryDirectory() as made:
                        attempt.write(Path(made))
                        graph = Path(made) / f"model{twin.suffix}.onnx"
                        convert(graph.rename(Path(made) / f"model{form.suffix}.onnx"), folder)

                yield Attempt(attempt.says, write)

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
