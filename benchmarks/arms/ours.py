"""The product itself: `nlp_distill.run` up to the end of the distillation; a block is an epoch of it.

An epoch ends with the event `metric`, after its scoring: what a run does beside its steps is counted too.
"""

from __future__ import annotations

import json
import sys
import tempfile
from typing import Any

import torch
from gate import Gate

import nlp_distill
from nlp_distill.recipe import Recipe


def main(settings: dict[str, Any]) -> None:
    """`recipe`: as a mapping, the teacher ready to use; `examples` and `tokens` of an epoch."""
    torch.set_num_threads(settings["threads"])
    __import__("nlp_distill.stages")
    without(settings.get("without", ""))
    gate = Gate()

    def notify(kind: str, **fields: Any) -> None:
        if kind == "metric" and fields["stage"] == "distill":
            gate.block(examples=settings["examples"], tokens=settings["tokens"])

    with tempfile.TemporaryDirectory() as folder:
        nlp_distill.run(Recipe.model_validate(settings["recipe"]), out=folder + "/run", until="distill", notify=notify)


def without(gain: str) -> None:
    """For an ablation: take out what no setting turns off."""
    if gain == "sorting":
        from nlp_distill import batches

        batches.MEGA_BATCH_STEPS = 1


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
