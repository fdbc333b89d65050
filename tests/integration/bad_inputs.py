"""The corpus of bad inputs: its entries, and the small world that each of them spoils."""

import json
import random
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from safetensors.numpy import load_file, save_file

import nlp_distill
from nlp_distill.testing import WORDS, save_tiny, tiny_rows

CORPUS = Path(__file__).parents[1] / "corpus" / "bad_inputs"
FAST = {"epochs": 1, "learning_rate": 1e-3, "batch_size": 16}
MODELS = {
    "bert": {"auto_class": "AutoModel"},
    "classifier": {},
    "reader": {"auto_class": "AutoModelForQuestionAnswering"},
    "masked": {"auto_class": "AutoModelForMaskedLM"},
    "t5": {"model_type": "t5", "auto_class": "AutoModelForSeq2SeqLM"},
    "marian": {"model_type": "marian", "auto_class": "AutoModelForSeq2SeqLM"},
    "roberta": {"model_type": "roberta", "auto_class": "AutoModel"},
    "deberta": {"model_type": "deberta-v2", "auto_class": "AutoModel"},
    "distilbert": {"model_type": "distilbert", "auto_class": "AutoModel"},
    "albert": {"model_type": "albert", "auto_class": "AutoModel"},
}
TEACHERS = {"classification": "bert", "question_answering": "bert", "seq2seq": "t5", "masked_lm": "masked"}


def _lines(**columns: Any) -> list[str]:
    return [json.dumps({name: values[i % 2] for name, values in columns.items()}) for i in range(40)]


GENERATED = {
    "<wide>": [json.dumps({f"column {number}": "a" for number in range(200)})] * 20,
    "<lists>": _lines(text=["a", "b"], label=[["x"], ["x", "y"]]),
    "<texts>": _lines(text=[["a"], ["b"]], label=[0, 1]),
    "<objects>": _lines(text=["a", "b"], label=[{"id": 0}, {"id": 1}]),
    "<elsewhere>": _lines(question=["a", "b"], context=["a b", "b a"], answers=["zebra", "gnu"]),
    "<long question>": [
        json.dumps({"question": "good " * 80, "context": "a", "answers": {"text": ["a"], "answer_start": [0]}})
    ],
}
"""Lines that would be too long to write down."""


@dataclass(frozen=True)
class Entry:
    """One bad input; the keys are those of tests/corpus/README.md."""

    kind: str
    name: str
    says: list[str]
    base: str = "classification"
    set: dict[str, Any] = field(default_factory=dict)
    drop: list[str] = field(default_factory=list)
    recipe: Any = None
    files: dict[str, Any] = field(default_factory=dict)
    folders: list[str] = field(default_factory=list)
    links: dict[str, str] = field(default_factory=dict)
    models: dict[str, Any] = field(default_factory=dict)
    runs: dict[str, Any] = field(default_factory=dict)
    run: list[str] = field(default_factory=lambda: ["run", "<recipe>", "--out", "<here>/out"])
    stdin: Any = ""
    environment: dict[str, str] = field(default_factory=dict)
    code: int = 2
    process: bool = False

    def __str__(self) -> str:
        return f"{self.kind}: {self.name}"


def entries() -> list[Entry]:
    """All entries of the corpus."""
    files = sorted(CORPUS.glob("*.yaml"))
    return [Entry(file.stem, **entry) for file in files for entry in yaml.safe_load(file.read_text(encoding="utf-8"))]


def good_rows(task: str, count: int) -> list[dict[str, Any]]:
    """Rows of a task that nothing is wrong with."""
    if task == "classification":
        return tiny_rows(count)
    chance = random.Random(0)
    texts = [[chance.choice(WORDS) for _ in range(8)] for _ in range(count)]
    if task == "seq2seq":
        return [{"source": " ".join(words), "target": " ".join(words[::-1])} for words in texts]
    if task == "masked_lm":
        return [{"text": " ".join(words)} for words in texts]
    return [
        {
            "question": words[3],
            "context": " ".join(words),
            "answers": {"text": [words[4]], "answer_start": [len(" ".join(words[:4])) + 1]},
        }
        for words in texts
    ]


def _measured(variants: Any, sequences: Any, threads: int, *_: Any) -> dict[str, Any]:
    """Times without timing: nobody asks for them here."""
    latency = [{"sequence": length, "threads": threads, "batch": 1, "p50": 1.0, "p90": 1.0} for length in sequences]
    return {variant.name: {"latency_ms": latency, "peak_memory_mb": 1.0} for variant in variants}


