"""The roofline: the matrix products of a step alone, as `torch.mm`, in the shapes of steps of one length.

Where ours runs its last layer for [CLS] alone, so does this: two products over all tokens, the others over one a row.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from feed import Feed
from gate import Gate

LAYERS, WIDTH, INNER = 3, 384, 1536


def products(tokens: int, rows: int, lean: bool) -> list[tuple[int, tuple[int, int]]]:
    """How many rows the products of a step have, and their weights' shapes: query, key, value, output, feed-forward.

    `lean`: of the last layer only keys and values are made of all `tokens`, the rest of one token of each of `rows`.
    """
    others = [(WIDTH, WIDTH)] * 2 + [(WIDTH, INNER), (INNER, WIDTH)]
    layer = [(tokens, (WIDTH, WIDTH))] * 2 + [(tokens, shape) for shape in others]
    last = [(tokens, (WIDTH, WIDTH))] * 2 + [(rows if lean else tokens, shape) for shape in others]
    return layer * (LAYERS - 1) + last


def main(settings: dict[str, Any]) -> None:
    """`precision`, `feed`, `rows`, `steps`, `lean`. Forward, and the gradients of inputs and of weights; no maps."""
    torch.set_num_threads(settings["threads"])
    gate = Gate()
    kind = torch.bfloat16 if settings["precision"] == "bf16" else torch.float32
    weights = {shape: torch.randn(shape, dtype=kind) for shape in ((WIDTH, WIDTH), (WIDTH, INNER), (INNER, WIDTH))}
    sides = torch.randn(4096, WIDTH, dtype=kind), torch.randn(4096, INNER, dtype=kind)
    of = {side.shape[1]: side for side in sides}
    for batch in Feed(Path(settings["rows"]), settings["feed"], settings["steps"]).batches(gate):
        for count, shape in products(batch["input_ids"].numel(), len(batch["input_ids"]), settings["lean"]):
            rows, after = (of[side][:count] for side in shape)
            torch.mm(rows, weights[shape])
            torch.mm(after, weights[shape].t())
            torch.mm(rows.t(), after)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
