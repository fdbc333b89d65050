"""The question-answering adapter: what differs between extractive question answering and other tasks."""

from __future__ import annotations

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

from nlp_distill import Options, Task, read_splits
from nlp_distill.errors import InputInvalid, PairNeeded, WindowsTooShort
from nlp_distill.recipe import Data
from nlp_distill.settings import Whole
from nlp_distill.task import Batch, Groups
from nlp_distill_tasks.question_answering.rows import FEW, Repairs, checked, columns, unnested
from nlp_distill_tasks.question_answering.squad import best_threshold, exact_match, f1
from nlp_distill_tasks.question_answering.windows import NOWHERE, SHOWN, read_again, stride_of, windows

IMPOSSIBLE = -1e5
"""Logit of a token where no answer may begin or end."""
CANDIDATES = 20
"""Answers asked for where the score of "no answer" is needed too; where it is not among them it is below them all."""


class AnsweringOptions(Options):
    """Settings of question answering."""

    stride: Whole = Field(128, ge=0, description="Tokens that neighbouring windows of a long context share.")
    max_answer_tokens: Whole = Field(30, ge=1, description="Longest answer, in tokens.")
    no_answer: bool | None = Field(
        None, description="Whether a question may have no answer (SQuAD v2); unset: as the training rows have it."
    )


