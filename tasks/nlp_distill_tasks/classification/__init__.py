"""Text classification: single label, several labels, regression; one or two texts; GLUE."""

from __future__ import annotations

from nlp_distill_tasks.classification.adapter import Classification

__all__ = ["Classification"]
