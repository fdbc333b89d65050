"""A smaller vocabulary for the student: the pieces that its training text uses, and all that is needed to spell.

Text of which every piece was kept is cut exactly as before (`_needed` says why), so that on the training rows
teacher and student see the same tokens under other ids. Other text is spelled with smaller pieces.
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nlp_distill.errors import VocabularyUntrimmable

Ids = NDArray[np.int64]
KINDS = ("WordPiece", "Unigram", "BPE")
COLUMN = "input_ids"


SAMPLED = 200
ODD = "Ünïté don't 12,5 東京 ﬁ\u00a0x"
"""What normalizers and cuts treat apart, beside a vocabulary's own pieces."""


def reads_alike(ours: PreTrainedTokenizerBase, theirs: PreTrainedTokenizerBase) -> bool:
    """Whether two tokenizers read a text as the same ids.

    Of one vocabulary they must agree about some 200 of its pieces in small and in capital letters, too: normalizer,
    merges and template may differ.
    """
    vocabulary = theirs.get_vocab()
    if ours.get_vocab() != vocabulary:
        return False
    ids = sorted(vocabulary.values())[:: len(vocabulary) // SAMPLED + 1]
    pieces = theirs.decode(ids, skip_special_tokens=True)
    sample = f"{pieces} {pieces.upper()} {ODD}"
    mine, other = (tokenizer(sample, verbose=False)["input_ids"] for tokenizer in (ours, theirs))
    return bool(mine == other)


@dataclass(frozen=True)
class Trim:
    """A vocabulary's kept ids, in order: the place of an id is its new id. `tokenizer`: with the new ids."""

    kept: Ids
    tokenizer: PreTrainedTokenizerBase
    before: int

    def ours(self, features: Dataset) -> Dataset:
        """Examples of the whole tokenizer with the student's ids; all their pieces must have been kept."""
        new = np.full(int(self.kept.max()) + 1, -1, dtype=np.int64)
        new[self.kept] = np.arange(len(self.kept))
        return _with_ids(features, lambda ids: new[ids])

    def theirs(self, features: Dataset) -> Dataset:
        """Examples with the student's ids as the whole tokenizer numbers them."""
        return _with_ids(features, lambda ids: self.kept[ids])

    def ids(self) -> Tensor:
        """The whole vocabulary's id of each of the student's."""
        return torch.from_numpy(self.kept)

    def about(self, whole: Dataset, ours: Dataset) -> dict[str, Any]:
        """What becomes of text that was not learnt from, read by both tokenizers.

        `respelled`: share of its tokens that were not kept; `rows`: share of its examples that have one; `longer`:
        how many more tokens it takes, as a share.
        """
        flat, counts = _flat(whole)
        lost = ~np.isin(flat, self.kept)
        rows = np.repeat(np.arange(len(counts)), counts)
        touched = len(np.unique(rows[lost])) / max(1, len(counts))
        return {
            "tokens": len(self.kept),
            "before": self.before,
            "respelled": round(float(lost.mean()), 5),
            "rows": round(touched, 4),
            "longer": round(len(_flat(ours)[0]) / max(1, len(flat)) - 1, 5),
        }


def _with_ids(features: Dataset, number: Any) -> Dataset:
    table = features.with_format("arrow")[:]
    column = table.column(COLUMN).combine_chunks()
    ids = pa.array(number(column.flatten().to_numpy()), type=column.type.value_type)
    offsets = np.concatenate([[0], np.cumsum(column.value_lengths().to_numpy())])
    made = type(column).from_arrays(pa.array(offsets, type=_offsets(column)), ids)
    return Dataset(table.set_column(table.column_names.index(COLUMN), COLUMN, made))


def _offsets(column: Any) -> Any:
    return pa.int64() if pa.types.is_large_list(column.type) else pa.int32()


def _flat(features: Dataset) -> tuple[Ids, Ids]:
    """All ids, and how many each example has."""
    column = features.with_format("arrow")[:].column(COLUMN).combine_chunks()
    return column.flatten().to_numpy(), column.value_lengths().to_numpy()


def check_trimmable(tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer that could not spell any more. Raises `VocabularyUntrimmable`."""
    kind = _state(tokenizer)["model"].get("type") if tokenizer.is_fast else "slow"
    if kind not in KINDS:
        raise VocabularyUntrimmable(reason=f"a {kind} tokenizer cannot spell a word that it does not know")


def trimmed(tokenizer: PreTrainedTokenizerBase, features: Dataset) -> Trim:
    """The vocabulary that examples of this tokenizer need, and a tokenizer of it. Raises `VocabularyUntrimmable`."""
    check_trimmable(tokenizer)
    state = _state(tokenizer)
    vocabulary = tokenizer.get_vocab()
    kept = _needed(tokenizer, state, {int(i) for i in np.unique(_flat(features)[0])})
    new = {old: ours for ours, old in enumerate(sorted(kept))}
    _renumber(state, new)
    made = copy.deepcopy(tokenizer)
    made._tokenizer = Tokenizer.from_str(json.dumps(state))
    # A SentencePiece model with the old ids must not be saved beside it.
    if getattr(made, "vocab_file", "").endswith(".model"):
        made.vocab_file = None
    if made.get_vocab() != {token: new[old] for token, old in vocabulary.items() if old in new}:
        raise VocabularyUntrimmable(reason="its added tokens are numbered in another order than its own")
    return Trim(np.array(sorted(kept), dtype=np.int64), made, len(vocabulary))


def _state(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    state: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    return state


def _needed(tokenizer: PreTrainedTokenizerBase, state: dict[str, Any], seen: set[int]) -> set[int]:
    """Ids to keep: those seen, special ones, and what spells everything else.

    Greedy longest match (WordPiece) and the best path (Unigram) choose among kept pieces what they chose among all,
    where that was kept. Of merges (BPE) a kept piece's own are kept, down to letters; no other was applied.
    """
    model, pieces = state["model"], _pieces(state)
    prefix, suffix = (model.get(name) or "" for name in ("continuing_subword_prefix", "end_of_word_suffix"))
    added = {int(token["id"]) for token in state["added_tokens"]}
    kept = seen | added | {int(i) for i in tokenizer.all_special_ids}
    # RoBERTa and its like count positions from the padding's id, which must stay what it is.
    kept |= {number for number in pieces.values() if number <= (tokenizer.pad_token_id or 0)}
    if model.get("unk_token") in pieces:
        kept.add(pieces[model["unk_token"]])
    if model["type"] == "Unigram":
        # What an unknown character costs depends on the least likely piece.
        kept |= {model["unk_id"] or 0, min(range(len(model["vocab"])), key=lambda i: model["vocab"][i][1])}
    for piece, number in pieces.items():
        letters = _letters(piece, prefix, suffix)
        byte = model.get("byte_fallback") and piece.startswith("<0x")
        if letters == [piece] or byte or any(letter not in pieces for letter in letters):
            kept.add(number)
    if model["type"] == "BPE":
        _add_parts(model, pieces, kept, prefix)
    return kept


def _pieces(state: dict[str, Any]) -> dict[str, int]:
    vocabulary = state["model"]["vocab"]
    if isinstance(vocabulary, dict):
        return vocabulary
    return {piece: number for number, (piece, _) in enumerate(vocabulary)}


def _letters(piece: str, prefix: str, suffix: str) -> list[str]:
    """The smallest pieces that could spell a piece."""
    inside = bool(prefix) and piece.startswith(prefix)
    end = suffix if suffix and piece.endswith(suffix) else ""
    body = piece[len(prefix) * inside : len(piece) - len(end)]
    letters = [letter if number == 0 and not inside else prefix + letter for number, letter in enumerate(body)]
    return [*letters[:-1], letters[-1] + end] if letters else [piece]


def _add_parts(model: dict[str, Any], pieces: dict[str, int], kept: set[int], prefix: str) -> None:
    """Keep what kept pieces are merged from, and of the merges those whose product is kept."""
    merges = [merge.split(" ", 1) if isinstance(merge, str) else merge for merge in model["merges"]]
    parts: dict[int, set[int]] = {}
    for left, right in merges:
        parts.setdefault(pieces[left + right.removeprefix(prefix)], set()).update({pieces[left], pieces[right]})
    waiting = list(kept)
    while waiting:
        more = parts.get(waiting.pop(), set()) - kept
        kept |= more
        waiting += more
    model["merges"] = [[left, right] for left, right in merges if pieces[left + right.removeprefix(prefix)] in kept]


def _renumber(state: dict[str, Any], new: dict[int, int]) -> None:
    """Write the new ids into a tokenizer's JSON."""
    model = state["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {piece: new[old] for piece, old in model["vocab"].items() if old in new}
    else:
        model["vocab"] = [entry for old, entry in enumerate(model["vocab"]) if old in new]
        if model["unk_id"] is not None:
            model["unk_id"] = new[model["unk_id"]]
    for token in state["added_tokens"]:
        token["id"] = new[token["id"]]
    _renumber_processor(state["post_processor"] or {}, new)


def _renumber_processor(processor: dict[str, Any], new: dict[int, int]) -> None:
    for part in processor.get("processors", []):
        _renumber_processor(part, new)
    for name in ("sep", "cls"):
        if name in processor:
            processor[name][1] = new[processor[name][1]]
    for special in (processor.get("special_tokens") or {}).values():
        special["ids"] = [new[old] for old in special["ids"]]


def trim_model(model: PreTrainedModel, trim: Trim) -> None:
    """Leave a model the kept rows of its embeddings, in place."""
    table = model.get_input_embeddings().weight.data
    table[: len(trim.kept)] = table[trim.ids()]
    model.resize_token_embeddings(len(trim.kept), mean_resizing=False)
    for name, old in model.config.to_dict().items():
        if name.endswith("_token_id") and isinstance(old, int) and old in trim.kept:
            setattr(model.config, name, int(np.searchsorted(trim.kept, old)))
