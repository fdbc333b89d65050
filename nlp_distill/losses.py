"""Losses: pure functions of tensors.

Each returns a *sum* over the positions that count, as a float32 scalar; its count is `count(mask, kind)`, so
that terms can be normalised over a whole optimizer step, however it is cut into micro-batches and ranks.
Shapes: B examples, S tokens, H width, C labels, A heads, D width of a head. `mask`: bool, True where a position
counts, [B] or [B, S].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p ‖ q) over the last dimension; −∞ in log_p stands for a probability of 0."""
    p = log_p.exp()
    return torch.where(p > 0, p * (log_p - log_q), 0.0).sum(-1)


def _log_probabilities(student: Tensor, teacher: Tensor, temperature: float, softmax: bool) -> tuple[Tensor, Tensor]:
    """Log-probabilities of both; without `softmax` each label is a distribution of its own: [B, C, 2]."""
    pair = (student.float() / temperature, teacher.float() / temperature)
    if softmax:
        s, t = (F.log_softmax(x, dim=-1) for x in pair)
    else:
        s, t = (torch.stack([F.logsigmoid(-x), F.logsigmoid(x)], dim=-1) for x in pair)
    return s, t


def _masked_rows(rows: Tensor, mask: Tensor) -> Tensor:
    """Sum of rows where the mask is True; rows of several labels are averaged over the labels first."""
    if rows.dim() > mask.dim():
        rows = rows.mean(-1)
    return rows.masked_fill(~mask, 0.0).sum()


class _Squares(torch.autograd.Function):
    """Σ w·d², and its slope 2·w·d from the same product: three passes over what is wide, where autograd takes eight."""

    @staticmethod
    def forward(ctx: Any, differences: Tensor, weights: Tensor) -> Tensor:
        weighted = differences * weights
        ctx.save_for_backward(weighted)
        return torch.dot(differences.flatten(), weighted.flatten())

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, None]:
        (weighted,) = ctx.saved_tensors
        return weighted * (2 * outer[0]), None


def _squares(differences: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum of squares; `weights` are broadcast. Differentiable once, by the differences."""
    total: Tensor = _Squares.apply(differences, weights)  # type: ignore[no-untyped-call]
    return total


def first_tokens(mask: Tensor) -> Tensor:
    """Of a mask [B, S] only the first True of each example: [CLS] of an encoder."""
    return mask & (mask.cumsum(1) == 1)


def at_first(values: Tensor, mask: Tensor) -> Tensor:
    """Of outputs [B, S, H] those at the first True of each example's mask [B, S]: [B, H].

    Outputs [B, 1, H] are these already.
    """
    if values.shape[1] == 1:
        return values[:, 0]
    return values[torch.arange(len(mask), device=mask.device), mask.int().argmax(1)]


IMPOSSIBLE = -1e4
"""Logits below say that there is no such label: where a question stands no answer begins."""
CHUNK = 1 << 20
"""Numbers of a wide distribution that a loss looks at together: 4 MB of float32, and a few copies of them."""
SCORES = 1 << 18
"""Attention scores, or projected numbers, that a loss looks at together: 1 MB of float32, so that the copies stay in a
core's cache."""
ON_GPU = 64
"""Times as many on a GPU, which computes faster than it starts."""
LONG = 3
"""Tokens, for each number of a head's width, from which products of heads' widths are quicker than scores."""


def at_once(numbers: int, device: torch.device) -> int:
    """`CHUNK` or `SCORES` on a device."""
    return numbers if device.type == "cpu" else numbers * ON_GPU


class _InChunks(torch.autograd.Function):
    """A loss of rows, and its gradient, chunk by chunk: of all rows at once only the gradients are ever made."""

    @staticmethod
    def forward(
        ctx: Any, loss: Callable[..., Tensor], size: int, fixed: Iterable[tuple[Any, ...]], cut: int, *tensors: Tensor
    ) -> Tensor:
        """The first `cut` of the tensors are cut into chunks; the others are weights, which all chunks share."""
        ctx.gradients = [torch.empty_like(x) if n < cut else torch.zeros_like(x) for n, x in enumerate(tensors)]
        total = torch.zeros((), dtype=torch.float32, device=tensors[0].device)
        ours, slopes = (
            zip(*(torch.split(x, size) for x in side[:cut]), strict=True) for side in (tensors, ctx.gradients)
        )
        for chunk, parts, given in zip(ours, slopes, fixed, strict=True):
            with torch.enable_grad():
                leaves = [values.detach().requires_grad_() for values in (*chunk, *tensors[cut:])]
                value = loss(*leaves, *given)
            found = torch.autograd.grad(value, leaves)
            for part, gradient in zip(parts, found[:cut], strict=True):
                part.copy_(gradient)
            for sums, gradient in zip(ctx.gradients[cut:], found[cut:], strict=True):
                sums += gradient
            total += value.detach()
        return total

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Any, ...]:
        return None, None, None, None, *(gradient.mul_(outer[0]) for gradient in ctx.gradients)


