"""The product itself: `nlp_distill.run` up to the end of the distillation; a block is an epoch of it.

An epoch ends with the event `metric`, after its scoring: what a run does beside its steps is counted too.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, concatenate_datasets
from gate import Gate
from torch import Tensor

import nlp_distill
from nlp_distill import batches, loop, losses, objective, road, rows, signals, teaching
from nlp_distill.recipe import Recipe, Training


def main(settings: dict[str, Any]) -> None:
    """`recipe`: as a mapping, the teacher ready to use; `examples` and `tokens` of an epoch; `without` which gains."""
    torch.set_num_threads(settings["threads"])
    without(settings["without"])
    if settings["vocabulary_of"]:
        trim_to(settings["vocabulary_of"])
    gate = Gate()

    def notify(kind: str, **fields: Any) -> None:
        if kind == "stage" and "unfilled tensors" in settings["without"]:
            torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
        if kind == "metric" and fields["stage"] == "distill":
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            gate.block(examples=settings["examples"], tokens=settings["tokens"])

    with tempfile.TemporaryDirectory() as folder:
        nlp_distill.run(Recipe.model_validate(settings["recipe"]), out=folder + "/run", until="distill", notify=notify)


def without(gains: Sequence[str]) -> None:
    """For an ablation: take out what no setting turns off."""
    for gain in gains:
        for module, name, instead in OUT[gain]:
            if not hasattr(module, name):
                raise AttributeError(f"{module.__name__} has no {name}")
            setattr(module, name, instead)


def plain_adamw(module: torch.nn.Module, settings: Training) -> torch.optim.AdamW:
    """AdamW as torch makes it unasked."""
    given = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(given, lr=settings.learning_rate, weight_decay=settings.weight_decay)


def all_at_once(
    loss: Callable[..., Tensor], student: Sequence[Tensor], fixed: Sequence[Tensor], _scores: int
) -> Tensor:
    """A loss of all examples together, as autograd differentiates it."""
    return loss(*student, *fixed)


def whole(model: Any, request: Any, early: bool = False) -> AbstractContextManager[signals.Signal]:
    """A teacher's forward goes on to its end."""
    return CAPTURE(model, request)


def trim_to(texts: str) -> None:
    """Trim vocabularies to the texts of a file: an epoch here is short, a real one has more words."""
    told = [json.loads(line)["text"] for line in Path(texts).read_text(encoding="utf-8").split("\n") if line]
    trimmed = road.trimmed  # type: ignore[attr-defined]

    def trimmed_to_all(tokenizer: Any, features: Dataset) -> Any:
        more = Dataset.from_dict({"input_ids": tokenizer(told)["input_ids"]})
        return trimmed(tokenizer, concatenate_datasets([features.select_columns("input_ids"), more]))

    road.trimmed = trimmed_to_all  # type: ignore[attr-defined]


NEVER_CUT = dict.fromkeys(batches.FORWARD, math.inf)
CAPTURE = signals.capture
OUT: dict[str, list[tuple[Any, str, Any]]] = {
    "sorting": [(batches, "MEGA_BATCH_STEPS", 1), (batches, "GROUPS", 1), (rows, "FORWARD", NEVER_CUT)],
    "several lengths a step": [(batches, "GROUPS", 1)],
    "cuts by padding": [(rows, "FORWARD", NEVER_CUT)],
    "kept memory": [(loop, "keep_freed_memory", lambda: False)],
    "scoring": [(loop, "selection_score", lambda *_: (0.0, 0.0))],
    "fused AdamW": [(loop, "adamw", plain_adamw)],
    "embeddings in place": [(loop, "embeddings_in_place", nullcontext)],
    "quick noise": [(loop, "fast_dropout", nullcontext)],
    "attention by heads": [(loop, "attention_by_heads", nullcontext)],
    "attention terms by examples": [(objective, "by_examples", all_at_once)],
    "early stop": [(signals, "capture", whole)],
    "shared encoder": [(teaching, "may_share_encoder", lambda *_: False)],
    "attention terms by width": [(losses, "LONG", math.inf)],
    "chunked KL": [(objective, "CHUNK", math.inf)],
    # Turned on again by every stage: main does it.
    "unfilled tensors": [],
}
"""A gain and what stands for it: a name of a module, and its value."""


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
