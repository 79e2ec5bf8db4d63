"""Split: which documents are trained on and which are held out, by the hash of their content.

A document's side follows from its content and the fraction alone: not from its place, its file or
what else there is. So the same text is never on both sides, and a larger fraction holds out all
that a smaller one does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from rayline.errors import SpecError

_DIGESTS = 2**64


@dataclass(frozen=True, slots=True)
class Split:
    """One side of a split."""

    side: Literal["all", "training", "held out"]
    fraction: float = 0.0
    """Share of the documents that is held out."""

    def kept(self, digests: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
        """For each document, by the digest of its content: does it lie on this side?"""
        if self.side == "all":
            return np.ones(len(digests), dtype=np.bool_)
        held_out: npt.NDArray[np.bool_] = digests < np.uint64(int(self.fraction * _DIGESTS))
        return held_out if self.side == "held out" else ~held_out

    def empty(self, field: str) -> SpecError:
        """The error for a source of which nothing lies on this side."""
        if self.side == "all":
            return SpecError(field, "hold no document")
        other = "trained on" if self.side == "training" else "held out"
        return SpecError(
            "evaluation.fraction",
            f"no document of {field} is {other}",
            value=self.fraction,
            fix="choose another fraction, or give evaluation.files",
        )

    def __str__(self) -> str:
        return "" if self.side == "all" else f" that are {self.side}".replace("training", "learnt")


ALL = Split("all")
