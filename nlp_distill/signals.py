"""Teacher tensors to learn from, read by forward hooks on the modules that `families` names.

Attention scores come from the hooked queries and keys, never from `output_attentions`, which gives post-dropout
probabilities in training and turns the fast attention kernels off.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, fields
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from nlp_distill.errors import SignalMissing
from nlp_distill.families import Place, Stack, encoder_of, family_of
from nlp_distill.first_token import can_read_first, first_token_only
from nlp_distill.task import Batch, Task

INPUTS = ("input_ids", "attention_mask", "token_type_ids", "decoder_input_ids", "decoder_attention_mask")
"""What a model's forward takes of a batch."""

Places = frozenset[Place]
NOWHERE: Places = frozenset()


@dataclass(frozen=True)
class Request:
    """Which signals to read, by place: an objective asks for just those that its terms need.

    `cross_query` and `cross_key` are those of the decoder's attention to the encoder; `first`: outputs of which
    only the first token is read; `bias`: stacks whose position bias is added to the scores; `encoded`: what the
    encoder says, which a student with the same frozen encoder need not compute.
    """

    logits: bool = False
    hidden: Places = NOWHERE
    query: Places = NOWHERE
    key: Places = NOWHERE
    value: Places = NOWHERE
    cross_query: Places = NOWHERE
    cross_key: Places = NOWHERE
    bias: frozenset[str] = frozenset()
    first: Places = NOWHERE
    encoded: bool = False

    def __or__(self, other: Request) -> Request:
        joined: dict[str, Any] = {f.name: getattr(self, f.name) | getattr(other, f.name) for f in fields(self)}
        return Request(**joined)

    def __bool__(self) -> bool:
        return any(getattr(self, f.name) for f in fields(self))

    def places(self, kind: str) -> Places:
        """The layers that a kind of signal is read at."""
        chosen: Places = getattr(self, kind)
        return chosen | self.first if kind == "hidden" else chosen


LAYERED = ("hidden", "query", "key", "value", "cross_query", "cross_key")


