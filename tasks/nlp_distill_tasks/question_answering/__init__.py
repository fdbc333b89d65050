"""Extractive question answering: the span of a context that answers a question (SQuAD v1 and v2)."""

from __future__ import annotations

from nlp_distill_tasks.question_answering.adapter import QuestionAnswering

__all__ = ["QuestionAnswering"]
