"""The weighted sum of terms: it owns the projections and says which signals it needs.

Each term is normalised over the whole optimizer step: the sums of all micro-batches and ranks are divided by
the step's counts, which depend on masks alone and are known before the first forward.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from nlp_distill.batches import derived_seed
from nlp_distill.errors import SignalMissing
from nlp_distill.losses import LOSSES, attention_scores
from nlp_distill.recipe import AnyTerm, AttentionTerm, HiddenTerm, LabelsTerm, LogitsTerm, RelationTerm
from nlp_distill.signals import Request, Signal
from nlp_distill.task import Batch, Task


class Objective(nn.Module):
    """Terms of a recipe, bound to a student and a teacher.

    `supervise[i]` is the teacher layer that student layer i imitates. Raises `SignalMissing` for a term that
    the pair cannot give, before any training.
    """

    def __init__(
        self,
        terms: Sequence[AnyTerm],
        task: Task,
        student: PretrainedConfig,
        teacher: PretrainedConfig | None = None,
        supervise: Sequence[int] = (),
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.task, self.student_config, self.teacher_config = task, student, teacher
        self.terms = dict(zip(_names(terms), terms, strict=True))
        self.pairs = list(enumerate(supervise))
        for name, term in self.terms.items():
            self._check(name, term)
        self.projections = self._projections(seed)

    @property
    def teacher_request(self) -> Request:
        """The signals that one teacher forward must give; false when no term needs a teacher."""
        return self._request(side=1)

    @property
    def student_request(self) -> Request:
        """The signals that one student forward must give, besides its outputs."""
        return self._request(side=0)

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Positions of each term that count in a batch."""
        return {name: self.task.term_mask(batch, term.kind).sum().double() for name, term in self.terms.items()}

    def sums(self, outputs: Any, student: Signal, teacher: Signal, batch: Batch) -> dict[str, Tensor]:
        """Sum of each term over a batch's positions, layers averaged; float32 scalars."""
        return {
            name: self._sum(name, term, outputs, student, teacher, batch, self.task.term_mask(batch, term.kind))
            for name, term in self.terms.items()
        }

    def total(self, sums: Mapping[str, Tensor], counts: Mapping[str, float]) -> Tensor:
        """The part of the step's loss that a micro-batch's sums make up."""
        parts = [sums[name] * (term.weight / max(counts[name], 1.0)) for name, term in self.terms.items()]
        return torch.stack(parts).sum()

    def _sum(
        self,
        name: str,
        term: AnyTerm,
        outputs: Any,
        student: Signal,
        teacher: Signal,
        batch: Batch,
        mask: Tensor,
    ) -> Tensor:
        if isinstance(term, LabelsTerm):
            return self.task.label_loss(outputs, batch)
        if isinstance(term, LogitsTerm):
            form = self.task.distribution
            loss = LOSSES["logits"]["mse" if form == "value" else term.distance]
            ours, softmax = self.task.logits(outputs), form == "softmax"
            sums = [
                loss(ours[head], teacher.logits[head], mask, temperature=term.temperature, softmax=softmax)
                for head in ours
            ]
            return torch.stack(sums).mean()
        if isinstance(term, RelationTerm):
            loss = LOSSES["relation"]["kl"]
            sums = [
                loss(getattr(student, kind)[s], getattr(teacher, kind)[t], mask, heads=term.heads)
                for s, t in self._pairs(term)
                for kind in term.of
            ]
            return torch.stack(sums).mean()
        loss = LOSSES[term.kind][term.distance]
        if isinstance(term, AttentionTerm):
            heads = self.student_config.num_attention_heads
            sums = [
                loss(
                    attention_scores(student.query[s], student.key[s], heads),
                    attention_scores(teacher.query[t], teacher.key[t], heads),
                    mask,
                )
                for s, t in self._pairs(term)
            ]
            return torch.stack(sums).mean()
        sums = [loss(self._project(name, s, student.hidden[s]), teacher.hidden[t], mask) for s, t in self._pairs(term)]
        return torch.stack(sums).mean()

    def _project(self, name: str, layer: int, hidden: Tensor) -> Tensor:
        key = f"{name}_{layer}"
        return self.projections[key](hidden.float()) if key in self.projections else hidden

    def _pairs(self, term: AnyTerm) -> list[tuple[int, int]]:
        return self.pairs[-1:] if isinstance(term, RelationTerm) and term.layers == "last" else self.pairs

    def _request(self, side: int) -> Request:
        request = Request()
        for term in self.terms.values():
            layers = frozenset(pair[side] for pair in self._pairs(term))
            if isinstance(term, LogitsTerm):
                request |= Request(logits=True)
            elif isinstance(term, HiddenTerm):
                request |= Request(hidden=layers)
            elif isinstance(term, AttentionTerm):
                request |= Request(query=layers, key=layers)
            elif isinstance(term, RelationTerm):
                of: dict[str, Any] = dict.fromkeys(term.of, layers)
                request |= Request(**of)
        return request

    def _check(self, name: str, term: AnyTerm) -> None:
        if isinstance(term, LabelsTerm):
            return
        teacher = self.teacher_config
        if teacher is None:
            raise SignalMissing(term=name, reason="there is no teacher here", fix="use a `labels` term")
        ours = self.student_config
        if isinstance(term, AttentionTerm) and ours.num_attention_heads != teacher.num_attention_heads:
            raise SignalMissing(
                term=name,
                reason=f"the student has {ours.num_attention_heads} attention heads, "
                f"the teacher {teacher.num_attention_heads}",
                fix="use a `relation` term, which cuts both into the same number of heads",
            )
        if isinstance(term, RelationTerm):
            for who, width in (("student", ours.hidden_size), ("teacher", teacher.hidden_size)):
                if width % term.heads:
                    raise SignalMissing(
                        term=name,
                        reason=f"{term.heads} relation heads do not divide the {who}'s width {width}",
                        fix="set `heads` to a common divisor of both widths",
                    )

    def _projections(self, seed: int) -> nn.ModuleDict:
        """One linear map a layer where widths differ; used in training only, never saved in the student."""
        made = nn.ModuleDict()
        if self.teacher_config is None or self.teacher_config.hidden_size == self.student_config.hidden_size:
            return made
        with torch.random.fork_rng():
            torch.manual_seed(derived_seed(seed, "projections"))
            for name, term in self.terms.items():
                if isinstance(term, HiddenTerm) and term.distance != "gram":
                    for layer, _ in self.pairs:
                        made[f"{name}_{layer}"] = nn.Linear(
                            self.student_config.hidden_size, self.teacher_config.hidden_size, bias=False
                        )
        return made


def _names(terms: Sequence[AnyTerm]) -> list[str]:
    """A name for each term: its kind, numbered where a kind comes twice."""
    names: list[str] = []
    for term in terms:
        again = sum(other.split("_")[0] == term.kind for other in names)
        names.append(f"{term.kind}_{again + 1}" if again else term.kind)
    return names
