"""Teacher tensors to learn from, read by forward hooks on the modules that `families` names.

Attention scores come from the hooked queries and keys, never from `output_attentions`, which gives post-dropout
probabilities in training and turns the fast attention kernels off.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from nlp_distill.errors import SignalMissing
from nlp_distill.families import Family, family_of
from nlp_distill.task import Batch, Task


@dataclass(frozen=True)
class Request:
    """Which signals to read, by layer: an objective asks for just those that its terms need."""

    logits: bool = False
    hidden: frozenset[int] = frozenset()
    query: frozenset[int] = frozenset()
    key: frozenset[int] = frozenset()
    value: frozenset[int] = frozenset()

    def __or__(self, other: Request) -> Request:
        return Request(
            self.logits or other.logits,
            self.hidden | other.hidden,
            self.query | other.query,
            self.key | other.key,
            self.value | other.value,
        )

    def __bool__(self) -> bool:
        return self.logits or bool(self.hidden or self.query or self.key or self.value)


@dataclass
class Signal:
    """What one forward gave. `logits`: name → [B, C]; the others: layer → [B, S, H] (queries … before heads)."""

    logits: dict[str, Tensor] = field(default_factory=dict)
    hidden: dict[int, Tensor] = field(default_factory=dict)
    query: dict[int, Tensor] = field(default_factory=dict)
    key: dict[int, Tensor] = field(default_factory=dict)
    value: dict[int, Tensor] = field(default_factory=dict)


class TeacherSource(Protocol):
    """Where teacher signals come from; the loop never knows which kind it has."""

    def signal(self, batch: Batch) -> Signal:
        """Signals of the batch's examples, without gradients."""
        ...


def model_inputs(batch: Batch) -> dict[str, Tensor]:
    """The part of a batch that a model's forward takes."""
    return {name: value for name, value in batch.items() if name not in ("labels", "example_id")}


@contextmanager
def capture(model: PreTrainedModel, request: Request) -> Iterator[Signal]:
    """Hook the modules that the request names; the signal fills during the forward inside the block."""
    family, signal, handles = family_of(model.config), Signal(), []
    try:
        for kind in ("hidden", "query", "key", "value"):
            for layer in sorted(getattr(request, kind)):
                store: dict[int, Tensor] = getattr(signal, kind)
                handles.append(_hook(_module(family, family.blocks(model)[layer], kind), store, layer))
        yield signal
    finally:
        for handle in handles:
            handle.remove()


def _module(family: Family, block: nn.Module, kind: str) -> nn.Module:
    return block if kind == "hidden" else block.get_submodule(getattr(family, kind))


def _hook(module: nn.Module, store: dict[int, Tensor], layer: int) -> Any:
    def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
        store[layer] = output[0] if isinstance(output, tuple) else output

    return module.register_forward_hook(keep)


def check_request(model: PreTrainedModel, request: Request, who: str) -> None:
    """Refuse, before any training, what the model cannot give. Raises `SignalMissing`."""
    family = family_of(model.config)
    layers = model.config.num_hidden_layers
    for kind in ("hidden", "query", "key", "value"):
        outside = [layer for layer in getattr(request, kind) if not 0 <= layer < layers]
        if outside:
            raise SignalMissing(
                term=kind,
                reason=f"the {who} has no layer {outside[0]}",
                fix=f"layers count from 0 to {layers - 1}",
            )
    if (request.query or request.key) and not family.attention_scores:
        raise SignalMissing(
            term="attention",
            reason=f"{model.config.model_type} does not compute its scores from queries and keys alone",
            fix="use a `hidden` term instead",
        )


class LiveTeacher:
    """Signals from a teacher that runs beside the student."""

    def __init__(self, model: PreTrainedModel, task: Task, request: Request, autocast: torch.dtype | None) -> None:
        check_request(model, request, "teacher")
        self.model, self.task, self.request, self.autocast = model.eval(), task, request, autocast
        model.requires_grad_(False)

    @torch.no_grad()
    def signal(self, batch: Batch) -> Signal:
        """Signals of the batch's examples, without gradients."""
        device = batch["input_ids"].device.type
        with (
            torch.autocast(device, dtype=self.autocast, enabled=self.autocast is not None),
            capture(self.model, self.request) as signal,
        ):
            outputs = self.model(**model_inputs(batch))
        if self.request.logits:
            signal.logits = self.task.logits(outputs)
        return signal
