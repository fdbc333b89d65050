"""The masked-language-model adapter: what differs between learning from unlabelled text and other tasks."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset, DatasetDict
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from nlp_distill import Options, Task, read_splits, require_column
from nlp_distill.errors import ColumnsUnclear, InputInvalid, TextInvalid, TokenizerUnfit
from nlp_distill.recipe import Data
from nlp_distill.settings import Number
from nlp_distill.task import Batch

IGNORED = -100
NAMES = ("text", "sentence", "content", "document", "review", "body")
WORD = re.compile(r"[^\W\d_]{2,}")
FREQUENT = 5
"""A word is asked for when train has it at least this often: others are rarely one token."""
GUESSES = 5
SHOWN = 30
"""Characters of a text that a note quotes."""
RIGHT_MASK, RANDOM = 0.8, 0.1
"""Of the chosen tokens these shares become the mask and a random token (BERT, Devlin et al. 2019)."""


class MaskedOptions(Options):
    """Settings of masked language modelling."""

    mask_share: Number = Field(0.15, gt=0, lt=1, description="Share of an example's tokens that are to be predicted.")


class MaskedLM(Task):
    """Predict hidden tokens of plain text."""

    name = "masked_lm"
    auto_class = "AutoModelForMaskedLM"
    pipeline_task = "fill-mask"
    roles = ("text",)
    offsets = True
    options_model = MaskedOptions
    usage = ("'A [MASK] of yours.'", "'A [MASK] of yours.'")
    needs_head = False
    noisy = True

    primary_metric = "accuracy"
    label_names: list[str] = []  # noqa: RUF012  no labels; never changed
    used: str
    _words: frozenset[str]
    _examples: list[Any]
    _long: str | None = None

    def load_data(self, spec: Data) -> DatasetDict:
        """Rows with `text`, and of each a word to ask for: `begin` and `end`, in characters (equal: none)."""
        self.check_roles(spec.columns)
        source = spec.files if isinstance(spec.files, str) else spec.dataset or "data.files"
        raw = read_splits(spec)
        self.used = self.columns(raw["train"], spec.columns)["text"]
        counts = Counter(word.lower() for text in raw["train"][self.used][:] for word in WORD.findall(str(text)))
        self._words = frozenset(word for word, count in counts.items() if count >= FREQUENT)
        kept = [name for name in ("train", "validation") if name in raw]
        made = DatasetDict({name: self._checked(raw[name], f"{source} {name}") for name in kept})
        self._examples = made["train"]["text"][: min(4, len(made["train"]))]
        return made

    def _checked(self, rows: Dataset, source: str) -> Dataset:
        require_column(rows.column_names, self.used, "text", source)
        texts = rows[self.used][:]
        begins, ends = [], []
        for row, text in enumerate(texts):
            if not isinstance(text, str) or not text.strip():
                raise TextInvalid(source=source, column=self.used, reason="no text", row=row)
            places = [found.span() for found in WORD.finditer(text) if found.group().lower() in self._words]
            chosen = places[_hash(text) % len(places)] if places else (0, 0)
            begins.append(chosen[0])
            ends.append(chosen[1])
        return Dataset.from_dict({"text": texts, "begin": begins, "end": ends})

    def columns(self, dataset: Dataset, given: Mapping[str, Any]) -> dict[str, Any]:
        """The column with the text."""
        self.check_roles(given)
        names = dataset.column_names
        chosen = given.get("text") or next((name for name in NAMES if name in names), None)
        if chosen is None:
            raise ColumnsUnclear(source="data", role="text", columns=", ".join(names))
        require_column(names, chosen, "text", "data")
        return {"text": chosen}

    def features(self, dataset: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Dataset:
        """Tokens of each text, and which of them are special; a text beyond the limit gives several examples."""
        if reason := self.unfit_tokenizer(tokenizer):
            raise TokenizerUnfit(reason=reason)
        texts = dataset["text"][:]
        encoded = tokenizer(
            texts,
            truncation=True,
            max_length=max_length,
            return_special_tokens_mask=True,
            return_overflowing_tokens=True,
        )
        if self._long is None:
            pieces = Counter(encoded["overflow_to_sample_mapping"])
            self._long = _cut([row for row, count in pieces.items() if count > 1], texts, max_length)
        names = [name for name in tokenizer.model_input_names if name in encoded]
        columns = {name: encoded[name] for name in names}
        special = encoded["special_tokens_mask"]
        return Dataset.from_dict({**columns, "special": special, "example_id": range(len(special))})

    def unfit_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> str | None:
        """Words are hidden behind its mask."""
        return "it has no mask token" if tokenizer.mask_token_id is None else None

    def collate(
        self, tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig
    ) -> Callable[[list[dict[str, Any]]], Batch]:
        """Pad to the longest example; hide tokens by its `noise`, so that each pass hides others."""
        # A table may have more rows than there are words, and a teacher's fewer than its student's.
        mask, words = tokenizer.mask_token_id, min(config.vocab_size, len(tokenizer))

        def hide(row: dict[str, Any]) -> tuple[list[int], list[int]]:
            chance = np.random.default_rng(row["noise"])
            ids, special = np.array(row["input_ids"]), np.array(row["special"], dtype=bool)
            order = chance.permutation(np.flatnonzero(~special))
            chosen = order[: max(1, round(self.options.mask_share * len(order)))]
            labels = np.full(len(ids), IGNORED)
            labels[chosen] = ids[chosen]
            kind = chance.random(len(chosen))
            others = chance.integers(0, words, len(chosen))
            random = np.where(kind < RIGHT_MASK + RANDOM, others, ids[chosen])
            ids[chosen] = np.where(kind < RIGHT_MASK, mask, random)
            return ids.tolist(), labels.tolist()

        def collate(rows: list[dict[str, Any]]) -> Batch:
            hidden = [hide(row) for row in rows]
            inputs = [
                {**{name: row[name] for name in tokenizer.model_input_names if name in row}, "input_ids": ids}
                for row, (ids, _) in zip(rows, hidden, strict=True)
            ]
            batch: Batch = dict(tokenizer.pad(inputs, padding=True, return_tensors="pt"))
            width = batch["input_ids"].shape[1]
            batch["labels"] = torch.tensor([labels + [IGNORED] * (width - len(labels)) for _, labels in hidden])
            batch["example_id"] = torch.tensor([row["example_id"] for row in rows])
            return batch

        return collate

    def logits(self, outputs: Any, batch: Batch) -> dict[str, Tensor]:
        """Over the vocabulary, of the hidden tokens of the whole batch: [hidden, V]."""
        return {"logits": outputs.logits[batch["labels"] != IGNORED]}

    def label_loss(self, outputs: Any, batch: Batch) -> Tensor:
        """Sum over the hidden tokens of the cross entropy."""
        hidden = batch["labels"] != IGNORED
        return F.cross_entropy(outputs.logits[hidden].float(), batch["labels"][hidden], reduction="sum")

    def term_mask(self, batch: Batch, signal: str, stack: str) -> Tensor:
        """Every hidden token; of layers every token that is not padding."""
        if signal in ("logits", "labels"):
            hidden: Tensor = batch["labels"] != IGNORED
            return hidden[hidden]
        mask: Tensor = batch["attention_mask"].bool()
        return mask

    def pipeline_inputs(self, dataset: Dataset) -> list[Any]:
        """Each text with the place of the word that is asked for; `answers` hides it."""
        rows = zip(dataset["text"][:], dataset["begin"][:], dataset["end"][:], strict=True)
        return [{"text": text, "begin": begin, "end": end} for text, begin, end in rows]

    def pipeline_settings(self, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
        """Texts are cut at the model's limit."""
        return {"tokenizer_kwargs": {"truncation": True, "max_length": tokenizer.model_max_length}}

    def ask(self, pipe: Any, text: str, text_pair: str | None) -> Any:
        """The likeliest tokens for the word that the text hides."""
        _require_mask(pipe, text)
        return super().ask(pipe, text, text_pair)

    def ask_all(self, pipe: Any, rows: list[tuple[str, str | None]], batch_size: int) -> list[Any]:
        """The likeliest tokens for the words that several texts hide."""
        for text, _ in rows:
            _require_mask(pipe, text)
        return super().ask_all(pipe, rows, batch_size)

    def answers(self, pipe: Any, inputs: list[Any], batch_size: int) -> list[Any]:
        """The likeliest tokens for each hidden word; none where a text has no word to ask for."""
        asked = [row for row in inputs if row["end"] > row["begin"]]
        texts = [_hidden(row, pipe.tokenizer) for row in asked]
        found = pipe(texts, batch_size=batch_size, top_k=GUESSES) if texts else []
        # Of one text the pipeline gives its guesses alone.
        guesses = iter([found] if len(texts) == 1 else found)
        return [next(guesses) if row["end"] > row["begin"] else [] for row in inputs]

    def raw_outputs(self, answers: list[Any]) -> NDArray[Any]:
        """The likeliest tokens of each row, the best first."""
        raw = np.empty(len(answers), dtype=object)
        raw[:] = [{"guesses": [guess["token_str"].strip().lower() for guess in row]} for row in answers]
        return raw

    def statistics(self, raw: NDArray[Any], dataset: Dataset) -> dict[str, NDArray[Any]]:
        """Whether the hidden word is the first guess, or among them; NaN where nothing was asked.

        A word of several tokens can never be guessed, by no variant.
        """
        words = [row["text"][row["begin"] : row["end"]].lower() for row in self.pipeline_inputs(dataset)]
        first, among = [], []
        for row, word in zip(raw, words, strict=True):
            first.append(float(row["guesses"][:1] == [word]) if word else np.nan)
            among.append(float(word in row["guesses"]) if word else np.nan)
        return {"accuracy": np.array(first), f"accuracy_top{GUESSES}": np.array(among)}

    def score_statistics(self, statistics: Mapping[str, NDArray[Any]]) -> dict[str, float]:
        """Shares of the words that were asked for."""
        asked = {name: values[~np.isnan(values)] for name, values in statistics.items()}
        return {name: 100.0 * float(values.mean()) if len(values) else 0.0 for name, values in asked.items()}

    def decisions(self, raw: NDArray[Any]) -> NDArray[Any]:
        """The first guesses; None where no word was hidden."""
        return np.array([(row["guesses"] or [None])[0] for row in raw], dtype=object)

    def truths(self, dataset: Dataset) -> list[str]:
        """The hidden words."""
        return [row["text"][row["begin"] : row["end"]] for row in self.pipeline_inputs(dataset)]

    def example_inputs(self) -> list[Any]:
        """The first texts of train."""
        return self._examples

    def shown_input(self, names: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> str:
        """A text with the tokenizer's mask."""
        return f"A {tokenizer.mask_token} of yours."

    def notes(self) -> dict[str, str]:
        """The column, and what is scored."""
        return {
            "columns": f"text in '{self.used}'",
            "metrics": "share of hidden words, one a text, that are guessed (all letters in lower case)",
            **({"texts": self._long} if self._long else {}),
        }


def _cut(long: list[int], texts: list[str], max_length: int) -> str:
    """A note, or nothing."""
    if not long:
        return ""
    begin = texts[long[0]][:SHOWN].strip()
    return f"{len(long):,} of {len(texts):,} have more than {max_length} tokens and are cut in pieces ('{begin}' …)"


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


def _hidden(row: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> str:
    """The text with its word hidden, and with only so many tokens around it as surely fit; no other word is hidden."""
    mask, most = str(tokenizer.mask_token), max(1, tokenizer.model_max_length // 3)
    sides = [row["text"][: row["begin"]].replace(mask, ""), row["text"][row["end"] :].replace(mask, "")]
    read = tokenizer(sides, add_special_tokens=False, return_offsets_mapping=True, truncation=False, verbose=False)
    left, right = read["offset_mapping"]
    begin = left[-most][0] if len(left) > most else 0
    end = right[most - 1][1] if len(right) > most else None
    return f"{sides[0][begin:]}{mask}{sides[1][:end]}"


def _require_mask(pipe: Any, text: str) -> None:
    mask = pipe.tokenizer.mask_token
    if mask not in text:
        raise InputInvalid(what="The text", reason="it hides no word", fix=f"write {mask} in its place")
