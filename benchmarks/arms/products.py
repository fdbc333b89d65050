"""The roofline: the matrix products of a step alone, as `torch.mm`, in the shapes of steps of one length."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from feed import Feed
from gate import Gate

LAYERS, WIDTH, INNER = 3, 384, 1536


def main(settings: dict[str, Any]) -> None:
    """`precision`, `feed`, `rows`, `steps`. Forward, and the gradients of inputs and of weights; no attention maps."""
    torch.set_num_threads(settings["threads"])
    gate = Gate()
    kind = torch.bfloat16 if settings["precision"] == "bf16" else torch.float32
    shapes = [(WIDTH, WIDTH)] * 4 + [(WIDTH, INNER), (INNER, WIDTH)]
    weights = {shape: torch.randn(shape, dtype=kind) for shape in set(shapes)}
    sides = torch.randn(4096, WIDTH, dtype=kind), torch.randn(4096, INNER, dtype=kind)
    of = {side.shape[1]: side for side in sides}
    for batch in Feed(Path(settings["rows"]), settings["feed"], settings["steps"]).batches(gate):
        tokens = batch["input_ids"].numel()
        for _ in range(LAYERS):
            for shape in shapes:
                rows, after = (of[side][:tokens] for side in shape)
                torch.mm(rows, weights[shape])
                torch.mm(after, weights[shape].t())
                torch.mm(rows.t(), after)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
