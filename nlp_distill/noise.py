"""The noise of dropout on a CPU, drawn four numbers at a time.

torch draws each number of a dropout mask from one state, a seventh of the time of a training step of long rows. Here a
seed is drawn from torch's generator and a vector of 15-bit numbers from it: noise stays a function of `manual_seed`,
and a number is kept with a probability that is right to 1 / 65,536.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, library

LEVELS = 1 << 15
ONE = 0x3F80
"""1 as a bfloat16's bits."""


def bernoulli_(out: Tensor, p: float = 0.5, *, generator: torch.Generator | None = None) -> Tensor:
    """Fill `out` with ones, of probability `p`, and zeros."""
    seed = int(torch.empty((), dtype=torch.int64).random_(generator=generator))
    drawn = np.random.SFC64(seed).random_raw(-(-out.numel() // 4)).view(np.int16)[: out.numel()]
    numbers = torch.from_numpy(drawn).view(out.shape)
    numbers &= LEVELS - 1
    below = round(p * LEVELS)
    # The sign of the difference, over all bits: −1 where it is kept.
    kept = numbers.sub_(below).bitwise_right_shift_(15) if below < LEVELS else numbers.fill_(-1)
    if out.dtype == torch.bfloat16:
        return out.copy_((kept & ONE).view(torch.bfloat16))
    return out.copy_(-kept)


@contextmanager
def fast_dropout() -> Iterator[None]:
    """Inside, torch draws `bernoulli_` on the CPU as above, in this whole process."""
    with library._scoped_library("aten", "IMPL") as kernels:
        with warnings.catch_warnings():
            # That there was a kernel is why we are here.
            warnings.simplefilter("ignore")
            kernels.impl("bernoulli_.float", bernoulli_, "CPU")
        yield
