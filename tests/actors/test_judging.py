"""Which promises a run under faults kept, by what came of it; no run is made here."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from rayline.actors.judging import SLOW_STEPS, Trial, judge
from rayline.actors.recovery import Recovery
from rayline.spec import Fault, FaultKind, StepReport
from rayline.tracking import RunEvent

AT_S = 1000.0
STEP = 10


def report(step: int, loss: float = 2.0) -> StepReport:
    return StepReport(
        step=step,
        loss=loss,
        grad_norm=1.0,
        lr=1e-3,
        tokens=8,
        processed_tokens=8,
        seconds=0.1,
        memory_bytes=1,
        at_s=AT_S + step - STEP,
    )


PEACE = Trial({step: report(step) for step in range(1, 61)}, {"model.safetensors": "ab"})


def recovery(resumed: int | None = STEP - 1, seen_s: float = AT_S + 1, rank: int = 2) -> Recovery:
    return Recovery(
        reason=f"rank {rank} was lost",
        epoch=2,
        lost_step=STEP - 1,
        seen_s=seen_s,
        parted_s=seen_s + 1,
        resumed_step=resumed,
    )


def war(found: Recovery | None, **changed: Any) -> Trial:
    recoveries = () if found is None else (found,)
    base = replace(PEACE, recoveries=recoveries, notes=[{"at_s": AT_S}])
    return replace(base, **changed)


def kept(kind: FaultKind, trial: Trial) -> bool:
    (judged,) = judge([Fault(kind=kind, rank=2, step=STEP)], PEACE, trial).judged
    return judged.passed


@pytest.mark.parametrize("kind", ["kill", "raise", "node", "partition", "hang", "stop"])
def test_a_promise_is_kept_where_the_loss_is_seen_and_only_the_step_in_flight_done_again(
    kind: FaultKind,
) -> None:
    assert kept(kind, war(recovery()))
    assert not kept(kind, war(None))
    # A recovery that had begun before is another fault's.
    assert not kept(kind, war(recovery(seen_s=AT_S - 5)))


@pytest.mark.parametrize(
    ("kind", "oldest"), [("kill", STEP - 1), ("node", STEP - 2), ("partition", STEP - 2)]
)
def test_steps_done_again_are_counted(kind: FaultKind, oldest: int) -> None:
    assert kept(kind, war(recovery(oldest)))
    assert not kept(kind, war(recovery(oldest - 1)))
    assert not kept(kind, war(recovery(None)))


def test_a_hang_is_to_be_named_in_time() -> None:
    assert not kept("hang", war(recovery(seen_s=AT_S + 15.5)))
    assert not kept("hang", war(recovery(rank=1)))
    assert not kept("partition", war(recovery(seen_s=AT_S + 21)))


def test_a_slow_rank_is_to_be_named_half_a_minute_after_its_twentieth_slow_step() -> None:
    last_s = AT_S + SLOW_STEPS - 1
    assert kept("slow", war(recovery(seen_s=last_s + 29)))
    assert not kept("slow", war(recovery(seen_s=last_s + 31)))
    assert not kept("slow", war(recovery(seen_s=last_s, rank=1)))


def test_a_damaged_checkpoint_is_to_be_found() -> None:
    note = {"at_s": AT_S, "passed_over": "step-00000008: rank-00000", "taken": "step-00000006"}
    assert kept("corrupt", war(recovery(), notes=[note]))
    assert not kept("corrupt", war(recovery(), notes=[note | {"passed_over": ""}]))


def test_a_full_disk_is_to_be_told_and_survived_without_a_new_beginning() -> None:
    event = RunEvent(datetime.fromtimestamp(AT_S + 2, UTC), "checkpoint", "step 12 not saved")
    assert kept("disk_full", war(None, events=[event], saved=[50, 60]))
    assert not kept("disk_full", war(None, events=[], saved=[50, 60]))
    assert not kept("disk_full", war(None, events=[event], saved=[8]))


def test_recoveries_belong_to_faults_in_their_order() -> None:
    faults = [
        Fault(kind="kill", rank=2, step=10),
        Fault(kind="disk_full", rank=0, step=15),
        Fault(kind="kill", rank=2, step=20),
        Fault(kind="kill", rank=2, step=30),
    ]
    told = judge(
        faults,
        PEACE,
        replace(
            PEACE,
            # The second one took two beginnings.
            recoveries=[
                recovery(9, AT_S + 1),
                recovery(19, AT_S + 11),
                recovery(19, AT_S + 14),
            ],
            notes=[{"at_s": AT_S}, {"at_s": AT_S + 5}, {"at_s": AT_S + 10}, None],
        ),
    ).judged
    assert [one.passed for one in told] == [True, False, True, False]
    assert [one.seen for one in told] == [
        "went on after step 9",
        "no word of it",
        "went on after step 19",
        "it never happened",
    ]


def test_both_runs_are_compared_to_the_bit() -> None:
    fault = [Fault(kind="kill", rank=2, step=STEP)]
    assert judge(fault, PEACE, war(recovery())).passed
    nearly = {**PEACE.reports, 7: report(7, 2.0000000000000004)}
    assert judge(fault, PEACE, war(recovery(), reports=nearly)).different_losses == 1
    assert not judge(fault, PEACE, war(recovery(), sha256={"model.safetensors": "cd"})).passed
    fewer = dict(list(PEACE.reports.items())[:-1])
    assert judge(fault, PEACE, war(recovery(), reports=fewer)).different_losses == 1
