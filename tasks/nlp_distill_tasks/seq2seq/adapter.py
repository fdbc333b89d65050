"""The seq2seq adapter: what differs between text-to-text tasks and others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset, DatasetDict
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor
from transformers import BatchEncoding, GenerationConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from nlp_distill import Options, Task, read_splits
from nlp_distill.errors import TokenizerUnfit
from nlp_distill.recipe import Data
from nlp_distill.settings import Number, Whole
from nlp_distill.task import Batch, Groups
from nlp_distill_tasks.seq2seq.metrics import BLEU_SIGNATURE, CHRF_SIGNATURE, ROUGE_SIGNATURE, scores, statistics
from nlp_distill_tasks.seq2seq.rows import checked, columns, grouped

IGNORED = -100
UNTOLD_LANGUAGE = (
    "it marks texts with their language and has none for targets; write src_lang and tgt_lang, such as en_XX and "
    "de_DE, into a local copy's tokenizer_config.json, or"
)
QUARTERS = 4
FEW, SHOWN = 2, 30
"""How many rows a note quotes, and how many characters of each."""
MANY = 1000
"""Targets that are written and read again."""
UNSET_LENGTH = GenerationConfig().max_length
TOKENS = ("decoder_start_token_id", "pad_token_id", "eos_token_id", "bos_token_id")
UNTOLD = ("transformers_version", "_from_model_config", "max_length", "early_stopping", "use_cache")
"""Settings of a generation config that are not worth a word when they are replaced."""


class Seq2SeqOptions(Options):
    """Settings of text-to-text tasks."""

    metric: str = Field(
        "bleu", pattern="^(bleu|chrf|rouge1|rouge2|rougeL)$", description="What is selected and compared by."
    )
    prefix: str = Field("", description="Text before every source, as T5 was trained with.")
    max_target_length: Whole = Field(
        64, ge=2, le=4096, description="Tokens kept of a target; most tokens of an answer."
    )
    min_target_length: Whole = Field(0, ge=0, le=4096, description="Tokens that an answer has at least.")
    num_beams: Whole = Field(1, ge=1, le=64, description="Beams of the search; 1: greedy.")
    length_penalty: Number = Field(1.0, description="Above 0 favours longer answers of a beam search.")
    no_repeat_ngram_size: Whole = Field(
        0, ge=0, description="No n-gram of this size occurs twice in an answer; 0: any may."
    )

    @model_validator(mode="after")
    def _leaves_room(self) -> Seq2SeqOptions:
        if self.min_target_length > self.max_target_length:
            raise ValueError(f"min_target_length is above max_target_length ({self.max_target_length})")
        return self


class Seq2Seq(Task):
    """Translation, summarisation, data to text."""

    name = "seq2seq"
    auto_class = "AutoModelForSeq2SeqLM"
    pipeline_task = "text2text-generation"
    roles = ("source", "target", "references")
    options_model = Seq2SeqOptions
    warm_start = True
    kin = ("source",)

    label_names: list[str] = []  # noqa: RUF012  no labels; never changed
    used: dict[str, str]
    _noted: dict[str, str]
    _examples: list[Any]

    def __init__(self, options: Mapping[str, Any] | None = None) -> None:
        super().__init__(options)
        self._noted = {}
        self.primary_metric = self.options.metric

    def held(self, rows: Dataset) -> Dataset:
        """Rows of one source are one, with all their references."""
        return grouped(rows)

    def load_data(self, spec: Data) -> DatasetDict:
        """Checked rows with `source`, `target` and `references`."""
        self.check_roles(spec.columns)
        source = spec.files if isinstance(spec.files, str) else spec.dataset or "data.files"
        raw = read_splits(spec)
        self.used = columns(raw["train"], spec.columns, f"{source} train")
        self.check_roles(self.used)
        made = {"train": checked(raw["train"], self.used, f"{source} train", group=False)}
        for name in ("validation", "test"):
            if name in raw and (name == "validation" or "validation" not in raw):
                made[name] = checked(raw[name], self.used, f"{source} {name}", group=True)
        self._examples = self.pipeline_inputs(made["train"].select(range(min(4, len(made["train"])))))
        return DatasetDict(made)

    def columns(self, dataset: Dataset, given: Mapping[str, Any]) -> dict[str, Any]:
        """Role → column."""
        self.check_roles(given)
        return columns(dataset, given, "data")

    def texts(self, dataset: Dataset) -> Iterator[str]:
        """Sources and targets."""
        yield from (self.options.prefix + text for text in dataset["source"][:])
        yield from dataset["target"][:]

    def features(self, dataset: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Dataset:
        """Tokens of the source, and `labels`: tokens of the target, both with the tokenizer's special tokens."""
        if reason := self.unfit_tokenizer(tokenizer):
            raise TokenizerUnfit(reason=reason)
        sources = [self.options.prefix + text for text in dataset["source"][:]]
        targets, limit = dataset["target"][:], self.options.max_target_length
        encoded = tokenizer(sources, truncation=True, max_length=max_length)
        labels = tokenizer(text_target=targets, truncation=True, max_length=limit)["input_ids"]
        self._count_cut("sources", sources, tokenizer(sources), f"max_length {max_length}", max_length)
        whole = tokenizer(text_target=targets)
        self._count_cut("targets", targets, whole, f"max_target_length {limit}", limit)
        if "spelling" not in self._noted:
            self._noted["spelling"] = _misspelt(
                targets, tokenizer.batch_decode(whole["input_ids"][:MANY], skip_special_tokens=True)
            )
        names = [name for name in ("input_ids", "attention_mask") if name in encoded]
        return Dataset.from_dict(
            {
                **{name: encoded[name] for name in names},
                "labels": labels,
                "length": [len(ids) + len(target) for ids, target in zip(encoded["input_ids"], labels, strict=True)],
                "example_id": range(len(labels)),
            }
        )

    def _count_cut(self, what: str, texts: list[str], whole: BatchEncoding, setting: str, limit: int) -> None:
        """A note of the first rows that are read, train's; rows are quoted, as slices have lost their numbers."""
        cut = [text for text, ids in zip(texts, whole["input_ids"], strict=True) if len(ids) > limit]
        shown = ", ".join(f"'{text[:SHOWN].strip()} …'" for text in cut[:FEW])
        self._noted.setdefault(what, f"{len(cut):,} of {len(texts):,} are cut at {setting} ({shown})" if cut else "")

    def unfit(self, config: PretrainedConfig) -> str | None:
        """Tokens that generation begins, ends and pads with must be tokens; targets must fit into the positions."""
        decoder = getattr(config, "decoder", config)
        size, positions = decoder.vocab_size, getattr(decoder, "max_position_embeddings", None)
        if positions is not None and (asked := self.options.max_target_length) > positions:
            return f"options.max_target_length is {asked}, its decoder has {positions} positions; lower it"
        for name in ("decoder_start_token_id", "eos_token_id", "pad_token_id"):
            ids = getattr(config, name)
            known = [ids] if isinstance(ids, int) else ids
            if not known or not all(0 <= token < size for token in known):
                return f"its config.json has the {name} {ids}, which is no token of its {size:,}; set it there"
        return None

    def unfit_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> str | None:
        """One that marks texts with their language must know the targets'."""
        return UNTOLD_LANGUAGE if getattr(tokenizer, "tgt_lang", "") is None else None

    def configure(self, model: PreTrainedModel) -> str | None:
        """How the model generates, saved with it; nothing is left of the way that it generated before.

        Sampling, lengths and forced tokens of another task would make answers that nobody trained.
        """
        options, config, before = self.options, model.config, model.generation_config
        assert before is not None
        # What a config of old still says of generation would win over all that is saved here.
        old = config._get_non_default_generation_parameters()
        # And what it puts before texts, or says of tasks by name, pipelines would take beside the options.
        for name in (*old, "prefix", "task_specific_params"):
            setattr(config, name, None)
        longest = options.max_target_length + 1
        ours = GenerationConfig(
            # With the start token; `max_new_tokens` would leave pipelines without a `max_length` to compare with. The
            # length that is transformers' default, and that its pipelines take for none, gives way to the next.
            max_length=longest if longest != UNSET_LENGTH else longest + 1,
            # With the start token, too.
            min_length=options.min_target_length and options.min_target_length + 1,
            num_beams=options.num_beams,
            length_penalty=options.length_penalty,
            no_repeat_ngram_size=options.no_repeat_ngram_size,
            early_stopping=options.num_beams > 1,
            **{name: getattr(config, name) for name in TOKENS},
        )
        model.generation_config = ours
        theirs = {**old, **before.to_diff_dict()}
        replaced = {k: v for k, v in theirs.items() if k not in UNTOLD and v != getattr(ours, k, None)}
        if not replaced:
            return None
        listed = ", ".join(f"{name} {value}" for name, value in sorted(replaced.items()))
        return f"the model's own way to generate gives way to the options of {self.name}: it had {listed}"

    def collate(
        self, tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig
    ) -> Callable[[list[dict[str, Any]]], Batch]:
        """Pad both sides; the decoder reads the labels one place later, behind the start token."""
        start, pad = config.decoder_start_token_id, config.pad_token_id

        def collate(rows: list[dict[str, Any]]) -> Batch:
            inputs = [{name: row[name] for name in ("input_ids", "attention_mask") if name in row} for row in rows]
            batch: Batch = dict(tokenizer.pad(inputs, padding=True, return_tensors="pt"))
            # A tokenizer that begins texts with the start token (BERT's [CLS]) would make it the first answer.
            targets = [row["labels"][row["labels"][0] == start :] for row in rows]
            width = max(map(len, targets))
            labels = torch.tensor([ids + [IGNORED] * (width - len(ids)) for ids in targets])
            batch["labels"] = labels
            before = torch.full((len(rows), 1), start)
            batch["decoder_input_ids"] = torch.cat([before, labels[:, :-1].masked_fill(labels[:, :-1] < 0, pad)], dim=1)
            batch["example_id"] = torch.tensor([row["example_id"] for row in rows])
            return batch

        return collate

    def logits(self, outputs: Any, batch: Batch) -> dict[str, Tensor]:
        """One distribution over the vocabulary for each token of the target, [B, T, V]."""
        return {"logits": outputs.logits}

    def label_loss(self, outputs: Any, batch: Batch) -> Tensor:
        """Sum over the tokens of the targets of the cross entropy."""
        logits = outputs.logits.float().flatten(0, 1)
        return F.cross_entropy(logits, batch["labels"].flatten(), ignore_index=IGNORED, reduction="sum")

    def term_mask(self, batch: Batch, signal: str, stack: str) -> Tensor:
        """Tokens that are not padding: of the target for logits, labels and the decoder, of the source else."""
        if signal in ("logits", "labels") or stack == "decoder":
            of_target: Tensor = batch["labels"] != IGNORED
            return of_target
        of_source: Tensor = batch["attention_mask"].bool()
        return of_source

    def answer_tokens(self, features: Dataset) -> int | None:
        """The 90th percentile of the targets' lengths."""
        return int(np.percentile([len(ids) for ids in features["labels"]], 90))

    def with_answers(self, dataset: Dataset, raw: NDArray[Any]) -> Dataset:
        """The teacher's texts as targets; where it says nothing the data's stay."""
        texts = [said or given for said, given in zip(raw, dataset["target"][:], strict=True)]
        return dataset.remove_columns("target").add_column("target", texts)

    def pipeline_inputs(self, dataset: Dataset) -> list[Any]:
        """Each source behind its prefix."""
        return [self.options.prefix + text for text in dataset["source"][:]]

    def pipeline_settings(self, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
        """Sources are cut at the tokenizer's limit; the beams are ours, not the four of transformers' pipelines."""
        return {"truncation": True, "num_beams": self.options.num_beams}

    def asked(self, text: str, text_pair: str | None) -> Any:
        """A text behind the prefix that the model was trained with."""
        return super().asked(self.options.prefix + text, text_pair)

    def raw_outputs(self, answers: list[Any]) -> NDArray[Any]:
        """The texts."""
        raw = np.empty(len(answers), dtype=object)
        raw[:] = [(answer[0] if isinstance(answer, list) else answer)["generated_text"].strip() for answer in answers]
        return raw

    def statistics(self, raw: NDArray[Any], dataset: Dataset) -> dict[str, NDArray[Any]]:
        """Counts that BLEU and chrF are made of, and ROUGE, of each row."""
        return statistics(list(raw), dataset["references"][:])

    def score_statistics(self, statistics: Mapping[str, NDArray[Any]]) -> dict[str, float]:
        """All metrics, the chosen one first."""
        found = scores(statistics)
        return {self.primary_metric: found[self.primary_metric], **found}

    def decisions(self, raw: NDArray[Any]) -> NDArray[Any]:
        """The texts."""
        return raw

    def groups(self, raw: NDArray[Any], dataset: Dataset) -> Groups:
        """By the length of the source."""
        found, words = self.statistics(raw, dataset), np.array([len(text.split()) for text in dataset["source"][:]])
        edges = np.unique(np.quantile(words, np.linspace(0, 1, QUARTERS + 1)))
        place = np.searchsorted(edges[1:-1], words, side="left")
        kept = [rows for number in range(max(1, len(edges) - 1)) if (rows := place == number).any()]
        parts = [self.score_statistics({name: values[rows] for name, values in found.items()}) for rows in kept]
        return Groups(
            "source",
            [f"{words[rows].min()} to {words[rows].max()} words" for rows in kept],
            [int(rows.sum()) for rows in kept],
            {name: [part[name] for part in parts] for name in parts[0]},
        )

    def differences(self, raw: NDArray[Any], other: NDArray[Any]) -> NDArray[Any]:
        """One less the share of words that two texts have in common."""
        pairs = [(Counter(ours.split()), Counter(theirs.split())) for ours, theirs in zip(raw, other, strict=True)]
        return np.array([1 - 2 * (a & b).total() / max(1, a.total() + b.total()) if a != b else 0.0 for a, b in pairs])

    def told(self, raw: NDArray[Any]) -> list[str]:
        """The texts."""
        return list(raw)

    def truths(self, dataset: Dataset) -> list[str]:
        """The first of the references."""
        return [references[0] for references in dataset["references"][:]]

    def example_inputs(self) -> list[Any]:
        """The first sources of train."""
        return self._examples

    def notes(self) -> dict[str, str]:
        """Columns, how scores are computed, what was cut, and what the tokenizer cannot write."""
        return {
            "columns": ", ".join(f"{role} in '{name}'" for role, name in self.used.items()),
            "metrics": f"BLEU {BLEU_SIGNATURE}; chrF {CHRF_SIGNATURE}; ROUGE {ROUGE_SIGNATURE}",
            **{what: note for what, note in self._noted.items() if note},
        }


def _misspelt(texts: Sequence[str], again: Sequence[str]) -> str:
    """A note of texts that the tokenizer does not give back: one without capitals never writes any."""
    other = [pair for pair in zip(texts, again, strict=False) if len({"".join(text.split()) for text in pair}) == 2]
    if not other:
        return ""
    text, said = other[0]
    return (
        f"{len(other):,} of {len(again):,} targets are not what the tokenizer can write ('{text[:SHOWN].strip()}' "
        f"becomes '{said[:SHOWN].strip()}'): nor will the student, and BLEU and chrF count it"
    )
