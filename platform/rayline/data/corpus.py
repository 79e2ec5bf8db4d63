"""Corpus: the tokens of documents, in shards, read as if they were one run.

A shard is a handful of arrays, in memory or mapped from files. Documents that are left out (those
held out for validation, or all others) stay in the shards: a corpus is a view of what is kept, and
copies nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Document:
    """One chat or passage as tokens."""

    ids: Sequence[int]
    learnt: Sequence[bool] | None
    """For each token: is it to be predicted? None: all are."""
    place: int
    """Line or row of its file, from 1."""
    digest: int
    """Number below 2**64 that its content alone decides."""


@dataclass(frozen=True, slots=True)
class TokenShard:
    """Consecutive documents of one file."""

    tokens: npt.NDArray[np.int32]
    """All tokens, one document's after another's."""
    learnt: npt.NDArray[np.bool_]
    """For each of them: is it to be predicted? Empty where all are."""
    stops: npt.NDArray[np.int64]
    """[documents]: where in `tokens` each ends."""
    places: npt.NDArray[np.int64]
    """[documents]: line or row of the file, from 1."""
    digests: npt.NDArray[np.uint64]
    """[documents]: what its content alone decides."""

    @classmethod
    def of(cls, documents: Iterable[Document]) -> Self:
        """The shard of these, in memory."""
        tokens: list[npt.NDArray[np.int32]] = []
        learnt: list[npt.NDArray[np.bool_]] = []
        stops, places, digests, end = [], [], [], 0
        for document in documents:
            tokens.append(np.asarray(document.ids, dtype=np.int32))
            if document.learnt is not None:
                learnt.append(np.asarray(document.learnt, dtype=np.bool_))
            end += len(document.ids)
            stops.append(end)
            places.append(document.place)
            digests.append(document.digest)
        return cls(
            np.concatenate([np.empty(0, np.int32), *tokens]),
            np.concatenate([np.empty(0, np.bool_), *learnt]),
            np.asarray(stops, dtype=np.int64),
            np.asarray(places, dtype=np.int64),
            np.asarray(digests, dtype=np.uint64),
        )

    @property
    def starts(self) -> npt.NDArray[np.int64]:
        """[documents]: where in `tokens` each begins."""
        return np.concatenate([np.zeros(1, np.int64), self.stops[:-1]])


class Corpus:
    """The kept documents of some shards, in their order, as one run of tokens."""

    def __init__(
        self, shards: Sequence[TokenShard], kept: Sequence[npt.NDArray[np.bool_]] | None = None
    ) -> None:
        """`kept`: for each shard, bool [documents]; None keeps all."""
        self.shards = shards
        flags = [np.ones(len(s.stops), np.bool_) for s in shards] if kept is None else kept
        owners, begins, lengths, own_lengths = [], [], [], []
        for number, (shard, flag) in enumerate(zip(shards, flags, strict=True)):
            own_lengths.append((shard.stops - shard.starts)[flag])
            # Neighbours that are both kept are read in one go.
            edges = np.flatnonzero(np.diff(flag.astype(np.int8), prepend=0, append=0))
            first, last = edges[::2], edges[1::2] - 1
            owners.append(np.full(len(first), number, dtype=np.int64))
            begins.append(shard.starts[first])
            lengths.append(shard.stops[last] - shard.starts[first])
        self._owners = _joined(owners)
        self._begins = _joined(begins)
        self._ends = np.cumsum(_joined(lengths))
        self.stops: npt.NDArray[np.int64] = np.cumsum(_joined(own_lengths))
        """[documents]: where in the run each kept document ends."""

    @property
    def size(self) -> int:
        """Tokens in all."""
        return int(self._ends[-1]) if len(self._ends) else 0

    def read(self, start: int, stop: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_]]:
        """Tokens `start` up to `stop` of the run, and for each whether it is to be predicted."""
        tokens, learnt = [], []
        part = int(np.searchsorted(self._ends, start, side="right"))
        while start < stop:
            shard, end = self.shards[self._owners[part]], int(self._ends[part])
            before = int(self._ends[part - 1]) if part else 0
            shift = int(self._begins[part]) - before
            place = slice(start + shift, min(stop, end) + shift)
            found = shard.tokens[place]
            tokens.append(found)
            learnt.append(shard.learnt[place] if len(shard.learnt) else np.ones(len(found), bool))
            start, part = min(stop, end), part + 1
        return (
            np.concatenate([np.empty(0, np.int32), *tokens]),
            np.concatenate([np.empty(0, np.bool_), *learnt]),
        )


def _joined(parts: Sequence[npt.NDArray[np.int64]]) -> npt.NDArray[np.int64]:
    return np.concatenate([np.empty(0, np.int64), *parts])
