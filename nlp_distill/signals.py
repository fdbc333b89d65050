"""Teacher tensors to learn from, read by forward hooks on the modules that `families` names.

Attention scores come from the hooked queries and keys, never from `output_attentions`, which gives post-dropout
probabilities in training and turns the fast attention kernels off.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from nlp_distill.errors import SignalMissing
from nlp_distill.families import Place, Stack, family_of
from nlp_distill.task import Batch, Task

INPUTS = ("input_ids", "attention_mask", "token_type_ids", "decoder_input_ids", "decoder_attention_mask")
"""What a model's forward takes of a batch."""

Places = frozenset[Place]
NOWHERE: Places = frozenset()


@dataclass(frozen=True)
class Request:
    """Which signals to read, by place: an objective asks for just those that its terms need.

    `cross_query` and `cross_key` are those of the decoder's attention to the encoder; `bias`: stacks whose
    position bias is added to the scores.
    """

    logits: bool = False
    hidden: Places = NOWHERE
    query: Places = NOWHERE
    key: Places = NOWHERE
    value: Places = NOWHERE
    cross_query: Places = NOWHERE
    cross_key: Places = NOWHERE
    bias: frozenset[str] = frozenset()

    def __or__(self, other: Request) -> Request:
        joined: dict[str, Any] = {f.name: getattr(self, f.name) | getattr(other, f.name) for f in fields(self)}
        return Request(**joined)

    def __bool__(self) -> bool:
        return any(getattr(self, f.name) for f in fields(self))


LAYERED = ("hidden", "query", "key", "value", "cross_query", "cross_key")


@dataclass
class Signal:
    """What one forward gave.

    `logits`: name → [B, C] or [B, T, C]; `bias`: stack → [Q, K, heads]; the others: place → [B, S, H] (queries
    and keys before they are cut into heads).
    """

    logits: dict[str, Tensor] = field(default_factory=dict)
    hidden: dict[Place, Tensor] = field(default_factory=dict)
    query: dict[Place, Tensor] = field(default_factory=dict)
    key: dict[Place, Tensor] = field(default_factory=dict)
    value: dict[Place, Tensor] = field(default_factory=dict)
    cross_query: dict[Place, Tensor] = field(default_factory=dict)
    cross_key: dict[Place, Tensor] = field(default_factory=dict)
    bias: dict[str, Tensor] = field(default_factory=dict)
    encoded: Tensor | None = None
    """What the encoder says [B, S, H], where the student shares it (`LiveTeacher.share_encoder`)."""


class TeacherSource(Protocol):
    """Where teacher signals come from; the loop never knows which kind it has."""

    def signal(self, batch: Batch) -> Signal:
        """Signals of the batch's examples, without gradients."""
        ...


def model_inputs(batch: Batch) -> dict[str, Tensor]:
    """The part of a batch that a model's forward takes."""
    return {name: batch[name] for name in INPUTS if name in batch}


@contextmanager
def capture(model: PreTrainedModel, request: Request) -> Iterator[Signal]:
    """Hook the modules that the request names; the signal fills during the forward inside the block."""
    signal, handles = Signal(), []
    try:
        for stack in family_of(model.config).stacks:
            for kind in LAYERED:
                wanted = sorted(layer for name, layer in getattr(request, kind) if name == stack.name)
                if not wanted:
                    continue
                blocks, store = stack.blocks(model), getattr(signal, kind)
                if stack.shared:
                    handles.append(_count_hook(_module(stack, blocks[0], kind), store, stack.name, wanted))
                    continue
                for layer in wanted:
                    handles.append(_hook(_module(stack, blocks[layer], kind), store, (stack.name, layer)))
            if stack.name in request.bias and stack.bias is not None:
                handles.append(_hook(model.base_model.get_submodule(stack.bias), signal.bias, stack.name))
        yield signal
    finally:
        for handle in handles:
            handle.remove()


