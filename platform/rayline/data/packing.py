"""Packing: which tokens each training sequence is made of. Numbers alone; nothing is copied here.

A piece is a run of tokens of which all but the last are read and all but the first are predicted: n
tokens fill n - 1 places of a sequence. Pieces of one sequence never see each other.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Packing:
    """The pieces of all sequences, one sequence's after another's."""

    starts: Integers
    """[pieces]: where in the run of all tokens each piece begins."""
    stops: Integers
    """[pieces]: where it ends, the token that is only predicted included."""
    firsts: Integers
    """[sequences + 1]: the pieces of sequence i are those from firsts[i] up to firsts[i + 1]."""

    def __len__(self) -> int:
        return len(self.firsts) - 1


def pack_without_boundaries(tokens: int, sequence_tokens: int) -> Packing:
    """Windows over one run of `tokens`. Neighbours share one token: the last of one, which it only
    predicts, is the first that the next one reads. So every token but the very first is predicted
    exactly once; what does not fill a window at the end is left out."""
    windows = max(0, (tokens - 1) // sequence_tokens)
    starts = np.arange(windows, dtype=np.int64) * sequence_tokens
    return Packing(starts, starts + sequence_tokens + 1, np.arange(windows + 1, dtype=np.int64))


def pack_within_documents(stops: Integers, sequence_tokens: int) -> Packing:
    """Windows over documents, each a piece of its own or, where a window ends within it, several.

    `stops` [documents]: where in the run of all tokens each ends. Every token but the first of a
    document is predicted exactly once; what does not fill a window at the end is left out.
    """
    starts = np.concatenate([np.zeros(1, np.int64), stops])[:-1]
    places = np.maximum(stops - starts - 1, 0)
    # Places are counted through all documents; cuts are where a document or a window begins.
    begins = np.concatenate([[0], np.cumsum(places)]).astype(np.int64)
    windows = int(begins[-1]) // sequence_tokens
    edges = np.arange(windows + 1, dtype=np.int64) * sequence_tokens
    cuts = np.union1d(begins[begins <= edges[-1]], edges)
    # A document of one token has no place: of equal begins, the last is the one that has.
    owner = np.searchsorted(begins, cuts[:-1], side="right") - 1
    shift = starts[owner] - begins[owner]
    return Packing(cuts[:-1] + shift, cuts[1:] + shift + 1, np.searchsorted(cuts, edges))


def one_piece_each(stops: Integers, sequence_tokens: int) -> Packing:
    """Every document a sequence of its own, cut to its length. `stops` as above."""
    starts = np.concatenate([np.zeros(1, np.int64), stops])[:-1]
    kept = np.minimum(stops, starts + sequence_tokens + 1)
    return Packing(starts, kept, np.arange(len(stops) + 1, dtype=np.int64))


def pack_whole(stops: Integers, sequence_tokens: int) -> Packing:
    """Whole documents together in as few sequences as best-fit decreasing finds (Ding et al. 2024,
    "Fewer Truncations Improve Language Modeling", algorithm 1); one that is longer than a sequence
    is cut. `stops` as above. Documents of a sequence, and sequences, are in the documents' order.
    """
    alone = one_piece_each(stops, sequence_tokens)
    places = alone.stops - alone.starts - 1
    # Sequences by their room; the bits of `open_rooms` are the rooms that any has.
    by_room: list[list[int]] = [[] for _ in range(sequence_tokens + 1)]
    open_rooms = 0
    sequences: list[list[int]] = []
    for document in np.argsort(-places, kind="stable").tolist():
        wanted = int(places[document])
        fitting = open_rooms >> wanted
        if fitting:
            room = wanted + (fitting & -fitting).bit_length() - 1
            chosen = by_room[room].pop()
            if not by_room[room]:
                open_rooms &= ~(1 << room)
        else:
            room, chosen = sequence_tokens, len(sequences)
            sequences.append([])
        sequences[chosen].append(document)
        by_room[room - wanted].append(chosen)
        open_rooms |= 1 << (room - wanted)
    ordered = sorted(sorted(members) for members in sequences)
    order = np.asarray([document for members in ordered for document in members], dtype=np.int64)
    firsts = np.cumsum([0, *(len(members) for members in ordered)], dtype=np.int64)
    return Packing(alone.starts[order], alone.stops[order], firsts)
