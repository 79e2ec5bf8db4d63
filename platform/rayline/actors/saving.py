"""Where a gang's checkpoints go, and what became of one: values that the driver and the keepers
share. No Ray, no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rayline.checkpoint import CheckpointHeader


@dataclass(frozen=True, slots=True)
class Storage:
    """Where a gang's checkpoints go; the same for all its keepers."""

    root: str
    """Folder of the checkpoints, by path or address."""
    keep: int
    """Newest checkpoints that stay."""
    world_size: int
    claim: str
    """What the driver's gang wrote into the root's fence."""
    epoch: int
    give_up_after_s: float = 900.0
    """Longest that a rank's shard may take."""
    bytes_per_s: float | None = None
    """What a keeper writes at most; None leaves it as fast as storage is."""


@dataclass(frozen=True, slots=True)
class Written:
    """What became of a step's checkpoint."""

    step: int
    problem: str
    """Why it was not saved; empty where it was."""

    def __str__(self) -> str:
        if self.problem:
            return f"step {self.step} not saved: {self.problem}"
        return f"step {self.step} saved"


@dataclass(frozen=True, slots=True)
class Shard:
    """One rank's part of a snapshot, written to the folder of its step."""

    header: CheckpointHeader
    report: str
    """What the committer is told of it."""
    reports: list[str]
    """Rank 0's newest step reports, as the snapshot holds them."""
