"""A teacher's signals on disk: computed once, read in every epoch, shared between runs.

Each signal is one flat, memory-mapped file of records, one for each token (or row) that counts, without padding;
`index.safetensors` says where each example's begin. What lies between is written in order of length, as
micro-batches read it.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from torch import Tensor, nn
from transformers import PretrainedConfig

from nlp_distill.batches import Indices, micro_batches
from nlp_distill.errors import CacheRefused
from nlp_distill.families import family_of
from nlp_distill.losses import at_first, first_tokens
from nlp_distill.records import FORMS, TOP, WIDE, Part
from nlp_distill.rundir import new_folder
from nlp_distill.shelf import INDEX, seal, sealed
from nlp_distill.signals import LAYERED, Request, Signal, TeacherSource
from nlp_distill.task import Batch, Task
from nlp_distill.terms import AnyTerm, LogitsTerm

FORMAT = 2
BUILD_TOKENS = 4096


def obstacle(task: Task, teacher: PretrainedConfig, terms: Sequence[AnyTerm], asked: str) -> str:
    """Why a teacher's signals cannot be kept, or for `auto` not exactly; empty when they can."""
    logits = [term for term in terms if isinstance(term, LogitsTerm)]
    if task.noisy:
        return f"{task.name} shows every example anew in each epoch, so that no signal stays the same"
    if not teacher.is_encoder_decoder or not logits:
        return ""
    if any(term.distance == "mse" for term in logits):
        return f"the squared error needs all logits of a token, and a cache keeps {TOP}"
    if asked == "auto":
        return f"a cache keeps only the {TOP} largest logits of a token; `cache: fp32` accepts that"
    return ""


@dataclass
class Examples:
    """The rows to run a teacher over: their lengths in tokens, and `read(numbers, seed)`, which makes a batch."""

    lengths: Indices
    read: Callable[[Indices, int], Batch]

    @cached_property
    def extremes(self) -> Indices:
        """The shortest example and the longest."""
        return np.array([self.lengths.argmin(), self.lengths.argmax()], dtype=np.int64)

    def cuts(self) -> list[Indices]:
        """All examples in micro-batches, sorted by length."""
        return micro_batches(np.arange(len(self.lengths)), self.lengths, BUILD_TOKENS)


def axes(task: Task, batch: Batch, last: str) -> dict[str, Tensor]:
    """What counts in a batch, by what a signal may be about: masks [B] of rows or [B, S] of tokens.

    `last`: the teacher's last stack.
    """
    masks: dict[str, Tensor] = {"encoder": batch["attention_mask"].bool()}
    if last == "decoder":
        masks["decoder"] = task.term_mask(batch, "hidden", "decoder")
    masks |= {f"{name}.first": first_tokens(mask) for name, mask in masks.items()}
    masks["row"] = masks["encoder"].new_ones(len(masks["encoder"]))
    logits = task.term_mask(batch, "logits", last)
    masks["logits"] = logits if logits.dim() == 2 else masks["row"]
    return masks


@dataclass
class Plan:
    """What a cache will hold: its parts, and by axis how many records each example has."""

    parts: list[Part]
    counts: dict[str, Indices]

    @property
    def size(self) -> int:
        """Bytes of all records."""
        return sum(part.record.itemsize * int(self.counts[part.axis].sum()) for part in self.parts)

    def size_in(self, precision: str) -> int:
        """Bytes of all records, were the layers kept in another precision."""
        return Plan([replace(part, form=_form(part, precision)) for part in self.parts], self.counts).size


def _form(part: Part, precision: str) -> str:
    """How a part lies in a cache of a precision: a row's logits exactly, what a student reads in bf16 at least."""
    if part.kind == "encoded":
        return FORMS["fp32" if precision == "fp32" else "bf16"]
    if part.form.startswith("top"):
        return "top" if precision == "fp32" else "top16"
    return part.form if part.kind == "logits" else FORMS[precision]


def probe(task: Task, examples: Examples) -> Batch:
    """The shortest and the longest example as a batch. Raises `CacheRefused` where chance changes it."""
    one, two = (examples.read(examples.extremes, seed) for seed in (0, 1))
    if not all(torch.equal(one[name], two[name]) for name in one if isinstance(one[name], Tensor)):
        raise CacheRefused(reason=f"{task.name} uses an example's noise without saying that it is `noisy`")
    return one


