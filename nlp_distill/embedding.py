"""An embedding's gradient on a CPU, added to what is there, without a table of zeros for every micro-batch.

torch's backward of a lookup makes a gradient as large as the whole table, 47 MB for BERT's words at width 384, and adds
it to the last micro-batch's: as much time as fifty tokens of a three-layer student, for the few rows that were read.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


@contextmanager
def embeddings_in_place() -> Iterator[None]:
    """Inside, `F.embedding` on a CPU adds its gradient to `weight.grad` itself, in this whole process.

    Not for data-parallel training, which waits for gradients to come through autograd.
    """
    torchs = F.embedding

    def embedding(
        input: Tensor, weight: Tensor, padding_idx: int | None = None, max_norm: float | None = None,
        norm_type: float = 2.0, scale_grad_by_freq: bool = False, sparse: bool = False,
    ) -> Tensor:  # fmt: skip
        learns = torch.is_grad_enabled() and weight.requires_grad and weight.is_leaf and weight.device.type == "cpu"
        heard = weight._backward_hooks or getattr(weight, "_post_accumulate_grad_hooks", None)
        if not learns or heard or max_norm is not None or scale_grad_by_freq or sparse:
            return torchs(input, weight, padding_idx, max_norm, norm_type, scale_grad_by_freq, sparse)
        padding = None if padding_idx is None else padding_idx % len(weight)
        looked: Tensor = _Lookup.apply(weight, input, padding)  # type: ignore[no-untyped-call]
        return looked

    F.embedding = embedding
    try:
        yield
    finally:
        F.embedding = torchs


class _Lookup(torch.autograd.Function):
    """Rows of a table [V, H] by number [...]: [..., H]."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, numbers: Tensor, padding: int | None) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(numbers)
        ctx.weight, ctx.padding = weight, padding
        return torch.embedding(weight.detach(), numbers)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[None, None, None]:  # type: ignore[override]
        numbers, slope = ctx.saved_tensors[0].reshape(-1), slope.reshape(-1, slope.shape[-1])
        if ctx.padding is not None:
            read = numbers != ctx.padding
            numbers, slope = numbers[read], slope[read]
        if ctx.weight.grad is None:
            ctx.weight.grad = torch.zeros_like(ctx.weight)
        ctx.weight.grad.index_add_(0, numbers, slope.to(ctx.weight.dtype))
        return None, None, None
