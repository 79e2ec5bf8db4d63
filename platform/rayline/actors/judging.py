"""What a job under faults kept of its promises: two runs in, a verdict on each fault out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rayline.actors.recovery import Recovery
from rayline.actors.straggler import LAP_STEPS, LAPS
from rayline.spec import Fault, StepReport
from rayline.tracking import RunEvent

SLOW_STEPS = LAPS * LAP_STEPS
"""A rank is named once it was slow in so many."""
_CLOCKS_S = 1.0
"""Most that the clocks of two nodes are taken to differ by."""


@dataclass(frozen=True, slots=True)
class Trial:
    """What came of one run of the job."""

    reports: Mapping[int, StepReport]
    sha256: Mapping[str, str]
    """Of each exported file."""
    recoveries: Sequence[Recovery] = ()
    notes: Sequence[Mapping[str, Any] | None] = ()
    """What the rank of each fault noted before it let it happen; None where it never did."""
    events: Sequence[RunEvent] = ()
    saved: Sequence[int] = ()
    """Steps whose checkpoints stand on storage at the end."""


@dataclass(frozen=True, slots=True)
class Judged:
    """One fault: what was promised of it and what came."""

    fault: Fault
    promise: str
    """Number and words of the promise."""
    seen: str
    passed: bool
    detect_s: float | None
    """From the fault to the driver's seeing it; None where it never came."""
    recovery: Recovery | None

    @property
    def parts_s(self) -> dict[str, float]:
        """Seconds from the fault to the next finished step, as far as known, by what took them."""
        found = {} if self.detect_s is None else {"detect": self.detect_s}
        if self.recovery is not None:
            found |= {
                "leave": self.recovery.leave_s,
                "place": self.recovery.place_s,
                "start": self.recovery.start_s,
                "restore": self.recovery.restore_s,
                "step": self.recovery.first_step_s,
            }
        return found


@dataclass(frozen=True, slots=True)
class ChaosReport:
    """Both runs, compared."""

    judged: tuple[Judged, ...]
    steps: int
    different_losses: int
    """Steps whose loss is not the same, bit for bit, or which one run lacks."""
    weights_equal: bool
    """Whether every exported file has the same SHA-256."""

    @property
    def passed(self) -> bool:
        """Whether every promise was kept."""
        return (
            all(one.passed for one in self.judged)
            and not self.different_losses
            and self.weights_equal
        )


def judge(faults: Sequence[Fault], peace: Trial, war: Trial) -> ChaosReport:
    """Compare two runs of one job, the second under `faults`, which are in the order of steps."""
    steps = sorted(peace.reports.keys() | war.reports.keys())
    different = sum(
        step not in peace.reports
        or step not in war.reports
        or peace.reports[step].loss.hex() != war.reports[step].loss.hex()
        for step in steps
    )
    equal = bool(peace.sha256) and peace.sha256 == war.sha256
    judged = []
    left = list(war.recoveries)
    for fault, note in zip(faults, war.notes, strict=True):
        if note is None:
            judged.append(Judged(fault, _promise(fault), "it never happened", False, None, None))
        elif not fault.ends_a_beginning:
            judged.append(_judged_disk(fault, note["at_s"], war))
        else:
            recovery = _recovery_of(note["at_s"], left)
            judged.append(_judged(fault, note, recovery, war.reports))
    return ChaosReport(tuple(judged), len(steps), different, equal)


def _recovery_of(at_s: float, left: list[Recovery]) -> Recovery | None:
    """The first of those left that was begun after `at_s`; it is taken out, with all before it."""
    while left:
        first = left.pop(0)
        if first.seen_s >= at_s - _CLOCKS_S:
            return first
    return None


def _promise(fault: Fault) -> str:
    """Its number in the list of promises, and its words."""
    if fault.kind in ("hang", "stop"):
        return "T7: named within 15 s, then recovered"
    if fault.kind == "slow":
        return f"T8: named within 30 s of {SLOW_STEPS} slow steps, then replaced"
    if fault.kind == "node":
        # The copy on another node may be one snapshot behind the node's own.
        return "T4: at most one step more than the one in flight is done again"
    if fault.kind == "partition":
        return "T15: seen within 20 s, and what comes back writes nothing"
    if fault.kind == "corrupt":
        return "T9: the damage is found, and the checkpoint before it taken"
    if fault.kind == "disk_full":
        return "T11: training goes on, it is told, and later checkpoints are saved"
    return "T2: only the step in flight is done again"


def _judged(
    fault: Fault,
    note: Mapping[str, Any],
    recovery: Recovery | None,
    reports: Mapping[int, StepReport],
) -> Judged:
    promise = _promise(fault)
    if recovery is None:
        return Judged(fault, promise, "no recovery", False, None, None)
    detect_s = recovery.seen_s - note["at_s"]
    named = f"rank {fault.rank} " in recovery.reason
    if fault.kind in ("hang", "stop"):
        kept = named and detect_s <= 15.0
    elif fault.kind == "slow":
        last = reports.get(fault.step + SLOW_STEPS - 1)
        kept = named and last is not None and recovery.seen_s - last.at_s <= 30.0
    else:
        behind = 2 if fault.kind in ("node", "partition") else 1
        kept = recovery.resumed_step is not None and recovery.resumed_step >= fault.step - behind
        kept = kept and (fault.kind != "partition" or detect_s <= 20.0)
        kept = kept and (fault.kind != "corrupt" or bool(note["passed_over"]))
    whence = recovery.resumed_step
    seen = "from storage" if whence is None else f"went on after step {whence}"
    if fault.kind == "corrupt":
        seen = f"{note['passed_over'] or 'not found'}; {note['taken']} taken; {seen}"
    return Judged(fault, promise, seen, kept, detect_s, recovery)


def _judged_disk(fault: Fault, at_s: float, war: Trial) -> Judged:
    """A keeper that could not write for a while: told by an event, and over in the end."""
    alarm = next(
        (
            event
            for event in war.events
            if event.kind == "checkpoint" and event.at.timestamp() >= at_s - _CLOCKS_S
        ),
        None,
    )
    if alarm is None:
        return Judged(fault, _promise(fault), "no word of it", False, None, None)
    kept = max(war.saved, default=0) > fault.step
    detect_s = alarm.at.timestamp() - at_s
    return Judged(fault, _promise(fault), alarm.text, kept, detect_s, None)
