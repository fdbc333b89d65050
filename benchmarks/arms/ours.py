"""The product itself: `nlp_distill.run` up to the end of the distillation; a block is an epoch of it.

An epoch ends with the event `metric`, after its scoring: what a run does beside its steps is counted too.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, concatenate_datasets
from gate import Gate

import nlp_distill
from nlp_distill import batches, loop, road
from nlp_distill.recipe import Recipe, Training


def main(settings: dict[str, Any]) -> None:
    """`recipe`: as a mapping, the teacher ready to use; `examples` and `tokens` of an epoch."""
    torch.set_num_threads(settings["threads"])
    without(settings["without"])
    if settings["vocabulary_of"]:
        trim_to(settings["vocabulary_of"])
    gate = Gate()

    def notify(kind: str, **fields: Any) -> None:
        if kind == "stage" and settings["without"] == "unfilled tensors":
            torch.utils.deterministic.fill_uninitialized_memory = True
        if kind == "metric" and fields["stage"] == "distill":
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            gate.block(examples=settings["examples"], tokens=settings["tokens"])

    with tempfile.TemporaryDirectory() as folder:
        nlp_distill.run(Recipe.model_validate(settings["recipe"]), out=folder + "/run", until="distill", notify=notify)


def without(gain: str) -> None:
    """For an ablation: take out what no setting turns off."""
    if gain == "sorting":
        batches.MEGA_BATCH_STEPS = batches.GROUPS = 1
        batches.FORWARD["cpu"] = batches.FORWARD["cpu, bf16"] = math.inf
    elif gain == "several lengths a step":
        batches.GROUPS = 1
    elif gain == "kept memory":
        loop.keep_freed_memory = lambda: False
    elif gain == "scoring":
        loop.selection_score = lambda *_: (0.0, 0.0)
    elif gain == "fused AdamW":
        loop.adamw = plain_adamw
    elif gain == "embeddings in place":
        loop.embeddings_in_place = nullcontext
    elif gain == "quick noise":
        loop.fast_dropout = nullcontext
    elif gain == "attention by heads":
        loop.attention_by_heads = nullcontext


def plain_adamw(module: torch.nn.Module, settings: Training) -> torch.optim.AdamW:
    """AdamW as torch makes it unasked."""
    given = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(given, lr=settings.learning_rate, weight_decay=settings.weight_decay)


def trim_to(texts: str) -> None:
    """Trim vocabularies to the texts of a file: an epoch here is short, a real one has more words."""
    rows = [json.loads(line)["text"] for line in Path(texts).read_text(encoding="utf-8").split("\n") if line]
    trimmed = road.trimmed

    def trimmed_to_all(tokenizer: Any, features: Dataset) -> Any:
        more = Dataset.from_dict({"input_ids": tokenizer(rows)["input_ids"]})
        return trimmed(tokenizer, concatenate_datasets([features.select_columns("input_ids"), more]))

    road.trimmed = trimmed_to_all


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
