"""The weighted sum of terms: it owns the projections and says which signals it needs.

Each term is normalised over the whole optimizer step: the sums of all micro-batches and ranks are divided by
the step's counts, which depend on masks alone and are known before the first forward.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from nlp_distill.batches import derived_seed
from nlp_distill.errors import SignalMissing
from nlp_distill.families import Place, Stack, family_of
from nlp_distill.losses import (
    CHUNK,
    LOSSES,
    at_first,
    at_once,
    attention_mse_by_width,
    attention_scores,
    by_examples,
    by_width_is_quicker,
    first_tokens,
    in_chunks,
    projected,
)
from nlp_distill.signals import Request, Signal, TopLogits, check_request
from nlp_distill.task import Batch, Task
from nlp_distill.terms import AnyTerm, AttentionTerm, HiddenTerm, LabelsTerm, LayerTerm, LogitsTerm, RelationTerm


@dataclass(frozen=True)
class Bound:
    """A term of one stack (a term about layers of two stacks is two of these, with half the weight each).

    `pairs`: student layer and the teacher layer that it imitates.
    """

    term: AnyTerm
    weight: float
    ours: Stack
    theirs: Stack | None = None
    pairs: tuple[tuple[int, int], ...] = ()


class Objective(nn.Module):
    """Terms of a recipe, bound to a student and a teacher.

    `supervise[stack][i]` is the teacher layer that the student's layer i of that stack imitates. Raises
    `SignalMissing` for a term that the pair cannot give, before any training.
    """

    def __init__(
        self,
        terms: Sequence[AnyTerm],
        task: Task,
        student: PretrainedConfig,
        teacher: PretrainedConfig | None = None,
        supervise: Mapping[str, Sequence[int]] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.task, self.student_config, self.teacher_config = task, student, teacher
        self.terms: dict[str, Bound] = {}
        for name, term in zip(_names(terms), terms, strict=True):
            if teacher is None and not isinstance(term, LabelsTerm):
                raise SignalMissing(term=name, reason="there is no teacher here", fix="use a `labels` term")
            self.terms.update(self._bound(name, term, supervise or {}))
        self.words = None if teacher is None else getattr(getattr(teacher, "decoder", teacher), "vocab_size", None)
        """Rows of the teacher's table of words: a student's may have more, which stand for no token."""
        for name, bound in self.terms.items():
            self._check(name, bound)
        check_request(student, self.student_request, "student")
        if teacher is not None:
            check_request(teacher, self.teacher_request, "teacher")
        self.projections = self._projections(seed)

    @property
    def teacher_request(self) -> Request:
        """The signals that one teacher forward must give; false when no term needs a teacher."""
        return self._request(side=1)

    @property
    def student_request(self) -> Request:
        """The signals that one student forward must give, besides its outputs."""
        return self._request(side=0)

    @property
    def temperatures(self) -> list[float]:
        """Temperatures at which logits are compared."""
        return sorted({bound.term.temperature for bound in self.terms.values() if isinstance(bound.term, LogitsTerm)})

    def mask(self, bound: Bound, batch: Batch) -> Tensor:
        """Which positions of a term count in a batch."""
        mask = self.task.term_mask(batch, bound.term.kind, bound.ours.name)
        if isinstance(bound.term, HiddenTerm) and bound.term.tokens == "first":
            real = mask if bound.ours.name == "decoder" else batch["attention_mask"].bool()
            return mask & first_tokens(real)
        return mask

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Positions of each term that count in a batch."""
        return {name: self.mask(bound, batch).sum().long() for name, bound in self.terms.items()}

    def sums(self, outputs: Any, student: Signal, teacher: Signal, batch: Batch) -> dict[str, Tensor]:
        """Sum of each term over a batch's positions, layers averaged; float32 scalars."""
        return {name: self._sum(name, bound, outputs, student, teacher, batch) for name, bound in self.terms.items()}

    def total(self, sums: Mapping[str, Tensor], counts: Mapping[str, float]) -> Tensor:
        """The part of the step's loss that a micro-batch's sums make up."""
        parts = [sums[name] * (bound.weight / max(counts[name], 1.0)) for name, bound in self.terms.items()]
        return torch.stack(parts).sum()

    def _sum(self, name: str, bound: Bound, outputs: Any, student: Signal, teacher: Signal, batch: Batch) -> Tensor:
        term = bound.term
        if isinstance(term, LabelsTerm):
            return self.task.label_loss(outputs, batch)
        mask = self.mask(bound, batch)
        if isinstance(term, LogitsTerm):
            form = self.task.distribution
            loss = LOSSES["logits"]["mse" if form == "value" else term.distance]
            ours, softmax = self.task.logits(outputs, batch), form == "softmax"

            def distance(logits: Tensor, theirs: Tensor | TopLogits, counted: Tensor) -> Tensor:
                if isinstance(theirs, TopLogits):
                    logits, theirs = theirs.against(logits[..., : self.words], term.temperature)
                elif theirs.shape[-1] < logits.shape[-1]:
                    logits = logits[..., : theirs.shape[-1]]
                return loss(logits, theirs, counted, temperature=term.temperature, softmax=softmax)

            return torch.stack([_wide(distance, ours[head], teacher.logits[head], mask) for head in ours]).mean()
        assert bound.theirs is not None
        places = [((bound.ours.name, s), (bound.theirs.name, t)) for s, t in bound.pairs]
        if isinstance(term, HiddenTerm):
            loss = LOSSES["hidden"][term.distance]
            read = [(s, student.hidden[s], teacher.hidden[t]) for s, t in places]
            if term.tokens == "first":
                read = [(s, at_first(ours, mask), at_first(theirs, mask)) for s, ours, theirs in read]
                mask = mask.any(1)
            return torch.stack([self._hidden(loss, name, s, ours, theirs, mask) for s, ours, theirs in read]).mean()
        keys = _keys(mask, bound, batch)
        if isinstance(term, RelationTerm):
            pairs = _pairs(mask, keys)
            relation, numbers = LOSSES["relation"]["kl"], term.heads * pairs[0].numel()
            distance = partial(relation, heads=term.heads)
            sums = [
                by_examples(distance, [getattr(student, kind)[s]], [getattr(teacher, kind)[t], pairs], numbers)
                for s, t in places
                for kind in term.of
            ]
            return torch.stack(sums).mean()
        return torch.stack([self._attention(bound, student, teacher, s, t, mask, keys) for s, t in places]).mean()

    def _attention(
        self, bound: Bound, student: Signal, teacher: Signal, s: Place, t: Place, mask: Tensor, keys: Tensor
    ) -> Tensor:
        """`mask` [B, Q]: queries that count; `keys`: [B, K], where all read the same, or [B, Q, K]."""
        term = bound.term
        assert isinstance(term, AttentionTerm)
        assert bound.theirs is not None and self.teacher_config is not None
        heads, distance = bound.ours.head_count(self.student_config), LOSSES["attention"][term.distance]
        scaled = [stack.scores == "scaled" for stack in (bound.ours, bound.theirs)]
        cross = term.of == "cross"
        ours, theirs = (
            (signal.cross_query[place], signal.cross_key[place]) if cross else (signal.query[place], signal.key[place])
            for signal, place in ((student, s), (teacher, t))
        )
        sides = ((student, bound.ours), (teacher, bound.theirs))
        bias = [None if cross else signal.bias.get(stack.name) for signal, stack in sides]
        alike = ours[0].shape == theirs[0].shape and scaled[0] == scaled[1] and keys.dim() == 2
        plain = term.distance == "mse" and bias[0] is None and bias[1] is None
        if alike and plain and by_width_is_quicker(*ours, heads):
            by_width = partial(attention_mse_by_width, heads=heads, scaled=scaled[0])
            return by_examples(by_width, ours, [*theirs, mask, keys], 2 * sum(part[0].numel() for part in ours))
        pairs = _pairs(mask, keys)

        def loss(q: Tensor, k: Tensor, their_q: Tensor, their_k: Tensor, counted: Tensor) -> Tensor:
            scores = attention_scores(q, k, heads, scaled[0], bias[0])
            return distance(scores, attention_scores(their_q, their_k, heads, scaled[1], bias[1]), counted)

        if bias[0] is not None:
            # It learns, too, from all examples at once.
            return loss(*ours, *theirs, pairs)
        return by_examples(loss, ours, [*theirs, pairs], heads * pairs[0].numel())

    def _hidden(
        self, loss: Callable[..., Tensor], name: str, place: Place, ours: Tensor, theirs: Tensor, mask: Tensor
    ) -> Tensor:
        key = _key(name, place[1])
        if key not in self.projections:
            return loss(ours, theirs, mask)
        weight = self.projections[key].weight
        assert isinstance(weight, Tensor)
        return projected(loss, ours, weight, theirs, mask)

    def _bound(self, name: str, term: AnyTerm, supervise: Mapping[str, Sequence[int]]) -> dict[str, Bound]:
        """The term, once for each stack that it is about."""
        stacks = {stack.name: stack for stack in family_of(self.student_config).stacks}
        if not isinstance(term, LayerTerm):
            return {name: Bound(term, term.weight, [*stacks.values()][-1])}
        assert self.teacher_config is not None
        theirs = {stack.name: stack for stack in family_of(self.teacher_config).stacks}
        cross = isinstance(term, AttentionTerm) and term.of == "cross"
        chosen: Sequence[str] = term.stacks or (["decoder"] if cross else [*stacks])
        bound = {}
        for stack in chosen:
            if stack not in stacks or stack not in theirs:
                who = "student" if stack not in stacks else "teacher"
                raise SignalMissing(
                    term=name, reason=f"the {who} has no {stack}", fix=f"its stacks: {', '.join(stacks)}"
                )
            pairs = tuple(enumerate(supervise.get(stack, ())))
            if term.layers == "last":
                pairs = pairs[-1:]
            label = name if len(chosen) == 1 else f"{name}.{stack}"
            bound[label] = Bound(term, term.weight / len(chosen), stacks[stack], theirs[stack], pairs)
        return bound

    def _request(self, side: int) -> Request:
        request = Request()
        for bound in self.terms.values():
            term, stack = bound.term, (bound.ours, bound.theirs)[side]
            if isinstance(term, LogitsTerm):
                request |= Request(logits=True)
            if not isinstance(term, LayerTerm):
                continue
            assert stack is not None
            places = frozenset((stack.name, pair[side]) for pair in bound.pairs)
            if isinstance(term, HiddenTerm):
                request |= Request(hidden=places) if term.tokens == "all" else Request(first=places)
            elif isinstance(term, RelationTerm):
                of: dict[str, Any] = dict.fromkeys(term.of, places)
                request |= Request(**of)
            elif term.of == "cross":
                request |= Request(cross_query=places, cross_key=places)
            else:
                bias = frozenset({stack.name}) if stack.bias else frozenset[str]()
                request |= Request(query=places, key=places, bias=bias)
        return request

    def _check(self, name: str, bound: Bound) -> None:
        term, teacher = bound.term, self.teacher_config
        if not isinstance(term, LayerTerm):
            return
        assert bound.theirs is not None and teacher is not None
        sides = (("student", bound.ours, self.student_config), ("teacher", bound.theirs, teacher))
        if isinstance(term, AttentionTerm):
            for who, stack, config in sides:
                if stack.scores == "none":
                    raise SignalMissing(
                        term=name,
                        reason=f"the {who}, a {config.model_type}, has scores that queries and keys alone do not give",
                        fix="use a `hidden` or `relation` term instead",
                    )
            ours, theirs = (stack.head_count(config) for _, stack, config in sides)
            if ours != theirs:
                raise SignalMissing(
                    term=name,
                    reason=f"the student has {ours} attention heads, the teacher {theirs}",
                    fix="use a `relation` term, which cuts both into the same number of heads",
                )
        if isinstance(term, RelationTerm):
            for who, stack, config in sides:
                width = stack.projection_width(config)
                if width % term.heads:
                    raise SignalMissing(
                        term=name,
                        reason=f"{term.heads} relation heads do not divide the {who}'s width {width}",
                        fix="set `heads` to a common divisor of both widths",
                    )

    def _projections(self, seed: int) -> nn.ModuleDict:
        """One linear map a layer where widths differ; used in training only, never saved in the student."""
        made = nn.ModuleDict()
        with torch.random.fork_rng():
            torch.manual_seed(derived_seed(seed, "projections"))
            for name, bound in self.terms.items():
                if not isinstance(bound.term, HiddenTerm) or bound.term.distance == "gram":
                    continue
                assert bound.theirs is not None and self.teacher_config is not None
                ours, theirs = bound.ours.width(self.student_config), bound.theirs.width(self.teacher_config)
                if ours != theirs:
                    for layer, _ in bound.pairs:
                        made[_key(name, layer)] = nn.Linear(ours, theirs, bias=False)
        return made


