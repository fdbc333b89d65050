"""An ExecuTorch program as a model that pipelines call."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PretrainedConfig
from transformers.utils import ModelOutput

from nlp_distill.errors import InputInvalid, ModelNotFound
from nlp_distill.exports.executorch_files import quiet

NEVER = -1e5
"""Output of a token that is padding."""


class ProgramModel(nn.Module):
    """A `.pte` file: each row runs alone, at its own length, so an answer depends on nothing else in the batch.

    Raises `ModelNotFound` for a file that is no program of ours.
    """

    def __init__(self, file: Path, config: PretrainedConfig, threads: int | None = None) -> None:
        super().__init__()
        self.config, self.path = config, file
        self.device = torch.device("cpu")
        with _silence():
            from executorch.extension.pybindings.portable_lib import _unsafe_reset_threadpool
            from executorch.runtime import Runtime

            if threads is not None:
                _unsafe_reset_threadpool(threads)
            try:
                self.program = Runtime.get().load_program(file.read_bytes())
                self._run = self.program.load_method("forward")
                said = {name: self._says(name) for name in ("max_length", "inputs", "outputs")}
            except (OSError, RuntimeError, ValueError, TypeError) as error:
                raise ModelNotFound(
                    reference=file, reason="it is no program that ExecuTorch reads", fix="Export it anew."
                ) from error
        self.max_length: int = said["max_length"]
        self.input_names: list[str] = said["inputs"].split(",")
        self.output_names: list[str] = said["outputs"].split(",")

    def _says(self, name: str) -> Any:
        return self.program.load_method(name).execute(())[0]

    def can_generate(self) -> bool:
        """Pipelines ask; a program only reads."""
        return False

    def forward(self, attention_mask: Tensor | None = None, **inputs: Tensor) -> ModelOutput:
        """Outputs of each row, padded to the longest. `inputs`: [rows, tokens] by name."""
        ids = inputs["input_ids"]
        there = torch.ones_like(ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
        if int(there.sum(1).max()) > self.max_length:
            raise InputInvalid(
                what="The input",
                reason=f"it has {int(there.sum(1).max())} tokens",
                fix=f"cut it to the {self.max_length} that the program reads",
            )
        rows = []
        for number, kept in enumerate(there):
            given = [
                inputs[name][number][kept] if name in inputs else torch.zeros_like(ids[number][kept])
                for name in self.input_names
            ]
            rows.append(
                [output.squeeze(0).clone() for output in self._run.execute([row.unsqueeze(0) for row in given])]
            )
        padded = [pad_sequence(list(part), batch_first=True, padding_value=NEVER) for part in zip(*rows, strict=True)]
        outputs = ModelOutput()
        for name, part in zip(self.output_names, padded, strict=True):
            outputs[name] = part
        return outputs


@contextmanager
def _silence() -> Iterator[None]:
    """ExecuTorch's core writes about the processor to the standard error stream, past Python."""
    kept = os.dup(2)
    with open(os.devnull, "wb") as nowhere, quiet():
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
