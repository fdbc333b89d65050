"""Text to text: translation, summarisation, data to text; models with an encoder and a decoder."""

from __future__ import annotations

from nlp_distill_tasks.seq2seq.adapter import Seq2Seq

__all__ = ["Seq2Seq"]
