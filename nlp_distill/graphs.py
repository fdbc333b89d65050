"""A student's forward and backward as compiled graphs (torch.compile; Ansel et al. 2024): fewer, larger kernels.

For GPUs, where starting a small model's many kernels takes longer than running them. Kernels are chosen by the first
shapes seen, so a resumed run may round otherwise: not under `determinism: strict`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel

from nlp_distill.errors import CompilerMissing, NotCompiled
from nlp_distill.signals import Request, Signal, listening

Forward = Callable[[dict[str, Any]], tuple[Any, Signal]]
"""Inputs of a model → its outputs, and the signals that were asked for."""


@contextmanager
def compiled(model: PreTrainedModel, request: Request) -> Iterator[Forward]:
    """The model's forward with its signals as one graph for all lengths, within the block.

    Its hooks stay on the model meanwhile, as the graph holds what they do, and hear nothing of other forwards. Raises
    `NotCompiled` at the first forward of a model that the compiler cannot translate.
    """
    from torch._dynamo import reset
    from torch._dynamo.exc import TorchDynamoException

    with listening(model, request) as heard:
        heard.listen = False

        def speak(inputs: dict[str, Any]) -> tuple[Any, Any]:
            heard.listen = True
            outputs = model(**inputs)
            heard.listen = False
            return outputs, heard.take()

        graph = torch.compile(speak, dynamic=True)

        def forward(inputs: dict[str, Any]) -> tuple[Any, Signal]:
            try:
                outputs, taken = graph(inputs)
            except TorchDynamoException as error:
                reason = str(error).strip().splitlines()[0]
                raise NotCompiled(model_type=model.config.model_type, reason=reason) from error
            return outputs, heard.signal(taken, Signal())

        try:
            yield forward
        finally:
            # Graphs are kept by the function's code: the next training would count its own on top of these.
            reset()


def check_compiler(device: torch.device) -> None:
    """Compile a sum. Raises `CompilerMissing` where nothing can be compiled for the device."""
    try:
        torch.compile(lambda x: x + 1)(torch.zeros(2, device=device))
    except RuntimeError as error:
        raise CompilerMissing(device=device.type, reason=str(error).strip().splitlines()[0]) from error