def in_chunks(
    loss: Callable[[Tensor, Any, Tensor], Tensor],
    student: Tensor,
    pieces: Callable[[int], Iterable[Any]],
    mask: Tensor,
) -> Tensor:
    """`loss(student, teacher, mask)` of logits [B, T, V] or [N, V], never with several copies of them.

    Differentiable once. `pieces(size)`: the teacher's rows [N, …], `size` at a time.
    """
    size = max(1, at_once(CHUNK, student.device) // student.shape[-1])
    chunks = zip(pieces(size), torch.split(mask.flatten(), size), strict=True)
    total: Tensor = _InChunks.apply(loss, size, chunks, 1, student.flatten(0, -2))  # type: ignore[no-untyped-call]
    return total


def by_examples(loss: Callable[..., Tensor], student: Sequence[Tensor], fixed: Sequence[Tensor], scores: int) -> Tensor:
    """`loss(*student, *fixed)` of tensors [B, …], a few examples at a time where all have too many scores.

    `scores`: of one example, a number of attention scores. Differentiable once, by `student` alone.
    """
    size = max(1, at_once(SCORES, student[0].device) // scores)
    if size >= len(student[0]):
        return loss(*student, *fixed)
    chunks = zip(*(torch.split(values, size) for values in fixed), strict=True)
    total: Tensor = _InChunks.apply(loss, size, chunks, len(student), *student)  # type: ignore[no-untyped-call]
    return total


def projected(
    loss: Callable[[Tensor, Tensor, Tensor], Tensor], student: Tensor, weight: Tensor, teacher: Tensor, mask: Tensor
) -> Tensor:
    """`loss` of outputs [..., H] that `weight` [H', H] maps to a teacher's [..., H'], in float32.

    A few tokens at a time where there are many: what they are mapped to is never all there. Differentiable once then.
    """

    def distance(ours: Tensor, weight: Tensor, theirs: Tensor, counted: Tensor) -> Tensor:
        return loss(F.linear(ours.float(), weight), theirs, counted)

    ours, theirs, counted = student.flatten(0, -2), teacher.flatten(0, -2), mask.flatten()
    size = max(1, at_once(SCORES, weight.device) // len(weight))
    if size >= len(ours):
        return distance(ours, weight, theirs, counted)
    chunks = zip(torch.split(theirs, size), torch.split(counted, size), strict=True)
    total: Tensor = _InChunks.apply(distance, size, chunks, 1, ours, weight)  # type: ignore[no-untyped-call]
    return total


def logits_kl(student: Tensor, teacher: Tensor, mask: Tensor, *, temperature: float, softmax: bool) -> Tensor:
    """T²·KL(teacher ‖ student) of softened logits [..., C]: Hinton et al. 2015, arXiv:1503.02531."""
    s, t = _log_probabilities(student, teacher, temperature, softmax)
    return _masked_rows(_kl(t, s), mask) * temperature**2


def logits_reverse_kl(student: Tensor, teacher: Tensor, mask: Tensor, *, temperature: float, softmax: bool) -> Tensor:
    """T²·KL(student ‖ teacher) of softened logits [..., C]: MiniLLM, Gu et al. 2023, arXiv:2306.08543."""
    s, t = _log_probabilities(student, teacher, temperature, softmax)
    return _masked_rows(_kl(s, t), mask) * temperature**2


def logits_jsd(student: Tensor, teacher: Tensor, mask: Tensor, *, temperature: float, softmax: bool) -> Tensor:
    """T²·Jensen–Shannon divergence of softened logits [..., C]: as in GKD, Agarwal et al. 2023, arXiv:2306.13649."""
    s, t = _log_probabilities(student, teacher, temperature, softmax)
    middle = torch.logaddexp(s, t) - math.log(2)
    return _masked_rows((_kl(t, middle) + _kl(s, middle)) / 2, mask) * temperature**2


def logits_mse(student: Tensor, teacher: Tensor, mask: Tensor, *, temperature: float, softmax: bool) -> Tensor:
    """Mean over labels of the squared difference of logits [..., C]: Ba & Caruana 2014, arXiv:1312.6184.

    Labels whose logit of the teacher is below `IMPOSSIBLE` do not count.
    """
    possible = teacher > IMPOSSIBLE
    squares = (student.float() - teacher.float()).square().masked_fill(~possible, 0.0)
    return _masked_rows(squares.sum(-1) / possible.sum(-1).clamp(min=1), mask)


def hidden_mse(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Mean over H of the squared difference of outputs [B, S, H]: FitNets, TinyBERT (arXiv:1909.10351)."""
    return _squares(student.float() - teacher.float(), mask[..., None] / student.shape[-1])


def hidden_cosine(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """1 − cosine of each token's outputs [B, S, H]: DistilBERT, Sanh et al. 2019, arXiv:1910.01108."""
    return _masked_rows(1 - F.cosine_similarity(student.float(), teacher.float(), dim=-1), mask)


def hidden_gram(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Squared difference of the tokens' cosine similarities, per example: widths [B, S, H] may differ.

    Similarity-preserving distillation, Tung & Mori 2019, arXiv:1907.09682, within an example. Each token's row
    is averaged over the tokens that count, so that the sum counts tokens as the other hidden losses do.
    """
    s, t = (F.normalize(x.float(), dim=-1) for x in (student, teacher))
    difference = (s @ s.transpose(1, 2) - t @ t.transpose(1, 2)).square()
    pairs = mask[:, None, :] & mask[:, :, None]
    lengths = mask.sum(-1).clamp(min=1)
    return (difference.masked_fill(~pairs, 0.0).sum((1, 2)) / lengths).sum()


def attention_scores(query: Tensor, key: Tensor, heads: int, scaled: bool = True, bias: Tensor | None = None) -> Tensor:
    """Scores QKᵀ/√D before any mask [B, A, Q, K], from projections [B, Q or K, A·D], in float32.

    `scaled` false leaves 1/√D out (T5); `bias` [Q, K, A] is added (T5, MPNet).
    """
    q, k = (x.float().view(*x.shape[:2], heads, -1).transpose(1, 2) for x in (query, key))
    if scaled:
        q = q / math.sqrt(q.shape[-1])
    scores = torch.matmul(q, k.transpose(2, 3))
    return scores if bias is None else scores + bias.float().permute(2, 0, 1)


def attention_mse(student: Tensor, teacher: Tensor, pairs: Tensor) -> Tensor:
    """Squared difference of scores [B, A, Q, K] before the softmax, mean over heads and keys: TinyBERT.

    `pairs` [B, Q, K]: which key counts for which query; a query without keys does not count.
    """
    keys = pairs.sum(-1, keepdim=True).clamp(min=1)
    return _squares(student - teacher, (pairs / (keys * student.shape[1]))[:, None])


class _ByWidth(torch.autograd.Function):
    """Σ w·(QKᵀ − PLᵀ)² of an example's heads [B, A, Q or K, D], without a score.

    QKᵀ − PLᵀ = (Q − P)Kᵀ + P(K − L)ᵀ; of that the sum of squares, and its slopes, are made of products [D, D] of its
    four parts. Of the differences, so that nothing cancels where both are alike.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, their_query: Tensor, their_key: Tensor, w: Tensor) -> Tensor:
        dq, dk = query - their_query, key - their_key
        qq, qp, pp = (a.transpose(2, 3) @ b for a, b in ((dq, dq), (dq, their_query), (their_query, their_query)))
        kk, kd, dd = (a.transpose(2, 3) @ b for a, b in ((key, key), (key, dk), (dk, dk)))
        ctx.save_for_backward(key, their_query, dq, dk, kk, kd, qq + qp, qp.transpose(2, 3) + pp, w)
        return torch.dot((qq * kk + 2 * qp * kd + pp * dd).sum((1, 2, 3)), w)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        key, their_query, dq, dk, kk, kd, from_key, from_dk, w = ctx.saved_tensors
        slope = (2 * outer[0] * w)[:, None, None, None]
        ours = dq @ (kk * slope) + their_query @ (kd.transpose(2, 3) * slope)
        return ours, key @ (from_key * slope) + dk @ (from_dk * slope), None, None, None


def by_width_is_quicker(query: Tensor, key: Tensor, heads: int) -> bool:
    """Whether projections [B, Q or K, A·D] are long enough for `attention_mse_by_width`."""
    queries, keys, width = query.shape[1], key.shape[1], query.shape[-1] // heads
    return 2 * queries * keys >= LONG * width * (queries + keys)


def attention_mse_by_width(
    query: Tensor, key: Tensor, their_query: Tensor, their_key: Tensor, queries: Tensor, keys: Tensor,
    *, heads: int, scaled: bool,
) -> Tensor:  # fmt: skip
    """`attention_mse` from projections [B, Q or K, A·D], in time and memory linear in Q and K.

    Where every query of an example that counts (`queries` [B, Q]) reads the same `keys` [B, K], and both sides have
    heads of the same width. Differentiable once, by `query` and `key`.
    """
    masks = (queries, keys, queries, keys)
    parts = [
        (x.float() * mask[..., None]).view(*x.shape[:2], heads, -1).transpose(1, 2)
        for x, mask in zip((query, key, their_query, their_key), masks, strict=True)
    ]
    divided = keys.sum(-1).clamp(min=1) * (heads * (parts[0].shape[-1] if scaled else 1))
    total: Tensor = _ByWidth.apply(*parts, 1 / divided)  # type: ignore[no-untyped-call]
    return total


def attention_kl(student: Tensor, teacher: Tensor, pairs: Tensor) -> Tensor:
    """KL(teacher ‖ student) of the attention each query pays, mean over heads, from scores [B, A, Q, K].

    The attention-transfer term of MiniLM, Wang et al. 2020, arXiv:2002.10957. `pairs` as in `attention_mse`.
    """
    no_key = ~pairs[:, None]
    s, t = (F.log_softmax(x.masked_fill(no_key, torch.finfo(x.dtype).min), dim=-1) for x in (student, teacher))
    return _masked_rows(_kl(t, s).mean(1), pairs.any(-1))


def relation_kl(student: Tensor, teacher: Tensor, pairs: Tensor, *, heads: int) -> Tensor:
    """KL of self-relations of queries, keys or values [B, S, H] cut into relation heads; widths may differ.

    MiniLMv2, Wang et al. 2021, arXiv:2012.15828 (values alone: MiniLM). `pairs` as in `attention_mse`.
    """
    return attention_kl(attention_scores(student, student, heads), attention_scores(teacher, teacher, heads), pairs)


LOSSES: dict[str, dict[str, Callable[..., Tensor]]] = {
    "logits": {"kl": logits_kl, "reverse_kl": logits_reverse_kl, "jsd": logits_jsd, "mse": logits_mse},
    "labels": {},
    "hidden": {"mse": hidden_mse, "cosine": hidden_cosine, "gram": hidden_gram},
    "attention": {"mse": attention_mse, "kl": attention_kl},
    "relation": {"kl": relation_kl},
}
"""Term kind → distance → function; `labels` is the task's own loss."""
