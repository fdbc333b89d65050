"""Stateless data order, and length-sorted micro-batches under a token budget.

The order of an epoch is a pure function of (seed, epoch) and the lengths: nothing is remembered, so a run can
be resumed at any step, and rank, evaluation and accumulation cannot change it.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

MEGA_BATCH_STEPS = 50
"""Steps whose examples are sorted together: long enough to waste little padding, short enough to stay mixed."""
GROUPS = 2
"""Groups of like lengths that meet in a step: of one, students end further from their teacher than by random steps."""
FORWARD: dict[str, float] = {"cpu": 40, "cpu, bf16": 200, "cuda": 2048}
"""Tokens of padding that one micro-batch more is worth: measured on CPUs, guessed for a GPU.

Where bf16 is quick, products take little of a forward, and what does not grow with its tokens takes much.
"""

Indices = NDArray[np.int64]


def derived_seed(*parts: int | str) -> int:
    """A 63-bit seed from its parts, unrelated for any two different lists of parts."""
    digest = hashlib.sha256("/".join(str(part) for part in parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def steps_per_epoch(rows: int, batch_size: int) -> int:
    """Optimizer steps in one epoch; the rows that fill no whole step wait for another epoch's order."""
    return max(1, rows // batch_size)


def epoch_steps(lengths: Indices, batch_size: int, seed: int, epoch: int, groups: int | None = None) -> list[Indices]:
    """Examples of each optimizer step of an epoch.

    `lengths`: tokens of each example. Shuffled, cut into mega-batches, sorted by length inside, cut into groups; a step
    of exactly `batch_size` (all rows where there are fewer) is `groups` (`GROUPS`) of the epoch's by chance.
    """
    generator = np.random.default_rng(derived_seed(seed, "order", epoch))
    steps = steps_per_epoch(len(lengths), batch_size)
    order = generator.permutation(len(lengths))[: steps * batch_size]
    size = len(order) // steps
    alike: list[list[Indices]] = [[] for _ in range(groups or GROUPS)]
    for start in range(0, len(order), MEGA_BATCH_STEPS * batch_size):
        mega = order[start : start + MEGA_BATCH_STEPS * batch_size]
        mega = mega[np.argsort(lengths[mega], kind="stable")]
        for row in range(0, len(mega), size):
            for some, group in zip(alike, np.array_split(mega[row : row + size], len(alike)), strict=True):
                some.append(group)
    chosen = [generator.permutation(steps) for _ in alike]
    return [
        np.concatenate([some[i] for some, i in zip(alike, step, strict=True)]) for step in zip(*chosen, strict=True)
    ]


def rank_share(step: Indices, rank: int, world: int) -> Indices:
    """A rank's part of a step; every `world`-th example, so that all ranks get the same mix of lengths."""
    return step[rank::world]


def micro_batches(step: Indices, lengths: Indices, max_tokens: int, max_padding: float = np.inf) -> list[Indices]:
    """Cut examples, sorted by length, into micro-batches of at most `max_tokens` with padding (at least one each).

    A row that would bring a micro-batch's padding beyond `max_padding` tokens begins another.
    """
    ordered = step[np.argsort(lengths[step], kind="stable")]
    cuts: list[Indices] = []
    start, real = 0, 0
    for end, length in enumerate(lengths[ordered].tolist()):
        padded = (end + 1 - start) * length
        if end > start and (padded > max_tokens or padded - real - length > max_padding):
            cuts.append(ordered[start:end])
            start, real = end, 0
        real += length
    if start < len(ordered):
        cuts.append(ordered[start:])
    return cuts
