"""Tokenised examples, and how they become micro-batches on a device."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from datasets import Dataset
from transformers import PretrainedConfig

from nlp_distill.batches import FORWARD, Indices, derived_seed, micro_batches
from nlp_distill.families import family_of
from nlp_distill.signals import moved
from nlp_distill.task import Batch

Item = TypeVar("Item")
Made = TypeVar("Made")
EIGHT = 8
LEAST_TOKENS, MOST_TOKENS = 4096, 65_536
"""In one forward, where no number is given."""
ACTIVATION = 34 * 4
"""Bytes a token, layer and unit of width that a backward pass keeps (Korthikanti et al. 2022), in float32."""
WORD = 4 * 4
"""Bytes a token and word of the vocabulary: logits of two models, their probabilities, a gradient."""


@dataclass
class Rows:
    """Tokenised examples (`Task.features`), with the raw rows that `Task.score` needs. `lengths`: tokens of each.

    `twin`: the same examples read by the teacher's own tokenizer, and the function that pads them.
    """

    features: Dataset
    raw: Dataset
    twin: tuple[Dataset, Callable[[list[dict[str, Any]]], Batch]] | None = None

    def __post_init__(self) -> None:
        given = "length" in self.features.column_names
        lengths = self.features["length"][:] if given else [len(ids) for ids in self.features["input_ids"]]
        self.lengths = np.array(lengths, dtype=np.int64)

    def take(self, indices: Indices, seed: int) -> list[dict[str, Any]]:
        """Examples by number, each with a `noise` of its own that depends on the seed and the example alone."""
        rows = _dicts(self.features, indices)
        for row in rows:
            row["noise"] = derived_seed(seed, row["example_id"])
        return rows

    def batch(self, indices: Indices, seed: int, collate: Callable[[list[dict[str, Any]]], Batch]) -> Batch:
        """Examples as one batch, their numbers under `row`, under `teacher` its own reading where that differs."""
        batch = collate(self.take(indices, seed))
        batch["row"] = torch.from_numpy(indices)
        if self.twin is not None:
            features, read = self.twin
            batch["teacher"] = read(_dicts(features, indices))
        return batch

    def micro_batches(
        self,
        some: Indices,
        max_tokens: int,
        seed: int,
        collate: Callable[[list[dict[str, Any]]], Batch],
        device: torch.device,
        autocast: torch.dtype | None = None,
    ) -> list[Batch]:
        """Examples by number, cut under a token budget and where padding costs more than a cut, on a device.

        `autocast`: the type of the products. bf16 is taken to be quick on a CPU, as where the probe chose it.
        """
        widths = -(-self.lengths // EIGHT) * EIGHT if device.type == "cuda" else self.lengths
        kind = "cpu, bf16" if device.type == "cpu" and autocast is not None else device.type
        cuts = micro_batches(some, widths, max_tokens, FORWARD.get(kind, FORWARD["cuda"]))
        return [to_device(self.batch(cut, seed, collate), device) for cut in cuts]


def _dicts(features: Dataset, indices: Indices) -> list[dict[str, Any]]:
    columns: dict[str, list[Any]] = features[indices.tolist()]
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch, and what it carries of the teacher's, on a device; to a GPU from pinned memory, while it computes.

    The numbers of its examples stay: they are looked up in files.
    """

    def there(name: str, value: Any) -> Any:
        if isinstance(value, dict):
            return to_device(value, device)
        return value if name == "row" else moved(value, device)

    return {name: there(name, value) for name, value in batch.items()}


def token_budget(asked: int | None, config: PretrainedConfig, device: torch.device) -> int:
    """Most tokens in one forward of a model that learns; see `micro_batch_tokens`.

    On a GPU the numbers that a backward pass needs fill half of its memory: the other half is for the weights, the
    teacher, and what terms compare. The same card gives the same number.
    """
    if asked is not None:
        return asked
    if device.type != "cuda":
        return LEAST_TOKENS
    layers = sum(stack.count(config) * stack.width(config) for stack in family_of(config).stacks)
    words = getattr(getattr(config, "decoder", config), "vocab_size", 0)
    fits = torch.cuda.get_device_properties(device).total_memory // 2 // (ACTIVATION * layers + WORD * words)
    return min(max(fits, LEAST_TOKENS), MOST_TOKENS)


def ahead(make: Callable[[Item], Made], items: Iterable[Item], beside: bool) -> Iterator[Made]:
    """`make(item)` of each item, in order; `beside`: the next one is made in a thread while one is in use.

    For a GPU, which leaves the processor idle; on a CPU the thread would take from the training.
    """
    if not beside:
        yield from map(make, items)
        return
    with ThreadPoolExecutor(1) as thread:
        waiting = None
        for item in items:
            following = thread.submit(make, item)
            if waiting is not None:
                yield waiting.result()
            waiting = following
        if waiting is not None:
            yield waiting.result()


def processor_idles(device: torch.device) -> bool:
    """Whether the processor has time to prepare the next step while the device is at one."""
    return device.type == "cuda"


def padded_in_eights(tokenizer: Any) -> Any:
    """The tokenizer, padding to multiples of eight: few shapes, of the widths that a GPU's matrix units work in.

    As it is where its longest text is none, which padding must not exceed.
    """
    if tokenizer.model_max_length % EIGHT:
        return tokenizer
    wide = copy.copy(tokenizer)
    wide.pad = partial(tokenizer.pad, pad_to_multiple_of=EIGHT)
    return wide