@dataclass(frozen=True)
class TopLogits:
    """The k largest logits of a wide distribution, less the largest, and the weight of all others.

    `values` and `indices`: [..., k]; `tails`: temperature T → log-sum-exp of the other logits / T [...].
    """

    values: Tensor
    indices: Tensor
    tails: dict[float, Tensor]

    def pieces(self, size: int) -> Iterator[TopLogits]:
        """Its rows [B·T, …], `size` at a time."""
        values, indices = (torch.split(tensor.flatten(0, 1), size) for tensor in (self.values, self.indices))
        tails = {temperature: torch.split(tail.flatten(), size) for temperature, tail in self.tails.items()}
        for number, (some, where) in enumerate(zip(values, indices, strict=True)):
            yield TopLogits(some, where, {temperature: tail[number] for temperature, tail in tails.items()})

    def against(self, student: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        """Logits of student [..., V] and teacher over k + 1 classes, all but the k being one: [..., k + 1].

        At this temperature their softmax is the full distributions' with the others' probabilities added.
        """
        student = student.float()
        others = student.scatter(-1, self.indices, -torch.inf)
        rest = (others / temperature).logsumexp(-1, keepdim=True) * temperature
        ours = torch.cat([student.gather(-1, self.indices), rest], dim=-1)
        return ours, torch.cat([self.values.float(), self.tails[temperature].unsqueeze(-1) * temperature], dim=-1)


@dataclass
class Signal:
    """What one forward gave.

    `logits`: name → [B, C] or [B, T, C]; `bias`: stack → [Q, K, heads]; the others: place → [B, S, H] (queries
    and keys before they are cut into heads).
    """

    logits: dict[str, Tensor | TopLogits] = field(default_factory=dict)
    hidden: dict[Place, Tensor] = field(default_factory=dict)
    query: dict[Place, Tensor] = field(default_factory=dict)
    key: dict[Place, Tensor] = field(default_factory=dict)
    value: dict[Place, Tensor] = field(default_factory=dict)
    cross_query: dict[Place, Tensor] = field(default_factory=dict)
    cross_key: dict[Place, Tensor] = field(default_factory=dict)
    bias: dict[str, Tensor] = field(default_factory=dict)
    encoded: Tensor | None = None
    """What the encoder says [B, S, H], where the student shares it (`same_encoder`)."""


class TeacherSource(Protocol):
    """Where teacher signals come from. `stored`: they lie on disk, and can be read before their step."""

    stored: bool

    def signal(self, batch: Batch) -> Signal:
        """Signals of the batch's examples, without gradients."""
        ...


def moved(value: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device; to a GPU from pinned memory, while it computes."""
    return value.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else value.to(device)


def model_inputs(batch: Batch) -> dict[str, Tensor]:
    """The part of a batch that a model's forward takes."""
    return {name: batch[name] for name in INPUTS if name in batch}


class _Enough(Exception):
    """All signals are there: it ends a forward, and is no error."""


@dataclass
class Heard:
    """What hooks on a model's modules hear in a forward; nothing while it does not `listen`.

    `ears`: of each module the kind of its outputs, the number of a call in the forward → where its output goes, and
    the outputs call by call.
    """

    listen: bool = True
    ears: list[tuple[str, dict[int, Any], list[Tensor | None]]] = field(default_factory=list)

    def hook(self, module: nn.Module, kind: str, keys: dict[int, Any], early: bool) -> Any:
        """Listen to a module; `early`: the forward ends with the last output that is asked for."""
        outputs: list[Tensor | None] = []
        self.ears.append((kind, keys, outputs))

        def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if not self.listen:
                return
            wanted = len(outputs) in keys
            outputs.append((output[0] if isinstance(output, tuple) else output) if wanted else None)
            if early and all(len(given) > max(calls) for _, calls, given in self.ears):
                raise _Enough

        return module.register_forward_hook(keep)

    def take(self) -> list[list[Tensor | None]]:
        """The outputs of each module; forgotten here."""
        taken = [list(outputs) for _, _, outputs in self.ears]
        for _, _, outputs in self.ears:
            outputs.clear()
        return taken

    def signal(self, taken: list[list[Tensor | None]], signal: Signal) -> Signal:
        """Put outputs where they belong; those that a forward did not come to are left out."""
        for outputs, (kind, keys, _) in zip(taken, self.ears, strict=True):
            getattr(signal, kind).update({keys[n]: output for n, output in enumerate(outputs) if n in keys})
        return signal


@contextmanager
def listening(model: PreTrainedModel, request: Request, early: bool = False) -> Iterator[Heard]:
    """Hook the modules that the request names, within the block; `early`: see `capture`."""
    heard, handles = Heard(), []

    def hook(module: nn.Module, kind: str, keys: dict[int, Any]) -> None:
        handles.append(heard.hook(module, kind, keys, early))

    try:
        for stack in family_of(model.config).stacks:
            for kind in LAYERED:
                wanted = sorted(layer for name, layer in request.places(kind) if name == stack.name)
                if not wanted:
                    continue
                blocks = stack.blocks(model)
                if stack.shared:
                    # The n-th application of the one block is layer n.
                    hook(_module(stack, blocks[0], kind), kind, {layer: (stack.name, layer) for layer in wanted})
                    continue
                for layer in wanted:
                    hook(_module(stack, blocks[layer], kind), kind, {0: (stack.name, layer)})
            if stack.name in request.bias and stack.bias is not None:
                hook(model.base_model.get_submodule(stack.bias), "bias", {0: stack.name})
        yield heard
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def capture(model: PreTrainedModel, request: Request, early: bool = False) -> Iterator[Signal]:
    """Hook the modules that the request names; the signal of the forward inside the block is there at its end.

    `early`: the block ends as soon as every signal is there; what comes after in the model is not run.
    """
    signal = Signal()
    with listening(model, request, early) as heard:
        with suppress(_Enough):
            yield signal
        heard.signal(heard.take(), signal)


def _module(stack: Stack, block: nn.Module, kind: str) -> nn.Module:
    if kind == "hidden":
        return block
    if kind.startswith("cross_"):
        assert stack.cross is not None
        return block.get_submodule(stack.cross[("cross_query", "cross_key").index(kind)])
    return block.get_submodule(getattr(stack, kind))


def check_request(config: PretrainedConfig, request: Request, who: str) -> None:
    """Refuse, before any training, what a model of this config cannot give. Raises `SignalMissing`."""
    stacks = {stack.name: stack for stack in family_of(config).stacks}
    for kind in LAYERED:
        for name, layer in sorted(request.places(kind)):
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


def first_suffices(task: Task, config: PretrainedConfig, request: Request, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether nothing of the last layer's outputs and queries is read but the first token's."""
    if not (task.reads_first and can_read_first(config) and tokenizer.padding_side == "right"):
        return False
    stack = family_of(config).stacks[0]
    return (stack.name, stack.count(config) - 1) not in request.hidden | request.query


class LiveTeacher:
    """Signals from a teacher that runs beside the student; without logits only as far as its highest layer read.

    `first`: its last layer is run for the first token alone (`first_suffices`); `ids`: the teacher's id of each of
    the student's, where they share a tokenizer that numbers them otherwise (`vocabulary`); `words`: as many as the
    student knows, where the teacher's table has rows for more than their tokenizer does.
    """

    stored = False

    def __init__(
        self,
        model: PreTrainedModel,
        task: Task,
        request: Request,
        autocast: torch.dtype | None,
        first: bool = False,
        ids: Tensor | None = None,
        words: int | None = None,
    ) -> None:
        check_request(model.config, request, "teacher")
        self.first, self.ids, self.words = first, ids, words
        self.model, self.task, self.request, self.autocast = model.eval(), task, request, autocast
        model.requires_grad_(False)

    @torch.no_grad()
    def signal(self, batch: Batch) -> Signal:
        """Signals of the batch's examples, without gradients."""
        theirs: Batch = batch.get("teacher", batch)
        if self.ids is not None:
            self.ids = self.ids.to(theirs["input_ids"].device)
            theirs = {**theirs, "input_ids": self.ids[theirs["input_ids"]]}
        device = theirs["input_ids"].device.type
        with (
            torch.autocast(device, dtype=self.autocast, enabled=self.autocast is not None),
            first_token_only(self.model) if self.first else nullcontext(),
            capture(self.model, self.request, early=not (self.request.logits or self.request.encoded)) as signal,
        ):
            outputs = self.model(**model_inputs(theirs))
        if self.request.logits:
            logits = self.task.logits(outputs, theirs)
            if self.words is not None:
                logits = {name: values[..., : self.words] for name, values in logits.items()}
            signal.logits.update(self.task.align(logits, batch, theirs) if "teacher" in batch else logits)
        if self.request.encoded:
            signal.encoded = outputs.encoder_last_hidden_state
        return signal


def may_share_encoder(student: PreTrainedModel, request: Request) -> bool:
    """Whether the student's encoder is frozen and no term reads what happens in it."""
    if not student.config.is_encoder_decoder:
        return False
    read = {stack for kind in (*LAYERED, "first") for stack, _ in getattr(request, kind)} | request.bias
    return "encoder" not in read and not any(p.requires_grad for p in encoder_of(student).parameters())


def same_encoder(student: PreTrainedModel, teacher: PreTrainedModel) -> bool:
    """Whether two models' encoders have the same weights."""
    if not teacher.config.is_encoder_decoder:
        return False
    ours, theirs = (encoder_of(model).state_dict() for model in (student, teacher))
    return ours.keys() == theirs.keys() and all(torch.equal(ours[n].cpu(), theirs[n].cpu()) for n in ours)
