"""What one recovery took, from the failure to the next finished step."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Recovery:
    """Made by the controller when a loss was seen, and whole once a step is finished after it.
    Times are Unix time, seconds; 0 until then."""

    reason: str
    """What was lost and what was decided."""
    epoch: int
    """Number of the beginning that it led to; 2 is the first recovery."""
    lost_step: int
    """The newest step that was known when the loss was seen."""
    seen_s: float
    """The loss was seen."""
    parted_s: float
    """The survivors had left the run, and what was lost was dismissed."""
    resumed_step: int | None = None
    """Step of the snapshot that the gang went on from; None: from a checkpoint, or from nothing."""
    placed_s: float = 0.0
    """There was room for all."""
    started_s: float = 0.0
    """All had their processes, and were told to begin."""
    restored_s: float = 0.0
    """Rank 0 had its state, and began its first step."""
    step_s: float = 0.0
    """The first step after it was finished."""

    @property
    def leave_s(self) -> float:
        """Until nobody was left in the run that was lost."""
        return self.parted_s - self.seen_s

    @property
    def place_s(self) -> float:
        """From there until there was room for all; what the policy waits counts."""
        return self.placed_s - self.parted_s

    @property
    def start_s(self) -> float:
        """From there until all had their processes and were told to begin."""
        return self.started_s - self.placed_s

    @property
    def restore_s(self) -> float:
        """From there until rank 0 had met the others, built its engine and taken over its state."""
        return self.restored_s - self.started_s

    @property
    def first_step_s(self) -> float:
        """The first step itself."""
        return self.step_s - self.restored_s

    @property
    def total_s(self) -> float:
        """From seeing the loss to the next finished step."""
        return self.step_s - self.seen_s

    def __str__(self) -> str:
        whence = "storage" if self.resumed_step is None else f"memory, step {self.resumed_step}"
        return (
            f"{self.total_s:.2f} s from seeing the loss to the next finished step "
            f"(left the run {self.leave_s:.2f}, placed {self.place_s:.2f}, "
            f"started {self.start_s:.2f}, restored from {whence} {self.restore_s:.2f}, "
            f"stepped {self.first_step_s:.2f})"
        )