def plan(
    task: Task,
    teacher: TeacherSource,
    request: Request,
    examples: Examples,
    last: str,
    precision: str,
    temperatures: Sequence[float],
) -> Plan:
    """What the signals of all examples take. Runs the teacher on the shortest and the longest of them."""
    batch = probe(task, examples)
    if request.logits and not all(_by_example(task, examples.read(some, 0), last) for some in _some(examples)):
        raise CacheRefused(reason=f"the logits of {task.name} are of places that it picks in an example")
    masks, signal = axes(task, batch, last), teacher.signal(batch)
    parts = []
    if signal.encoded is not None:
        # The student reads it: int8 would be another text to it.
        parts.append(Part("encoded", (), "encoder", signal.encoded.shape[-1], FORMS["fp32"]))
    for kind in LAYERED:
        for place, values in getattr(signal, kind).items():
            axis = "encoder" if kind == "cross_key" else place[0]
            if kind == "hidden" and place not in request.hidden:
                axis = f"{axis}.first"
            parts.append(Part(kind, place, axis, values.shape[-1], FORMS["fp32"]))
    for name, values in signal.logits.items():
        assert isinstance(values, Tensor)
        alone = teacher.signal(examples.read(examples.extremes[:1], 0)).logits[name]
        assert isinstance(alone, Tensor)
        if masks["logits"].dim() == 1 and alone.shape[1:] != values.shape[1:]:
            # One number a token of the source (where an answer begins); padding can never be it.
            fill = float(values[~masks["encoder"]][0])
            parts.append(Part("logits", (name,), "encoder", 1, "float32", scalar=True, fill=fill))
        elif last == "decoder" and values.shape[-1] > WIDE:
            kept = tuple(temperatures)
            parts.append(Part("logits", (name,), "logits", values.shape[-1], "top", temperatures=kept))
        else:
            parts.append(Part("logits", (name,), "logits", values.shape[-1], "float32"))
    parts = [replace(part, form=_form(part, precision)) for part in parts]
    return Plan(parts, _counts(task, examples, last, {part.axis for part in parts}))


def _some(examples: Examples) -> list[Indices]:
    return [examples.extremes, examples.extremes[:1]]


def _by_example(task: Task, batch: Batch, last: str) -> bool:
    """Whether logits come one an example, or one a token of it."""
    mask = task.term_mask(batch, "logits", last)
    return mask.dim() == 2 or len(mask) == len(batch["attention_mask"])


def _counts(task: Task, examples: Examples, last: str, used: set[str]) -> dict[str, Indices]:
    counts = {axis: np.zeros(len(examples.lengths), dtype=np.int64) for axis in sorted(used)}
    for cut in examples.cuts():
        masks = axes(task, examples.read(cut, 0), last)
        for axis, values in counts.items():
            values[cut] = masks[axis].sum(1).cpu().numpy() if masks[axis].dim() == 2 else 1
    return counts


@dataclass(frozen=True)
class Draft:
    """A cache that is being written: its files have their full length, and every process fills its share."""

    folder: Path
    planned: Plan


Biases = dict[str, Tensor]
"""By stack: the position biases of the longest example that was seen."""


def longest(biases: Sequence[Biases]) -> Biases:
    """Of each stack the widest."""
    stacks = sorted({stack for some in biases for stack in some})
    return {stack: max((some[stack] for some in biases if stack in some), key=len) for stack in stacks}


def fill(
    draft: Draft,
    task: Task,
    teacher: TeacherSource,
    examples: Examples,
    last: str,
    progress: Callable[[int, int], None],
    rank: int = 0,
    world: int = 1,
) -> Biases:
    """Run the teacher over a process's share of the examples, every `world`-th micro-batch, into the files.

    `progress(done, all)` counts the examples of all processes, were they as far as this one.
    """
    parts, cuts = draft.planned.parts, examples.cuts()
    starts, biases, done = _starts(draft.planned, cuts), Biases(), 0
    with ExitStack() as opened:
        files = {part.file: opened.enter_context((draft.folder / part.file).open("r+b")) for part in parts}
        for cut in cuts[rank::world]:
            batch = examples.read(cut, 0)
            masks, signal = axes(task, batch, last), teacher.signal(batch)
            for part in parts:
                values = part.of(signal)
                mask = masks[part.axis].to(values.device)
                if part.axis.endswith(".first"):
                    values, mask = at_first(values, mask), mask.any(1)
                files[part.file].seek(int(starts[part.axis][cut[0]]) * part.record.itemsize)
                files[part.file].write(part.encode(values[mask].view(-1, part.width)).tobytes())
            seen = {stack: bias.float().cpu().contiguous() for stack, bias in signal.bias.items()}
            biases, done = longest([biases, seen]), done + len(cut)
            progress(min(done * world, len(examples.lengths)), len(examples.lengths))
    return biases


