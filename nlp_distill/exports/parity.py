"""Export is not done until it is proven: outputs compared on real rows."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from nlp_distill.errors import ParityFailed
from nlp_distill.scores import agreement
from nlp_distill.task import Task

ALLOWED = 1e-4
"""Largest difference of a logit between PyTorch and an fp32 export; relative where logits exceed 10."""


def parity(task: Task, reference: NDArray[Any], exported: NDArray[Any]) -> dict[str, Any]:
    """Differences of raw outputs [rows, labels]: the largest, and how many decisions changed."""
    same = agreement(task, reference, exported)
    return {
        "rows": len(reference),
        "max_abs_difference": float(np.abs(reference - exported).max()),
        "flips": 0 if same is None else round((1 - same) * len(reference)),
    }


def require_parity(name: str, found: dict[str, Any], largest_logit: float) -> None:
    """Raise `ParityFailed` unless an fp32 export agrees with PyTorch."""
    allowed = ALLOWED * max(1.0, largest_logit / 10)
    # Written so that NaN, which is not greater than anything, fails too.
    if not found["max_abs_difference"] <= allowed or found["flips"]:
        raise ParityFailed(
            name=name,
            difference=found["max_abs_difference"],
            rows=found["rows"],
            flips=found["flips"],
            stage="export",
            reason="no parity",
        )