def _module(stack: Stack, block: nn.Module, kind: str) -> nn.Module:
    if kind == "hidden":
        return block
    if kind.startswith("cross_"):
        assert stack.cross is not None
        return block.get_submodule(stack.cross[("cross_query", "cross_key").index(kind)])
    return block.get_submodule(getattr(stack, kind))


def _hook(module: nn.Module, store: dict[Any, Tensor], key: Any) -> Any:
    def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
        store[key] = output[0] if isinstance(output, tuple) else output

    return module.register_forward_hook(keep)


def _count_hook(module: nn.Module, store: dict[Place, Tensor], stack: str, wanted: list[int]) -> Any:
    """Of a shared block: its n-th application in a forward is layer n."""
    calls = 0

    def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
        nonlocal calls
        if calls in wanted:
            store[stack, calls] = output[0] if isinstance(output, tuple) else output
        calls += 1

    return module.register_forward_hook(keep)


def check_request(config: PretrainedConfig, request: Request, who: str) -> None:
    """Refuse, before any training, what a model of this config cannot give. Raises `SignalMissing`."""
    stacks = {stack.name: stack for stack in family_of(config).stacks}
    for kind in LAYERED:
        for name, layer in sorted(getattr(request, kind)):
            if name not in stacks:
                raise SignalMissing(
                    term=kind, reason=f"the {who} has no {name}", fix=f"its stacks: {', '.join(stacks)}"
                )
            layers = stacks[name].count(config)
            if not 0 <= layer < layers:
                raise SignalMissing(
                    term=kind,
                    reason=f"the {who} has no layer {layer}",
                    fix=f"layers count from 0 to {layers - 1}",
                )
            if kind.startswith("cross_") and stacks[name].cross is None:
                raise SignalMissing(
                    term="attention",
                    reason=f"the {who}'s {name} has no attention to another stack",
                    fix="`of: cross` is for the decoder of a seq2seq model",
                )


class LiveTeacher:
    """Signals from a teacher that runs beside the student."""

    def __init__(self, model: PreTrainedModel, task: Task, request: Request, autocast: torch.dtype | None) -> None:
        check_request(model.config, request, "teacher")
        self.model, self.task, self.request, self.autocast = model.eval(), task, request, autocast
        model.requires_grad_(False)
        self.encoder_shared = False

    def share_encoder(self, student: PreTrainedModel, request: Request) -> bool:
        """Let one pass serve both where the student's encoder is the teacher's, frozen, and no term reads it."""
        read = {stack for kind in LAYERED for stack, _ in getattr(request, kind)} | request.bias
        self.encoder_shared = "encoder" not in read and _same_frozen_encoder(student, self.model)
        return self.encoder_shared

    @torch.no_grad()
    def signal(self, batch: Batch) -> Signal:
        """Signals of the batch's examples, without gradients."""
        theirs: Batch = batch.get("teacher", batch)
        device = theirs["input_ids"].device.type
        with (
            torch.autocast(device, dtype=self.autocast, enabled=self.autocast is not None),
            capture(self.model, self.request) as signal,
        ):
            outputs = self.model(**model_inputs(theirs))
        if self.request.logits:
            signal.logits = self.task.logits(outputs, theirs)
        if theirs is not batch:
            signal.logits = self.task.align(signal.logits, batch, theirs)
        if self.encoder_shared:
            signal.encoded = outputs.encoder_last_hidden_state
        return signal


def _same_frozen_encoder(student: PreTrainedModel, teacher: PreTrainedModel) -> bool:
    if not (student.config.is_encoder_decoder and teacher.config.is_encoder_decoder):
        return False
    if any(parameter.requires_grad for parameter in student.get_encoder().parameters()):
        return False
    ours, theirs = (model.get_encoder().state_dict() for model in (student, teacher))
    return ours.keys() == theirs.keys() and all(torch.equal(ours[n].cpu(), theirs[n].cpu()) for n in ours)