class QuestionAnswering(Task):
    """SQuAD v1, and v2 where some questions have no answer."""

    name = "question_answering"
    auto_class = "AutoModelForQuestionAnswering"
    pipeline_task = "question-answering"
    roles = ("question", "context", "answers")
    offsets = True
    options_model = AnsweringOptions
    kin = ("context",)
    usage = (
        "'Who wrote it?' --text-pair 'Jane wrote it.'",
        "question='Who wrote it?', context='Jane wrote it.'",
    )

    primary_metric = "f1"
    label_names: list[str] = []  # noqa: RUF012  an instance's attribute by contract; never changed here
    used: dict[str, str]
    any_tokenizer = True
    first_losses = "[{kind: logits}, {kind: hidden, weight: 30}, {kind: attention, weight: 3}]"
    _notes: dict[str, str]
    _lost: str | None = None
    _asked: list[Any]

    def load_data(self, spec: Data) -> DatasetDict:
        """Checked rows with `question`, `context`, `texts` and `starts`."""
        self.check_roles(spec.columns)
        source = spec.files if isinstance(spec.files, str) else spec.dataset or "data.files"
        raw = DatasetDict({name: unnested(rows) for name, rows in read_splits(spec).items()})
        self.used = columns(raw["train"], spec.columns, f"{source} train")
        repairs = Repairs()
        made = {"train": checked(raw["train"], self.used, f"{source} train", repairs)}
        for name in ("validation", "test"):
            if name in raw and (name == "validation" or "validation" not in raw):
                made[name] = checked(raw[name], self.used, f"{source} {name}", None)
        none = sum(not texts for texts in made["train"]["texts"][:])
        if self.options.no_answer is None:
            self.options = self.options.model_copy(update={"no_answer": none > 0})
        said = repairs.note(len(raw["train"]))
        self._notes = {
            "columns": ", ".join(f"{role} in '{name}'" for role, name in self.used.items()),
            "questions": f"{none:,} of {len(made['train']):,} have no answer" if none else "all have an answer",
            **({"answers": said} if said else {}),
            "metrics": "exact match and F1 as SQuAD's official script defines them, computed here",
        }
        self._asked = self.pipeline_inputs(made["train"].select(range(min(4, len(made["train"])))))
        return DatasetDict(made)

    def columns(self, dataset: Dataset, given: Mapping[str, Any]) -> dict[str, Any]:
        """Role → column."""
        self.check_roles(given)
        return columns(dataset, given, "data")

    def features(self, dataset: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Dataset:
        """Windows of the contexts; a window's `example_id` is its number."""
        made = windows(dataset, tokenizer, max_length, stride_of(self.options.stride, max_length))
        if self._lost is None:
            if len(made.lost) == len(dataset):
                raise WindowsTooShort(max_length=max_length)
            self._lost = _left_out(made.lost, dataset["question"][:], max_length)
        return _examples(made.columns)

    def twins(self, dataset: Dataset, ours: PreTrainedTokenizerBase, theirs: PreTrainedTokenizerBase) -> Dataset:
        """The student's windows as the teacher's tokenizer reads their text."""
        length = ours.model_max_length
        made = windows(dataset, ours, length, stride_of(self.options.stride, length))
        return _examples(read_again(made, dataset, theirs, theirs.model_max_length))

    def align(self, logits: dict[str, Tensor], ours: Batch, theirs: Batch) -> dict[str, Tensor]:
        """The probability of each of the teacher's tokens, at the student's token that holds its first character
        (start) or last (end).

        A token of the student's where none of the teacher's begins (or ends) is as unlikely as the least likely.
        """
        places = {"start": theirs["begins"], "end": theirs["ends"]}
        return {name: _moved(logits[name], places[name], ours["spans"]) for name in logits}

    def collate(
        self, tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig
    ) -> Callable[[list[dict[str, Any]]], Batch]:
        """Pad to the longest window."""

        def collate(rows: list[dict[str, Any]]) -> Batch:
            inputs = [{name: row[name] for name in tokenizer.model_input_names if name in row} for row in rows]
            batch: Batch = dict(tokenizer.pad(inputs, padding=True, return_tensors="pt"))
            width = batch["input_ids"].shape[1]
            spans = [row["spans"] + [0] * (width - len(row["spans"])) for row in rows]
            batch["spans"] = torch.tensor(spans, dtype=torch.bool)
            batch["labels"] = torch.tensor([(row["start"], row["end"]) for row in rows])
            for name in ("begins", "ends"):
                if name in rows[0]:
                    batch[name] = torch.tensor([row[name] + [NOWHERE] * (width - len(row[name])) for row in rows])
            batch["example_id"] = torch.tensor([row["example_id"] for row in rows])
            return batch

        return collate

    def logits(self, outputs: Any, batch: Batch) -> dict[str, Tensor]:
        """Where the answer begins and where it ends, each [B, tokens]: over the context and the first token."""
        outside = ~batch["spans"]
        return {
            "start": outputs.start_logits.float().masked_fill(outside, IMPOSSIBLE),
            "end": outputs.end_logits.float().masked_fill(outside, IMPOSSIBLE),
        }

    def label_loss(self, outputs: Any, batch: Batch) -> Tensor:
        """Sum over windows of the mean of both cross entropies."""
        logits = self.logits(outputs, batch)
        both = [F.cross_entropy(logits[name], batch["labels"][:, i], reduction="sum") for i, name in enumerate(logits)]
        return torch.stack(both).mean()

    def term_mask(self, batch: Batch, signal: str, stack: str) -> Tensor:
        """Every window; of layers the tokens of the context and the first, neither question nor padding."""
        mask: Tensor = batch["spans"]
        return mask.new_ones(mask.shape[0]) if signal in ("logits", "labels") else mask

    def pipeline_inputs(self, dataset: Dataset) -> list[Any]:
        """A question and its context for each row."""
        pairs = zip(dataset["question"][:], dataset["context"][:], strict=True)
        return [{"question": question, "context": context} for question, context in pairs]

    def pipeline_settings(self, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
        """Windows as in training, and "no answer" where the data knows it."""
        return {
            "max_seq_len": tokenizer.model_max_length,
            "doc_stride": stride_of(self.options.stride, tokenizer.model_max_length),
            "max_answer_len": self.options.max_answer_tokens,
            "handle_impossible_answer": bool(self.options.no_answer),
        }

    def asked(self, text: str, text_pair: str | None) -> dict[str, str]:
        """A question (`text`) and its context (`text_pair`)."""
        if text_pair is None:
            raise PairNeeded(what="the context that holds the answer")
        for what, given in (("question", text), ("context", text_pair)):
            if not given.strip():
                raise InputInvalid(what=f"The {what}", reason="it is empty", fix="give a question and its context")
        return {"question": text, "context": text_pair}

    def ask(self, pipe: Any, text: str, text_pair: str | None) -> Any:
        """The answer to a question in a context."""
        return pipe(**self.asked(text, text_pair))

    def ask_all(self, pipe: Any, rows: list[tuple[str, str | None]], batch_size: int) -> list[Any]:
        """The answers to several questions."""
        asked = [self.asked(*row) for row in rows]
        columns = {name: [row[name] for row in asked] for name in ("question", "context")}
        return _listed(pipe(**columns, batch_size=batch_size), len(rows))

    def answers(self, pipe: Any, inputs: list[Any], batch_size: int) -> list[Any]:
        """The pipeline's answer; where there may be none also the best other one, and the score of none."""
        asked = {name: [row[name] for row in inputs] for name in ("question", "context")}
        first = _listed(pipe(**asked, batch_size=batch_size), len(inputs))
        found = [{"answer": answer["answer"], "score": answer["score"]} for answer in first]
        if self.options.no_answer:
            several = pipe(**asked, batch_size=batch_size, top_k=CANDIDATES)
            for answer, others in zip(found, [several] if len(inputs) == 1 else several, strict=True):
                listed = _listed(others, 1, single=True)
                best = next((other for other in listed if other["answer"]), {"answer": "", "score": 0.0})
                none = next((other for other in listed if not other["answer"]), listed[-1])
                answer |= {"best": best["answer"], "none": none["score"] - best["score"]}
        return found

    def raw_outputs(self, answers: list[Any]) -> NDArray[Any]:
        """One mapping a row: `answer` and `score`; of v2 also `best` (text) and `none` (score of none less its)."""
        raw = np.empty(len(answers), dtype=object)
        raw[:] = answers
        return raw

    def statistics(self, raw: NDArray[Any], dataset: Dataset) -> dict[str, NDArray[Any]]:
        """Exact match and F1 of each row, 0–1."""
        golden, v1 = dataset["texts"][:], not self.options.no_answer
        pairs = [(row["answer"], texts) for row, texts in zip(raw, golden, strict=True)]
        found = {
            "exact": np.array([exact_match(answer, texts, v1) for answer, texts in pairs]),
            "f1": np.array([f1(answer, texts, v1) for answer, texts in pairs]),
        }
        if self.options.no_answer:
            found["answerable"] = np.array([bool(texts) for texts in golden])
            found["best"] = np.array([f1(row["best"], texts) for row, texts in zip(raw, golden, strict=True)])
            found["none"] = np.array([row["none"] for row in raw])
        return found

    def score_statistics(self, statistics: Mapping[str, NDArray[Any]]) -> dict[str, float]:
        """`f1` and `exact`; of v2 also F1 by kind of question, and with the best threshold for "no answer".

        `best_threshold`: that threshold, in points of probability: of no answer less that of the likeliest span.
        """
        scores = {name: 100.0 * float(statistics[name].mean()) for name in ("f1", "exact")}
        if self.options.no_answer:
            answerable = statistics["answerable"]
            for name, rows in (("f1_answerable", answerable), ("f1_unanswerable", ~answerable)):
                if rows.any():
                    scores[name] = 100.0 * float(statistics["f1"][rows].mean())
            threshold, best = best_threshold(statistics["none"], statistics["best"], answerable)
            scores |= {"f1_best_threshold": 100.0 * best, "best_threshold": 100.0 * threshold}
        return scores

    def decisions(self, raw: NDArray[Any]) -> NDArray[Any]:
        """The answers."""
        return np.array([row["answer"] for row in raw], dtype=object)

    def groups(self, raw: NDArray[Any], dataset: Dataset) -> Groups:
        """By the length of the true answer, the shortest where there are several."""
        found = self.statistics(raw, dataset)
        lengths = np.array([min((len(text.split()) for text in texts), default=0) for texts in dataset["texts"][:]])
        names = {
            "no answer": lengths == 0,
            "1 word": lengths == 1,
            "2 or 3 words": (lengths > 1) & (lengths < 4),
            "4 words or more": lengths > 3,
        }
        there = {name: rows for name, rows in names.items() if rows.any()}
        scores: dict[str, list[float | None]] = {
            title: [100.0 * float(found[name][rows].mean()) for rows in there.values()]
            for title, name in (("F1", "f1"), ("exact match", "exact"))
        }
        return Groups("true answer", list(there), [int(rows.sum()) for rows in there.values()], scores)

    def differences(self, raw: NDArray[Any], other: NDArray[Any]) -> NDArray[Any]:
        """One less the F1 of one answer's words against the other's."""
        answers, others = self.decisions(raw), self.decisions(other)
        pairs = zip(answers, others, strict=True)
        return np.array([float(ours != theirs) if not theirs else 1 - f1(ours, [theirs]) for ours, theirs in pairs])

    def told(self, raw: NDArray[Any]) -> list[str]:
        """The answers."""
        return [answer or "(no answer)" for answer in self.decisions(raw)]

    def truths(self, dataset: Dataset) -> list[str]:
        """All answers that count as right."""
        return [" · ".join(dict.fromkeys(texts)) or "(no answer)" for texts in dataset["texts"][:]]

    def example_inputs(self) -> list[Any]:
        """The first rows of train."""
        return self._asked

    def shown_input(self, names: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
        """A question and its context."""
        return self.asked("Who wrote it?", "Jane wrote it.")

    def notes(self) -> dict[str, str]:
        """Columns, questions without an answer, answers that were repaired or lie in no window."""
        return {**self._notes, **({"windows": self._lost} if self._lost else {})}

    def unfit(self, config: PretrainedConfig) -> str | None:
        """A decoder's outputs are of another text than its inputs."""
        if config.is_encoder_decoder:
            return "answers are spans of what an encoder reads, and this model has a decoder; choose an encoder"
        return None


def _examples(columns: dict[str, list[Any]]) -> Dataset:
    return Dataset.from_dict({**columns, "example_id": range(len(columns["start"]))})


def _left_out(lost: list[int], questions: list[str], max_length: int) -> str:
    """A note, or nothing."""
    if not lost:
        return ""
    quoted = ", ".join(f"'{questions[row][:SHOWN].strip()}'" for row in lost[:FEW])
    return (
        f"{len(lost):,} of {len(questions):,} were left out of training, as no window of {max_length} tokens holds "
        f"their answer whole ({quoted}{' …' if len(lost) > FEW else ''})"
    )


def _moved(logits: Tensor, places: Tensor, spans: Tensor) -> Tensor:
    """Logits [B, T] summed as probabilities at their places in [B, ours]; outside `spans` impossible."""
    real = places >= 0
    top = logits.masked_fill(~real, -torch.inf).amax(-1, keepdim=True)
    least = logits.masked_fill(~real, torch.inf).amin(-1, keepdim=True)
    masses = (logits - top).exp().masked_fill(~real, 0.0)
    moved = masses.new_zeros(spans.shape).scatter_add(1, places.clamp(min=0), masses)
    return torch.maximum(moved.log() + top, least).masked_fill(~spans, IMPOSSIBLE)


def _listed(answers: Any, rows: int, single: bool = False) -> list[dict[str, Any]]:
    """Of one question the pipeline gives no list."""
    return answers if isinstance(answers, list) and (rows > 1 or single) else [answers]
