"""Which arithmetic the matrix products use, found by a short probe on this machine, and whether bits repeat."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from nlp_distill.signals import model_inputs
from nlp_distill.task import Batch

ROUNDS, LEAST, SECONDS = 6, 2, 2.0
"""How often the probe times both; not again after so many seconds, once it has done so the least number of times."""
PROBED = 512
"""Tokens of the probe's batch on a CPU: enough to fill its matrix products."""
WORTH_IT = 1.1
"""bf16 must be this many times faster: below, its rounding buys nothing."""


def autocast_dtype(precision: str) -> torch.dtype | None:
    """The autocast type of a resolved precision, `fp32` or `bf16`."""
    return torch.bfloat16 if precision == "bf16" else None


@contextmanager
def deterministic(strict: bool) -> Iterator[None]:
    """Inside the block torch gives the same bits for the same work, or fails, where `strict`; then as before."""
    before = torch.are_deterministic_algorithms_enabled()
    memory: Any = torch.utils.deterministic  # its setting is a property of the module, which type checkers miss
    filled = memory.fill_uninitialized_memory
    if strict:
        # Without it cuBLAS sums in any order.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(strict)
    # Writing into every new tensor finds those who read before they write; it costs a fifth of a short step on a CPU.
    memory.fill_uninitialized_memory = False
    try:
        yield
    finally:
        memory.fill_uninitialized_memory = filled
        torch.use_deterministic_algorithms(before)


def probe(model: PreTrainedModel, batch: Batch) -> dict[str, float | str]:
    """Time forward and backward in fp32 and bf16, interleaved; the model's gradients are cleared after.

    Returns `precision` and the ratio of the fastest rounds, `speedup` (above 1: bf16 is faster). The fastest, since
    on a busy machine even a median once hid a factor of two.
    """
    device = batch["input_ids"].device
    times: dict[str, list[float]] = {"fp32": [], "bf16": []}
    begun = time.perf_counter()
    with torch.random.fork_rng():
        for round_number in range(ROUNDS + 1):
            if round_number > LEAST and time.perf_counter() - begun > SECONDS:
                break
            for name in times:
                start = time.perf_counter()
                with torch.autocast(device.type, torch.bfloat16, enabled=name == "bf16"):
                    outputs = model(**model_inputs(batch))
                outputs[0].float().square().sum().backward()
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                if round_number:
                    times[name].append(time.perf_counter() - start)
                _clear(model)
    speedup = min(times["fp32"]) / min(times["bf16"])
    return {"precision": "bf16" if speedup >= WORTH_IT else "fp32", "speedup": round(speedup, 2)}


def _clear(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.grad = None
