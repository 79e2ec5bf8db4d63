"""The guard: which steps are applied. It judges numbers that every rank has alike, after the
gradients are summed and before the optimizer moves, so that all ranks apply a step or none does.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from rayline.errors import WorkerError
from rayline.spec import GuardSpec

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Seen:
    """What the guard remembers of the steps so far."""

    applied: int = 0
    """Applied steps in the running means: the window's length at most."""
    mean_loss: float = 0.0
    """Running mean of their losses."""
    mean_norm: float = 0.0
    """Running mean of their gradient norms."""
    skips: int = 0
    """Steps skipped in a row, up to now."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of a step whose gradients stand, and why."""

    action: Literal["apply", "skip", "stop"]
    reason: str
    """Empty where the step is applied."""


APPLY = Verdict("apply", "")


def judge(spec: GuardSpec, seen: Seen, loss: float, grad_norm: float) -> Verdict:
    """The verdict on a step with this global mean loss and gradient norm (before clipping). Pure:
    the same numbers give the same verdict on every rank."""
    action, reason = _fault(spec, seen, loss, grad_norm)
    if action == "skip" and seen.skips >= spec.max_skips:
        return Verdict("stop", f"{reason}; {seen.skips} steps in a row were skipped before it")
    return Verdict(action, reason)


def _fault(
    spec: GuardSpec, seen: Seen, loss: float, grad_norm: float
) -> tuple[Literal["apply", "skip", "stop"], str]:
    for what, value in (("loss", loss), ("gradient norm", grad_norm)):
        if not math.isfinite(value):
            return spec.nonfinite, f"the {what} is {value}"
    if spec.spike_factor is None or seen.applied < spec.window_steps:
        return "apply", ""
    usual = (("loss", loss, seen.mean_loss), ("gradient norm", grad_norm, seen.mean_norm))
    for what, value, mean in usual:
        if value > spec.spike_factor * mean:
            return spec.on_spike, (
                f"the {what} {value:.4g} is more than {spec.spike_factor:g} times its mean of "
                f"{mean:.4g}"
            )
    return "apply", ""


def remember(spec: GuardSpec, seen: Seen, verdict: Verdict, loss: float, grad_norm: float) -> Seen:
    """What is remembered after a step. Means take in applied steps only: plain means until the
    window is full, exponential ones of its length from then on."""
    if verdict.action != "apply":
        return Seen(seen.applied, seen.mean_loss, seen.mean_norm, seen.skips + 1)
    applied = min(seen.applied + 1, spec.window_steps)
    return Seen(
        applied,
        seen.mean_loss + (loss - seen.mean_loss) / applied,
        seen.mean_norm + (grad_norm - seen.mean_norm) / applied,
    )


class Guard:
    """One run's guard. Every rank has one; they stay equal, for they see equal numbers."""

    def __init__(self, spec: GuardSpec) -> None:
        self._spec = spec
        self._seen = Seen()
        self.verdict = APPLY

    def admits(self, loss: float, grad_norm: float) -> bool:
        """Whether to apply the step; called once a step, by the engine, on every rank, before the
        optimizer moves."""
        self.verdict = judge(self._spec, self._seen, loss, grad_norm)
        self._seen = remember(self._spec, self._seen, self.verdict, loss, grad_norm)
        return self.verdict.action == "apply"

    def enforce(self, step: int, rank: int | None, places: Sequence[str]) -> str:
        """After the step: why it was skipped, empty where it was applied. `places` name where
        values were not finite, `rank` the first rank of them. Raises WorkerError, on every rank,
        where the verdict is to stop."""
        if self.verdict.action == "apply":
            return ""
        where = f" ({'; '.join(places)})" if places else ""
        reason = f"{self.verdict.reason}{where}"
        if self.verdict.action == "stop":
            error = WorkerError(
                f"step {step}",
                f"not applied on any rank, and the job stops: {reason}",
                fix="lower optim.lr or look at the data of this step; guard.nonfinite, "
                "guard.on_spike and guard.max_skips say what may be skipped",
            )
            error.rank = rank
            raise error
        log.warning("step %d skipped on all ranks: %s", step, reason)
        return reason

    def scalars(self) -> dict[str, float | int]:
        """What a checkpoint keeps: finite numbers, the same on every rank."""
        return {
            "guard_applied": self._seen.applied,
            "guard_mean_loss": self._seen.mean_loss,
            "guard_mean_norm": self._seen.mean_norm,
            "guard_skips": self._seen.skips,
        }

    def restore(self, scalars: Mapping[str, float | int]) -> None:
        """Take over what a checkpoint kept; one of a run without a guard begins anew."""
        if "guard_applied" in scalars:
            self._seen = Seen(
                int(scalars["guard_applied"]),
                float(scalars["guard_mean_loss"]),
                float(scalars["guard_mean_norm"]),
                int(scalars["guard_skips"]),
            )