class World:
    """Small models, data and a finished run, each made once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def place(self, name: str) -> Path:
        """The folder of a model, of a task's data, or of the finished run `done`."""
        folder = self.folder / name
        if folder.exists():
            return folder
        if name in MODELS:
            return save_tiny(folder, **MODELS[name])
        if name == "done":
            recipe = self.folder / "done.yaml"
            recipe.write_text(yaml.safe_dump(self.recipe("classification")))
            with patch("nlp_distill.variants.measure", _measured):
                nlp_distill.run(recipe, out=folder)
            return folder
        folder.mkdir(parents=True)
        for split, count in (("train", 60), ("validation", 20)):
            lines = "".join(json.dumps(row) + "\n" for row in good_rows(name, count))
            (folder / f"{split}.jsonl").write_text(lines, encoding="utf-8")
        return folder

    def recipe(self, task: str) -> dict[str, Any]:
        """A recipe that nothing is wrong with."""
        return {
            "task": task,
            "data": {"dataset": str(self.place(task))},
            "teacher": {"model": str(self.place(TEACHERS[task])), "finetune": dict(FAST)},
            "student": {"layers": 2},
            "distill": {**FAST, "losses": [{"kind": "logits"}, {"kind": "labels"}, {"kind": "hidden"}]},
            "precision": "fp32",
            "export": [],
        }

    def filled(self, value: Any, here: Path) -> Any:
        """A value with the names in angle brackets replaced by paths."""
        if isinstance(value, dict):
            return {key: self.filled(child, here) for key, child in value.items()}
        if isinstance(value, list):
            return [self.filled(child, here) for child in value]
        if not isinstance(value, str):
            return value
        value = value.replace("<deep>", "[" * 3000)
        for name in [*MODELS, *TEACHERS, "done"]:
            if f"<{name}>" in value:
                value = value.replace(f"<{name}>", str(self.place(name)))
        return value.replace("<recipe>", str(here / "recipe.yaml")).replace("<here>", str(here))

    def lay_out(self, entry: Entry, here: Path) -> list[str]:
        """Write an entry's files into its folder; the command line to run there."""
        for path, content in entry.files.items():
            _write(here / path, content, entry.base)
        for path in entry.folders:
            (here / path).mkdir(parents=True)
        for path, changes in entry.models.items():
            if "settings" in changes:
                save_tiny(here / path, **MODELS[changes["of"]], **changes["settings"])
            else:
                shutil.copytree(self.place(changes["of"]), here / path)
            _spoil(here / path, changes)
        for path, changes in entry.runs.items():
            _spoil(shutil.copytree(self.place("done"), here / path), changes)
        for path, target in entry.links.items():
            (here / path).symlink_to(self.filled(target, here))
        if "<recipe>" in entry.run or entry.recipe is not None:
            _write(here / "recipe.yaml", self._recipe_of(entry, here), entry.base)
        return [self.filled(word, here) for word in entry.run]

    def _recipe_of(self, entry: Entry, here: Path) -> Any:
        if entry.recipe is not None:
            return self.filled(entry.recipe, here)
        recipe = self.recipe(entry.base)
        if any(path.startswith("data/") for path in entry.files):
            recipe["data"] = {"dataset": str(here / "data")}
        for dotted, value in entry.set.items():
            *parents, last = dotted.split(".")
            part: Any = recipe
            for name in parents:
                part = part[name]
            part[last] = self.filled(value, here)
        for name in entry.drop:
            del recipe[name]
        return yaml.safe_dump(recipe, allow_unicode=True)


def _write(path: Path, content: Any, task: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, dict) and "parquet" in content:
        columns, types = content["parquet"], content.get("types", {})
        kinds = {name: getattr(pa, types[name])() if name in types else None for name in columns}
        arrays = [pa.array(values * content.get("times", 1), kinds[name]) for name, values in columns.items()]
        pq.write_table(pa.Table.from_arrays(arrays, list(columns)), path)
    else:
        path.write_bytes(_bytes(content, task))


def _bytes(content: Any, task: str) -> bytes:
    if isinstance(content, str):
        return content.encode()
    if "hex" in content:
        return bytes.fromhex(content["hex"])
    if "repeat" in content:
        text = content["repeat"] * content["times"]
        return (content.get("head", "") + text + content.get("tail", "")).encode()
    good = good_rows(task, content.get("good", 0))
    if "rows" in content:
        lines = [",".join(good[0]) if good else "", *(",".join(map(str, row.values())) for row in good)]
        return "\n".join([*(line for line in lines if line), *content["rows"], ""]).encode()
    if "jsonl" in content:
        lines = [json.dumps(row) for row in good]
        for line in content["jsonl"]:
            lines += GENERATED.get(line, [line.replace("<deep>", "[" * 3000)])
        return ("\n".join(lines) + "\n").encode()
    return str(content["text"]).encode(content.get("encoding", "utf-8"))


def _spoil(folder: Path, changes: dict[str, Any]) -> None:
    """Change a copy of a model or a run: `remove`, `json` (keys to set; null: to remove), `files`, weights."""
    for name in changes.get("remove", []):
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for name, keys in changes.get("json", {}).items():
        document = json.loads((folder / name).read_text(encoding="utf-8")) if (folder / name).is_file() else {}
        document = {key: value for key, value in {**document, **keys}.items() if value is not None}
        (folder / name).write_text(json.dumps(document), encoding="utf-8")
    for name, content in changes.get("files", {}).items():
        _write(folder / name, content, "classification")
    if "tokenizer_without" in changes:
        tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        del tokenizer["model"]["vocab"][changes["tokenizer_without"]]
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    weights = folder / "model.safetensors"
    if "weights_without" in changes:
        kept = {name: w for name, w in load_file(weights).items() if changes["weights_without"] not in name}
        save_file(kept, weights, {"format": "pt"})
    if "weights_cut" in changes:
        weights.write_bytes(weights.read_bytes()[: changes["weights_cut"]])
