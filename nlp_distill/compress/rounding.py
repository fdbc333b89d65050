"""Quantization-aware training: a model that rounds as its export will, with gradients as if it did not.

Jacob et al. 2018; gradients go straight through the rounding (Bengio et al. 2013).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize

BLOCK = 64
"""Weights of a row that share a scale at 4 bits, as in the export."""
LEAST = 1 << 10
"""Weights that a layer must have; the export leaves smaller ones as they are."""


def rounded(x: Tensor, low: Tensor, high: Tensor, levels: int) -> Tensor:
    """`x` on `levels` equal steps from `low` to `high`, which broadcast against it; the gradient is that of `x`."""
    scale = ((high - low) / (levels - 1)).clamp_min(1e-8)
    zero = (-low / scale).round()
    steps = ((x / scale).round() + zero).clamp(0, levels - 1)
    # In this order the value is exactly that of a step.
    return ((steps - zero) * scale).detach() + (x - x.detach())


class RoundedWeight(nn.Module):
    """A weight [out, in] in int8 with a scale for each output, or in 4 bits with one for each block of inputs."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = bits

    def forward(self, weight: Tensor) -> Tensor:
        """The rounded weight."""
        if self.bits == 8:
            most = weight.detach().abs().amax(1, keepdim=True)
            # 255 levels: symmetric, without −128.
            return rounded(weight, -most, most, 255)
        width = weight.shape[1]
        blocks = nn.functional.pad(weight, (0, -width % BLOCK)).view(len(weight), -1, BLOCK)
        low, high = blocks.detach().amin(-1, keepdim=True).clamp_max(0), blocks.detach().amax(-1, keepdim=True)
        return rounded(blocks, low, high.clamp_min(0), 16).view(len(weight), -1)[:, :width]


def _round_input(_layer: nn.Module, given: tuple[Any, ...], by_row: bool) -> tuple[Any, ...]:
    x = given[0]
    seen = x.detach()
    if by_row:
        most = seen.abs().amax(-1, keepdim=True)
        return rounded(x, -most, most, 255), *given[1:]
    return rounded(x, seen.amin().clamp_max(0), seen.amax().clamp_min(0), 256), *given[1:]


@contextmanager
def rounding(model: nn.Module, bits: int) -> Iterator[None]:
    """Within the block every large linear layer rounds weights to `bits` (8 or 4) and what it is given to int8.

    Static int8 has one scale for all activations of a layer, here the batch's; 4-bit products have one a row.
    """
    layers = [part for part in model.modules() if isinstance(part, nn.Linear) and part.weight.numel() >= LEAST]
    handles = [layer.register_forward_pre_hook(partial(_round_input, by_row=bits == 4)) for layer in layers]
    for layer in layers:
        parametrize.register_parametrization(layer, "weight", RoundedWeight(bits))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for layer in layers:
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)
