"""An ONNX graph on the CPU, one row at a time, or several where that changes no answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as state

from nlp_distill.errors import ModelNotFound
from nlp_distill.sessions import session_options

Row = dict[str, NDArray[np.int64]]
"""Inputs of one row by name, each [tokens]."""

MOST_ROWS, MOST_TOKENS = 16, 512
"""Of a batch. Longer ones gain nothing, and attention of many long rows takes much memory."""
PROBES = ((5, 2), (8, 7), (24, 16), (61, 3), (128, 2))
"""Tokens and rows of the batches that show whether a row's mates change its answer."""

IN_BLOCKS = b"MatMulNBits"


class Graph:
    """A session with one thread a run (several runs may go on at once), on the files that a model folder holds.

    `exact`: whether rows of one length may share a batch. Dynamic quantisation scales activations over the whole batch,
    so its answers depend on batch mates; float kernels may add in another order for another number of rows; static
    int8 adds integers. So it is tried, on this machine, with these weights: only batches whose every bit is that of the
    rows alone are allowed. With weights in blocks it differs too seldom for that, so those go row by row.
    """

    def __init__(self, folder: Path, file: str, threads: int = 1) -> None:
        options = session_options(threads)
        # A pattern is one block of memory for each length that rows have, beside what is free already.
        options.enable_mem_pattern = False
        options.log_severity_level = 3
        try:
            path = folder / "onnx" / file
            self.session = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])
        except (
            state.Fail,
            state.InvalidArgument,
            state.InvalidGraph,
            state.InvalidProtobuf,
            state.NoSuchFile,
        ) as error:
            reason = f"its {file} cannot be read ({error})"
            raise ModelNotFound(reference=str(folder), reason=reason, fix="Export it anew.") from error
        self.inputs = [entry.name for entry in self.session.get_inputs()]
        self.outputs = [entry.name for entry in self.session.get_outputs()]
        self.exact = False
        self._blocks = IN_BLOCKS in path.read_bytes()

    def try_batches(self, vocabulary: int, longest: int) -> None:
        """Settle `exact`: batches of random rows against the same rows alone."""
        if self._blocks:
            return
        chance = np.random.default_rng(0)
        for tokens, rows in PROBES:
            ids = chance.integers(0, vocabulary, (rows, min(tokens, longest)))
            batch = [self._complete({"input_ids": row}) for row in ids]
            together = self._run(batch)
            if any(not _same(self._run([row])[0], answer) for row, answer in zip(batch, together, strict=True)):
                return
        self.exact = True

    def run(self, rows: list[Row]) -> list[dict[str, NDArray[np.float32]]]:
        """Outputs by name for each row, [1, …] as a batch of one gives them."""
        batch = [self._complete(row) for row in rows]
        if not self.exact:
            return [self._run([row])[0] for row in batch]
        by_length: dict[int, list[int]] = {}
        for number, row in enumerate(batch):
            by_length.setdefault(len(row["input_ids"]), []).append(number)
        found: dict[int, dict[str, NDArray[np.float32]]] = {}
        for tokens, numbers in by_length.items():
            most = max(1, min(MOST_ROWS, MOST_TOKENS // tokens))
            for start in range(0, len(numbers), most):
                part = numbers[start : start + most]
                found |= dict(zip(part, self._run([batch[number] for number in part]), strict=True))
        return [found[number] for number in range(len(batch))]

    def _complete(self, row: Row) -> Row:
        """What the graph takes: nothing more, and zeros for types of tokens that the tokenizer does not give."""
        ids = row["input_ids"]
        rest = {"attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        return {name: row.get(name, rest.get(name, ids)) for name in self.inputs}

    def _run(self, batch: list[Row]) -> list[dict[str, NDArray[np.float32]]]:
        feed = {name: np.stack([row[name] for row in batch]) for name in self.inputs}
        answers: list[Any] = self.session.run(None, feed)
        return [
            {name: value[number : number + 1] for name, value in zip(self.outputs, answers, strict=True)}
            for number in range(len(batch))
        ]


def _same(ours: dict[str, NDArray[Any]], theirs: dict[str, NDArray[Any]]) -> bool:
    return all(np.array_equal(ours[name], theirs[name]) for name in ours)
