"""The order of the samples: a pure function of the seed and of how many were consumed.

That number is the whole state of the sampler. A run that resumes, under whatever plan, goes on
with the very samples that an unbroken run would have used, and no sample is skipped or seen twice
in an epoch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from rayline.errors import SpecError


@dataclass(frozen=True, slots=True)
class SampleOrder:
    """A fresh permutation of `samples` samples in each epoch, drawn from `seed`."""

    samples: int
    seed: int

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise SpecError("data.files", "hold no sample", value=self.samples, allowed="1 or more")

    def indices(self, consumed: int, count: int) -> list[int]:
        """The next `count` samples once `consumed` are used. Called by every rank, each step.

        A batch that reaches the end of an epoch goes on into the next one, so every batch is full.
        """
        found: list[int] = []
        while len(found) < count:
            epoch, place = divmod(consumed + len(found), self.samples)
            order = _permutation(self.samples, self.seed, epoch)
            found += order[place : place + count - len(found)].tolist()
        return found


def share(indices: Sequence[int], data_rank: int, data_size: int) -> list[int]:
    """The run of a global batch that belongs to one data rank; the runs of all make the batch.

    Called by every rank. Raises SpecError where the batch can't be divided evenly.
    """
    if len(indices) % data_size:
        raise SpecError(
            "batch.sequences",
            f"not divisible by plan.data = {data_size}",
            value=len(indices),
            allowed=f"a multiple of {data_size}",
        )
    size = len(indices) // data_size
    return list(indices[data_rank * size : (data_rank + 1) * size])


@lru_cache(maxsize=2)  # one epoch, and the next while a batch spans both
def _permutation(samples: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    # RandomState's streams are frozen for good (NumPy NEP 19), those of Generator are not: a
    # checkpoint must find the same order under another version of NumPy.
    words = [epoch % 2**32, epoch // 2**32]
    while seed:
        seed, word = divmod(seed, 2**32)
        words.append(word)
    order = np.random.RandomState(words).permutation(samples).astype(np.int64)
    order.flags.writeable = False
    return order
