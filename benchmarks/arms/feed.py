"""Prepared rows as batches, for the loops that are not ours: padded, dynamic, or sorted; or by torch's own loader.

Needs only what the environments of others have: numpy, torch and, for the loader, transformers.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gate import Gate
from torch.utils.data import DataLoader

PAD_TO = 128
BATCH = 32
Batch = dict[str, torch.Tensor]


class Feed:
    """Batches of 32 rows. `kind`: `padded` to 128 and `dynamic` are in random order, `sorted` has steps of one length.

    A block has `steps` steps. The steps are dealt to the blocks of an epoch by their width, so that all blocks have
    about as many tokens.
    """

    def __init__(self, rows: Path, kind: str, steps: int) -> None:
        stored = np.load(rows)
        self.ids, self.starts, order = stored["ids"], stored["starts"], stored[f"order_{kind}"]
        self.kind = kind
        lengths = np.diff(self.starts)
        widths = [int(lengths[step].max()) for step in order]
        blocks = max(1, len(order) // steps)
        ranked = np.argsort(widths, kind="stable")[: blocks * steps].reshape(-1, blocks)
        # Back and forth, or one block would get the widest of every row.
        ranked[1::2] = ranked[1::2, ::-1]
        self.blocks = [[order[number] for number in block] for block in ranked.T]
        self.tokens = float(np.mean([sum(lengths[step].sum() for step in block) for block in self.blocks]))
        self.examples = len(self.blocks[0]) * BATCH

    def batch(self, rows: Any) -> Batch:
        """The model's inputs."""
        taken = [self.ids[self.starts[row] : self.starts[row + 1]] for row in rows]
        width = PAD_TO if self.kind == "padded" else max(len(ids) for ids in taken)
        inputs, mask = np.zeros((2, len(taken), width), dtype=np.int64)
        for place, ids in enumerate(taken):
            inputs[place, : len(ids)], mask[place, : len(ids)] = ids, 1
        return {"input_ids": torch.from_numpy(inputs), "attention_mask": torch.from_numpy(mask)}

    def batches(self, gate: Gate) -> Iterator[Batch]:
        """Endless; the first block is the warm-up."""
        number = 0
        while True:
            for rows in self.blocks[number % len(self.blocks)]:
                yield self.batch(rows)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            gate.block(examples=self.examples, tokens=self.tokens)
            number += 1


class DefaultFeed:
    """Torch's DataLoader as tutorials have it: its defaults, shuffled, padded to the longest by transformers' collator.

    Steps are not dealt: blocks of `steps` have as many tokens as chance gives them.
    """

    def __init__(self, rows: Path, teacher: Path, steps: int) -> None:
        from transformers import AutoTokenizer, DataCollatorWithPadding

        stored = np.load(rows)
        ids = np.split(stored["ids"], stored["starts"][1:-1])
        examples = [{"input_ids": some.tolist(), "attention_mask": [1] * len(some)} for some in ids]
        collate = DataCollatorWithPadding(AutoTokenizer.from_pretrained(teacher))
        torch.manual_seed(0)
        self.loader: DataLoader[Any] = DataLoader(examples, batch_size=BATCH, shuffle=True, collate_fn=collate)  # type: ignore[arg-type]
        self.steps = steps

    def batches(self, gate: Gate) -> Iterator[Batch]:
        """Endless; the first block is the warm-up."""
        number, tokens = 0, 0.0
        while True:
            for batch in self.loader:
                # Counted before it is handed out: others may move it.
                number, tokens = number + 1, tokens + float(batch["attention_mask"].sum())
                yield dict(batch)
                if number == self.steps:
                    gate.block(examples=number * BATCH, tokens=tokens)
                    number, tokens = 0, 0.0


def feed_of(settings: dict[str, Any]) -> Feed | DefaultFeed:
    """The feed that an arm is told to read."""
    if settings["feed"] == "default":
        return DefaultFeed(Path(settings["rows"]), Path(settings["teacher"]), settings["steps"])
    return Feed(Path(settings["rows"]), settings["feed"], settings["steps"])
