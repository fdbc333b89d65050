"""Timing in turns: short blocks of calls, one process a model, all of them hit alike by a busy moment.

The first model runs twice, in two processes: its ratio with itself is what this machine's noise looks like.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nlp_distill.measuring import Measured, Worker

BLOCK_MS = 80.0
"""A block lasts about so long, or one call where that takes longer."""
MOST_CALLS = 20
RESAMPLES = 2000
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Cell:
    """One way to call a model. `tokens`: the length, or "real"; `lengths`: padded lengths of one block's batches;
    `real_tokens`: tokens of these batches that are no padding.
    """

    tokens: int | str
    batch: int
    lengths: tuple[int, ...]
    real_tokens: int


@dataclass
class Times:
    """What one process said. `calls`: milliseconds of each block's calls, by length; `load_s`; memory in MB."""

    load_s: float
    held_mb: float
    peak_memory_mb: float = 0.0
    blocks: dict[Cell, list[list[list[float]]]] = field(default_factory=dict)

    def milliseconds(self, cell: Cell) -> NDArray[np.float64]:
        """One number a block: of each length the median of its calls, added up."""
        return np.array([sum(float(np.median(calls)) for calls in block) for block in self.blocks[cell]])

    def latency(self, cell: Cell) -> dict[str, Any]:
        """p50 with its interval, p90, rows and real tokens a second."""
        blocks = [np.concatenate([np.asarray(calls) for calls in block]) for block in self.blocks[cell]]
        p50, p90 = np.percentile(np.concatenate(blocks), [50, 90])
        drawn = np.random.default_rng(0).integers(0, len(blocks), (RESAMPLES, len(blocks)))
        medians = [float(np.median(np.concatenate([blocks[n] for n in sample]))) for sample in drawn]
        block_s = float(np.median(self.milliseconds(cell))) / 1e3
        return {
            "tokens": cell.tokens,
            "batch": cell.batch,
            "p50": round(float(p50), 3),
            "p50_ci95": interval(medians),
            "p90": round(float(p90), 3),
            "rows_per_s": round(cell.batch * len(cell.lengths) / block_s, 1),
            "tokens_per_s": round(cell.real_tokens / block_s, 1),
        }


def interval(values: Sequence[float] | NDArray[np.float64]) -> list[float]:
    """The middle 95 %."""
    return [round(float(value), 3) for value in np.percentile(values, [2.5, 97.5])]


def ratio(against: Times, other: Times, cell: Cell, others: Cell) -> dict[str, Any]:
    """How many times as fast `other` is: the median of the ratios of blocks timed in one round, and its interval.

    `cell`, `others`: the same rows, as each of the two reads them. Bootstrap over rounds (Efron & Tibshirani 1993).
    """
    ratios = against.milliseconds(cell) / other.milliseconds(others)
    drawn = np.random.default_rng(0).integers(0, len(ratios), (RESAMPLES, len(ratios)))
    return {
        "tokens": cell.tokens,
        "batch": cell.batch,
        "ratio": round(float(np.median(ratios)), 3),
        "ci95": interval(np.median(ratios[drawn], axis=1)),
    }


def time_in_turns(
    models: Sequence[Measured],
    cells: dict[str, list[Cell]],
    threads: int,
    rounds: int,
    on_progress: Progress = lambda done, total: None,
) -> dict[str, Times]:
    """Times of each model, by name. `cells`: of each name, one for one with those of the others.

    Raises `RunFailed` where a process dies.
    """
    workers: list[Worker] = []
    times: dict[str, Times] = {}
    order = random.Random(0)
    count = len(next(iter(cells.values())))
    total, done = (rounds + 1) * count * len(models), 0
    try:
        for model in models:
            # One after the other: the time to load is a measurement too.
            worker = Worker(model, threads)
            workers.append(worker)
            answer = worker.ask(ready=True)
            times[worker.name] = Times(answer["load_s"], answer["held_mb"])
        calls: dict[tuple[str, Cell], int] = {}
        for round_number in range(rounds + 1):
            for number in range(count):
                for worker in order.sample(workers, len(workers)):
                    cell = cells[worker.name][number]
                    if round_number == 0:
                        calls[worker.name, cell] = _calls(worker, cell)
                    else:
                        block = _block(worker, cell, calls[worker.name, cell])
                        times[worker.name].blocks.setdefault(cell, []).append(block)
                    done += 1
                    on_progress(done, total)
        for worker in workers:
            times[worker.name].peak_memory_mb = worker.ask(memory=True)["peak_memory_mb"]
    finally:
        for worker in workers:
            worker.close()
    return times


def _calls(worker: Worker, cell: Cell) -> int:
    """How many calls of one length a block has; warms up on the way."""
    first = worker.ask(sequence=cell.lengths[0], batch=cell.batch, warm_up=1, runs=2)["ms"]
    return int(max(1, min(MOST_CALLS, BLOCK_MS / len(cell.lengths) / min(first))))


def _block(worker: Worker, cell: Cell, calls: int) -> list[list[float]]:
    return [worker.ask(sequence=length, batch=cell.batch, warm_up=1, runs=calls)["ms"] for length in cell.lengths]