def _starts(planned: Plan, cuts: list[Indices]) -> dict[str, Indices]:
    """By axis: the number of each example's first record. Micro-batches follow each other, as do their examples."""
    order, starts = np.concatenate(cuts), {}
    for axis, counts in planned.counts.items():
        starts[axis] = np.empty_like(counts)
        starts[axis][order] = np.cumsum(counts[order]) - counts[order]
    return starts


def write(
    folder: Path,
    planned: Plan,
    examples: Examples,
    last: str,
    about: dict[str, Any],
    filled: Callable[[Draft], Biases],
) -> None:
    """Publish the folder, whose files `filled` fills; what that raises leaves nothing behind."""
    with new_folder(folder) as temporary:
        for part in planned.parts:
            with (temporary / part.file).open("wb") as file:
                file.truncate(part.record.itemsize * int(planned.counts[part.axis].sum()))
        biases = filled(Draft(temporary, planned))
        index = {f"counts.{axis}": counts for axis, counts in planned.counts.items()}
        index |= {f"starts.{axis}": starts for axis, starts in _starts(planned, examples.cuts()).items()}
        index |= {f"bias.{stack}": bias.numpy() for stack, bias in biases.items()}
        save_file(index, temporary / INDEX)
        seal(temporary, {"parts": [asdict(part) for part in planned.parts], "last": last, "about": about})


class CachedTeacher:
    """Signals from a cache: what `LiveTeacher` gives for the same batch, in the cache's precision.

    Batches carry the numbers of their examples under `row`. What does not count (padding) is zero.
    """

    stored = True

    def __init__(self, folder: Path, task: Task) -> None:
        contents = sealed(folder)
        if contents is None:
            raise CacheRefused(reason=f"{folder} is damaged")
        self.task, self.last = task, str(contents["last"])
        given = ({**part, "place": tuple(part["place"])} for part in contents["parts"])
        self.parts = [Part(**{**part, "temperatures": tuple(part["temperatures"])}) for part in given]
        index = load_file(folder / INDEX)
        self.starts, self.counts, self.bias = (
            {name.split(".", 1)[1]: values for name, values in index.items() if name.startswith(kind)}
            for kind in ("starts.", "counts.", "bias.")
        )
        self.mapped = {part.file: _mapped(folder / part.file) for part in self.parts}
        self.files = {part.file: np.frombuffer(self.mapped[part.file], part.record) for part in self.parts}

    def signal(self, batch: Batch) -> Signal:
        """Signals of the batch's examples, without gradients."""
        numbers: Indices = batch["row"].cpu().numpy()
        masks = axes(self.task, batch, self.last)
        signal = Signal()
        found = {axis: self._records(axis, numbers) for axis in self.counts}
        for part in self.parts:
            values = part.decode(np.asarray(self.files[part.file][found[part.axis]]), masks[part.axis])
            part.put(signal, values)
        if hasattr(mmap, "MADV_DONTNEED"):  # all but Windows
            for mapped in self.mapped.values():
                # What was read stays in the system's memory, while there is room, and is not counted as ours.
                mapped.madvise(mmap.MADV_DONTNEED)
        for stack, bias in self.bias.items():
            width = masks[stack].shape[1]
            # Rows may be padded beyond the longest that was seen; nothing counts there.
            beyond = max(0, width - len(bias))
            whole = nn.functional.pad(torch.from_numpy(bias[:width, :width]), (0, 0, 0, beyond, 0, beyond))
            signal.bias[stack] = whole.to(masks[stack].device)
        return signal

    def _records(self, axis: str, numbers: Indices) -> Indices:
        """Numbers of the records of some examples, one after the other."""
        counts = self.counts[axis][numbers]
        ends = np.cumsum(counts)
        places: Indices = np.repeat(self.starts[axis][numbers] - (ends - counts), counts) + np.arange(counts.sum())
        return places


def _mapped(file: Path) -> mmap.mmap:
    with file.open("rb") as stream:
        return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)


def last_stack(teacher: PretrainedConfig) -> str:
    """Name of the stack that the logits come from."""
    return family_of(teacher).stacks[-1].name
