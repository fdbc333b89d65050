"""Export is not done until it is proven: outputs compared on real rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nlp_distill.batches import micro_batches
from nlp_distill.errors import ParityFailed
from nlp_distill.rows import Rows
from nlp_distill.signals import model_inputs
from nlp_distill.task import Task

ALLOWED = 1e-4
"""Largest difference of a logit between PyTorch and an fp32 export; relative where logits exceed 10."""
BATCH_TOKENS = 2048


def answer_changes(task: Task, reference: NDArray[Any], exported: NDArray[Any]) -> dict[str, Any]:
    """How many rows get another answer from the pipeline; None where the task decides nothing."""
    ours, theirs = task.decisions(reference), task.decisions(exported)
    flips = None if ours is None or theirs is None else int((ours != theirs).sum())
    return {"rows": len(reference), "flips": flips}


def logit_difference(
    task: Task, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, exported: Any, rows: Rows
) -> dict[str, float]:
    """The largest difference of a logit that counts, and the largest logit, on tokenised rows.

    `exported`: an Optimum ORTModelFor… of the same model.
    """
    collate = task.collate(tokenizer, model.config)
    difference = largest = 0.0
    for cut in micro_batches(np.arange(len(rows.lengths)), rows.lengths, BATCH_TOKENS):
        batch = collate(rows.take(cut, seed=0))
        inputs = model_inputs(batch)
        with torch.inference_mode():
            ours, theirs = (task.logits(answer, batch) for answer in (model(**inputs), exported(**inputs)))
        mask = task.term_mask(batch, "logits", "decoder")
        for name in ours:
            # numpy's maximum keeps a NaN, Python's may lose it.
            found = float((ours[name].float() - theirs[name].float())[mask].abs().max())
            difference = float(np.maximum(difference, found))
            real = ours[name][mask]
            largest = max(largest, float(real[real.abs() < IMPOSSIBLE].abs().max()))
    return {"max_abs_difference": difference, "largest_logit": largest}


IMPOSSIBLE = 1e4
"""Logits beyond it stand for what can never be an answer (`Task.logits`)."""


def require_parity(name: str, found: dict[str, Any]) -> None:
    """Raise `ParityFailed` unless an fp32 export agrees with PyTorch."""
    allowed = ALLOWED * max(1.0, found["largest_logit"] / 10)
    if not found["max_abs_difference"] <= allowed or found["flips"]:
        raise ParityFailed(
            name=name,
            difference=found["max_abs_difference"],
            rows=found["rows"],
            flips=found["flips"],
            stage="export",
            reason="no parity",
        )
