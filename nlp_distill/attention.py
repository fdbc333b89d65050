"""Attention with dropout on a CPU, a few heads at a time, so that their scores stay in the processor's cache.

torch has a kernel that never writes scores [B, heads, T, S] out, but for attention without dropout; with it, training
writes and reads several copies of them, a third of a step of rows of 170 tokens. Here a few heads are carried from
scores to output before the next ones, and the backward makes scores and noise again instead of keeping them
(FlashAttention, Dao et al. 2022, arXiv:2205.14135, by heads instead of tiles).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

AT_ONCE = 1 << 18
"""Scores that are looked at together: 1 MiB of them."""
FROM = 1 << 12
"""Scores of one head from which this is worth its calls: 64 tokens to 64."""


@contextmanager
def attention_by_heads() -> Iterator[None]:
    """Inside, `F.scaled_dot_product_attention` with dropout runs as above on a CPU, in this whole process."""
    torchs = F.scaled_dot_product_attention

    def attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
                  is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False) -> Tensor:  # fmt: skip
        long = query.dim() == 4 and query.shape[-2] * key.shape[-2] >= FROM
        if not (0 < dropout_p < 1 and long and query.device.type == "cpu") or enable_gqa:
            return torchs(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
        if torch.is_autocast_enabled("cpu"):
            query, key, value = (it.to(torch.get_autocast_dtype("cpu")) for it in (query, key, value))
        mask = _added(query, key, attn_mask, is_causal)
        seed = int(torch.empty((), dtype=torch.int64).random_())
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        out: Tensor = _ByHeads.apply(query, key, value, mask, dropout_p, scale, seed)  # type: ignore[no-untyped-call]
        return out

    F.scaled_dot_product_attention = attention
    try:
        yield
    finally:
        F.scaled_dot_product_attention = torchs


def _added(query: Tensor, key: Tensor, mask: Tensor | None, causal: bool) -> Tensor | None:
    """What is added to the scores, as a view [B, heads, T, S] of what was given."""
    if causal:
        mask = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool).tril()
    if mask is None:
        return None
    if mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape).masked_fill_(~mask, torch.finfo(torch.float32).min)
    return mask.detach().expand(*query.shape[:3], key.shape[-2])


class _ByHeads(torch.autograd.Function):
    """softmax(query·keyᵀ·scale + mask), dropped out, times value: [B, heads, T, d] of each."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, p: float, scale: float, seed: int
    ) -> Tensor:
        out = torch.empty_like(query[..., :1]).expand(*query.shape[:3], value.shape[-1]).contiguous()
        with torch.autocast("cpu", enabled=False):
            for number, part in enumerate(_parts(query, key)):
                chances = _chances(query[part], key[part], None if mask is None else mask[part], scale)
                kept = _kept(chances.shape, p, seed, number)
                chances.view(torch.int32).bitwise_and_(kept)
                torch.matmul(chances.to(value.dtype), value[part] / (1 - p), out=out[part])
        ctx.save_for_backward(query, key, value, mask, out)
        ctx.drawn = p, scale, seed
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        query, key, value, mask, out = ctx.saved_tensors
        p, scale, seed = ctx.drawn
        slopes = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
        for number, part in enumerate(_parts(query, key)):
            q, k, v, coming = query[part] * scale, key[part] * scale, value[part], slope[part]
            chances = _chances(query[part], key[part], None if mask is None else mask[part], scale)
            dropped = _kept(chances.shape, p, seed, number).bitwise_and_(chances.view(torch.int32)).view(torch.float32)
            shared = (coming.float() * out[part].float()).sum(-1, keepdim=True)
            coming = coming / (1 - p)
            torch.matmul(dropped.to(v.dtype).transpose(-1, -2), coming, out=slopes[2][part])
            inner = torch.matmul(coming, v.transpose(-1, -2)).float().mul_(dropped).sub_(chances.mul_(shared))
            inner = inner.to(q.dtype)
            torch.matmul(inner, k, out=slopes[0][part])
            torch.matmul(inner.transpose(-1, -2), q, out=slopes[1][part])
        return *slopes, None, None, None, None


def _parts(query: Tensor, key: Tensor) -> Iterator[tuple[slice, slice]]:
    """Whole examples, or some heads of one."""
    examples, heads = query.shape[:2]
    one = query.shape[-2] * key.shape[-2]
    some = max(1, AT_ONCE // one)
    for example in range(0, examples, max(1, some // heads)):
        for head in range(0, heads, min(some, heads)):
            yield slice(example, example + max(1, some // heads)), slice(head, head + min(some, heads))


def _chances(query: Tensor, key: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    scores = torch.matmul(query * scale, key.transpose(-1, -2)).float()
    return torch.softmax(scores if mask is None else scores.add_(mask), -1)


def _kept(shape: torch.Size, p: float, seed: int, part: int) -> Tensor:
    """All bits where a chance is kept, no bit where it is dropped, of probability `p`, to 1 / 2³¹."""
    size = shape.numel()
    drawn = np.random.SFC64([seed, part]).random_raw(-(-size // 2)).view(np.int32)[:size]
    numbers = torch.from_numpy(drawn).view(shape)
    # Halved, so that the difference has room; its sign, over all bits, says whether the number is below.
    return numbers.bitwise_right_shift_(1).sub_(round((0.5 - p) * (1 << 31))).bitwise_right_shift_(31)
