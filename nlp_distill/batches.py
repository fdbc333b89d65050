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

Indices = NDArray[np.int64]


def derived_seed(*parts: int | str) -> int:
    """A 63-bit seed from its parts, unrelated for any two different lists of parts."""
    digest = hashlib.sha256("/".join(str(part) for part in parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def steps_per_epoch(rows: int, batch_size: int) -> int:
    """Optimizer steps in one epoch; the rows that fill no whole step wait for another epoch's order."""
    return max(1, rows // batch_size)


def epoch_steps(lengths: Indices, batch_size: int, seed: int, epoch: int) -> list[Indices]:
    """Examples of each optimizer step of an epoch.

    `lengths`: tokens of each example. Shuffled, cut into mega-batches, sorted by length inside, cut into steps
    of exactly `batch_size` (all rows where there are fewer), steps shuffled.
    """
    generator = np.random.default_rng(derived_seed(seed, "order", epoch))
    steps = steps_per_epoch(len(lengths), batch_size)
    order = generator.permutation(len(lengths))[: steps * batch_size]
    chunks: list[Indices] = []
    for start in range(0, len(order), MEGA_BATCH_STEPS * batch_size):
        mega = order[start : start + MEGA_BATCH_STEPS * batch_size]
        mega = mega[np.argsort(lengths[mega], kind="stable")]
        chunks += [mega[i : i + batch_size] for i in range(0, len(mega), batch_size)]
    return [chunks[i] for i in generator.permutation(len(chunks))]


def rank_share(step: Indices, rank: int, world: int) -> Indices:
    """A rank's part of a step; every `world`-th example, so that all ranks get the same mix of lengths."""
    return step[rank::world]


def micro_batches(step: Indices, lengths: Indices, max_tokens: int) -> list[Indices]:
    """Cut examples, sorted by length, into micro-batches of at most `max_tokens` with padding (at least one each)."""
    ordered = step[np.argsort(lengths[step], kind="stable")]
    cuts: list[Indices] = []
    start = 0
    for end in range(1, len(ordered) + 1):
        padded = (end - start) * int(lengths[ordered[end - 1]])
        if padded > max_tokens and end - start > 1:
            cuts.append(ordered[start : end - 1])
            start = end - 1
    if start < len(ordered):
        cuts.append(ordered[start:])
    return cuts
