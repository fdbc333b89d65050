"""A model folder's fast tokenizer without transformers."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from tokenizers import Encoding, Tokenizer

from nlp_distill.errors import ModelNotFound
from nlp_distill.light.stated import PLAIN
from nlp_distill.loading import NO_LIMIT, position_limit
from nlp_distill.vetting import inside, tokenizer_settings

WITHOUT_TYPES = ("DistilBert", "Roberta", "XLMRoberta", "Camembert", "MPNet", "Bart", "Barthez")
"""Tokenizers that give no types of tokens unless their settings say so."""


class LightTokenizer:
    """Encodes one text or pair as the pipelines do. Safe to share between threads."""

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        settings = tokenizer_settings(folder, "tokenizer_config.json")
        file = inside(folder, "tokenizer.json")
        try:
            self._tokenizer = Tokenizer.from_str(file.read_text(encoding="utf-8") if file else "")
        except Exception as error:
            # The tokenizers library raises nothing more precise.
            reason = f"its tokenizer cannot be read ({error})"
            raise ModelNotFound(reference=str(folder), reason=reason, fix="Get the files anew.") from error
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._side = settings.get("truncation_side", "right")
        self._truncation: tuple[Any, ...] | None = None
        self._lock = threading.Lock()
        self.names = input_names(settings)
        self.model_max_length = int(min(settings.get("model_max_length") or NO_LIMIT, _limit(config)))
        self.vocabulary = self._tokenizer.get_vocab_size()
        first = settings.get("cls_token")
        first = first["content"] if isinstance(first, dict) else first
        self.first_id = self._tokenizer.token_to_id(first) if first else None

    def encode(self, text: str, pair: str | None, max_length: int, strategy: str, stride: int = 0) -> list[Encoding]:
        """The text, or windows of it where it is cut with a stride; special tokens included.

        Raises `ValueError` where nothing of what may be cut would be left.
        """
        truncation = (max_length, stride, strategy)
        # Cutting is a state of the tokenizer.
        with self._lock:
            if truncation != self._truncation:
                self._tokenizer.enable_truncation(max_length, stride=stride, strategy=strategy, direction=self._side)
                self._truncation = truncation
            try:
                whole = self._tokenizer.encode_batch([text if pair is None else (text, pair)])[0]
            except BaseException as error:
                # The tokenizers library raises nothing more precise, or panics.
                if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                    raise
                raise ValueError(str(error)) from error
        return [whole, *whole.overflowing]

    def count(self, text: str) -> int:
        """Tokens of a text alone, without special ones."""
        with self._lock:
            self._tokenizer.no_truncation()
            self._truncation = None
            return len(self._tokenizer.encode(text, add_special_tokens=False))

    def check_room(self, question: str, context: str, max_length: int, stride: int) -> None:
        """Refuse a question that leaves no room for windows of a context that needs several. Raises `ValueError`.

        The tokenizers library panics there.
        """
        with self._lock:
            self._tokenizer.no_truncation()
            self._truncation = None
            asked = len(self._tokenizer.encode(question, add_special_tokens=False))
            room = max_length - self._tokenizer.num_special_tokens_to_add(True) - asked
            if room <= stride and len(self._tokenizer.encode(context, add_special_tokens=False)) > room:
                raise ValueError(f"the question has {asked} tokens, which leaves its context too little room")


def input_names(settings: dict[str, Any]) -> list[str]:
    """The model's inputs that a tokenizer gives, as its settings or else its class say."""
    given = settings.get("model_input_names")
    if isinstance(given, list):
        return [str(name) for name in given]
    kind = str(settings.get("tokenizer_class", PLAIN)).removesuffix("Fast").removesuffix("Tokenizer")
    types = [] if kind in WITHOUT_TYPES else ["token_type_ids"]
    return ["input_ids", *types, "attention_mask"]


def _limit(config: dict[str, Any]) -> int:
    # The one home of this rule reads attributes of a config.
    return position_limit(cast(Any, SimpleNamespace(**config))) or NO_LIMIT
