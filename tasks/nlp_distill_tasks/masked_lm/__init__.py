"""General distillation on unlabelled text: a student for later tasks (DistilBERT, MiniLM)."""

from __future__ import annotations

from nlp_distill_tasks.masked_lm.adapter import MaskedLM

__all__ = ["MaskedLM"]
