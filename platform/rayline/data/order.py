"""The order of the samples: a pure function of the seed and of how many were consumed.

That number is the whole state of the sampler. A run that resumes, under whatever plan, goes on
with the very samples that an unbroken run would have used, and no sample is skipped or seen twice
in an epoch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from heapq import heapify, heapreplace
from math import floor

import numpy as np
import numpy.typing as npt

from rayline.errors import SpecError

_SEED_BITS = 128
"""Seeds are below 2**128; the number of a source stands above them."""


@dataclass(frozen=True, slots=True)
class SampleOrder:
    """A fresh permutation of `samples` samples in each epoch, drawn from `seed`."""

    samples: int
    seed: int
    _epochs: dict[int, npt.NDArray[np.int64]] = field(
        default_factory=dict, init=False, compare=False, repr=False
    )
    # RandomState's streams are frozen for good (NumPy NEP 19), those of Generator are not: a
    # checkpoint must find the same order under another version of NumPy.
    _random: np.random.RandomState = field(
        default_factory=np.random.RandomState, init=False, compare=False, repr=False
    )

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
            found += self._epoch(epoch)[place : place + count - len(found)].tolist()
        return found

    def _epoch(self, epoch: int) -> npt.NDArray[np.int64]:
        if epoch not in self._epochs:
            # One epoch, and the next while a batch spans both.
            for older in sorted(self._epochs)[:-1]:
                del self._epochs[older]
            # The generator is made once: that takes ten times as long as seeding it.
            self._random.seed(_words(self.seed, epoch))
            self._epochs[epoch] = self._random.permutation(self.samples).astype(np.int64)
        return self._epochs[epoch]


@dataclass(frozen=True)
class MixtureOrder:
    """Samples of several sources, each taken as often as its weight says.

    Which source is next is decided as seats are shared out among parties by Webster's method
    (Balinski and Young 1982, "Fair Representation"): the j-th sample of a source of weight w, from
    0, comes at the time (j + 1/2) / w, and the earliest is next. So what each source gave is known
    of any number of samples without counting them one by one, and is never further from its share
    than half the number of sources. Each source has a `SampleOrder` of its own, in which it begins
    anew when it is used up.
    """

    sizes: tuple[int, ...]
    """Samples of each source; they are numbered source after source."""
    weights: tuple[float, ...]
    seed: int

    @cached_property
    def _orders(self) -> list[SampleOrder]:
        # A word of its own for each source, in front of none for the first: a single source has
        # the order that it always had.
        return [
            SampleOrder(size, self.seed + (number << _SEED_BITS))
            for number, size in enumerate(self.sizes)
        ]

    @cached_property
    def _shares(self) -> tuple[float, ...]:
        total = sum(self.weights)
        return tuple(weight / total for weight in self.weights)

    def taken(self, consumed: int) -> list[int]:
        """How many of the first `consumed` samples each source gave."""
        counts, queue = self._shortly_before(consumed)
        for _ in range(consumed - sum(counts)):
            self._take(counts, queue)
        return counts

    def indices(self, consumed: int, count: int) -> list[int]:
        """The next `count` samples once `consumed` are used, of all sources. Called by every rank,
        each step."""
        counts, queue = self._shortly_before(consumed)
        for _ in range(consumed - sum(counts)):
            self._take(counts, queue)
        begun = tuple(counts)
        owners = [self._take(counts, queue) for _ in range(count)]
        own = [
            iter(order.indices(begin, end - begin))
            for order, begin, end in zip(self._orders, begun, counts, strict=True)
        ]
        offsets = np.cumsum([0, *self.sizes[:-1]]).tolist()
        return [offsets[owner] + next(own[owner]) for owner in owners]

    def _shortly_before(self, consumed: int) -> tuple[list[int], list[tuple[float, int]]]:
        """Counts at a time at which fewer than `consumed` samples were taken, by not much more than
        the number of sources; and every source's next time."""
        # At the time t a source gave its share of t, rounded: all together t, more or less half
        # the number of sources.
        time = max(0.0, consumed - len(self.sizes) - 1.0)
        counts = [self._given(source, time) for source in range(len(self.sizes))]
        queue = [(self._time(source, given), source) for source, given in enumerate(counts)]
        heapify(queue)
        return counts, queue

    def _given(self, source: int, time: float) -> int:
        """Samples of the source whose time is not after `time`: by the very comparison that puts
        them in order, so that rounding can't part the two."""
        given = max(0, floor(self._shares[source] * time + 0.5) - 1)
        while self._time(source, given) <= time:
            given += 1
        return given

    def _time(self, source: int, number: int) -> float:
        return (number + 0.5) / self._shares[source]

    def _take(self, counts: list[int], queue: list[tuple[float, int]]) -> int:
        source = queue[0][1]
        counts[source] += 1
        heapreplace(queue, (self._time(source, counts[source]), source))
        return source


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


def _words(seed: int, epoch: int) -> list[int]:
    """What the permutation of an epoch is drawn from, in words of 32 bits."""
    words = [epoch % 2**32, epoch // 2**32]
    while seed:
        seed, word = divmod(seed, 2**32)
        words.append(word)
    return words