def _wide(
    distance: Callable[[Tensor, Any, Tensor], Tensor], ours: Tensor, theirs: Tensor | TopLogits, mask: Tensor
) -> Tensor:
    """A distance of logits; of many wide distributions chunk by chunk."""
    if ours.numel() <= at_once(CHUNK, ours.device):
        return distance(ours, theirs, mask)
    if isinstance(theirs, TopLogits):
        return in_chunks(distance, ours, theirs.pieces, mask)
    rows = theirs.flatten(0, -2)
    return in_chunks(distance, ours, lambda size: torch.split(rows, size), mask)


def _key(name: str, layer: int) -> str:
    return f"{name.replace('.', '_')}_{layer}"


def _keys(mask: Tensor, bound: Bound, batch: Batch) -> Tensor:
    """The keys that a query reads: every real token of an encoder [B, K], none of a decoder's future [B, Q, K]."""
    cross = isinstance(bound.term, AttentionTerm) and bound.term.of == "cross"
    if bound.ours.cross is None or cross:
        tokens: Tensor = batch["attention_mask"].bool()
        return tokens
    past = torch.ones(mask.shape[1], mask.shape[1], dtype=torch.bool, device=mask.device).tril()
    return mask[:, None, :] & past


def _pairs(queries: Tensor, keys: Tensor) -> Tensor:
    """Which key counts for which query [B, Q, K]."""
    return queries[:, :, None] & (keys[:, None] if keys.dim() == 2 else keys)


def _names(terms: Sequence[AnyTerm]) -> list[str]:
    """A name for each term: its kind, numbered where a kind comes twice."""
    names: list[str] = []
    for term in terms:
        again = sum(other.split("_")[0] == term.kind for other in names)
        names.append(f"{term.kind}_{again + 1}" if again else term.kind)
    return names
