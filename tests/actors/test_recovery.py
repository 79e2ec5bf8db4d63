"""Real gangs under real faults: what is lost comes back, bit for bit."""

import threading
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from rayline import Client
from rayline.actors import gang, laps
from rayline.actors.bundles import gang_bundles, worker_bundle
from rayline.actors.chaos import check_faults, draw_faults, faulty_rank
from rayline.actors.controller import Controller
from rayline.actors.gang import Assignment
from rayline.actors.interrupt import StopRequest
from rayline.actors.judging import ChaosReport
from rayline.actors.placement import Placement
from rayline.checkpoint import list_steps
from rayline.errors import SpecError
from rayline.spec import Fault, JobSpec
from support.docs import run_example


@pytest.fixture
def job(text_job: JobSpec) -> JobSpec:
    """Thirteen steps of some tenths of a second over four ranks on two nodes, with a snapshot after
    each."""
    return text_job.changed(
        {
            "steps": 13,
            "data.sequence_tokens": 128,
            "batch.sequences": 32,
            "plan.data": 2,
            "plan.tensor": 2,
            "checkpoint.every_steps": 3,
            "recovery.snapshot_every_steps": 1,
            "recovery.spares": 1,
            "recovery.hang_after_s": 4,
            "resources.cpus_per_worker": 2,
        }
    )


def test_a_fault_is_read_from_a_line_and_refused_where_it_has_no_place(job: JobSpec) -> None:
    fault = Fault.read("kill", "rank=3@step=12,phase=backward")
    assert fault == Fault(kind="kill", rank=3, step=12, phase="backward")
    assert str(fault) == "kill rank=3@step=12,phase=backward"
    check_faults(job, [fault])
    with pytest.raises(SpecError, match="rank"):
        check_faults(job, [fault.model_copy(update={"rank": 4})])
    with pytest.raises(SpecError, match="step"):
        check_faults(job, [fault.model_copy(update={"step": 14})])
    with pytest.raises(SpecError, match="says no rank and step"):
        Fault.read("kill", "rank=3")
    with pytest.raises(SpecError, match="phase"):
        Fault.read("kill", "rank=3@step=2,phase=backwards")
    slow = Fault.read("slow", "rank=1@step=2")
    check_faults(job, [slow])
    with pytest.raises(SpecError, match="replaced only once"):
        check_faults(job, [slow, slow.model_copy(update={"step": 9})])
    with pytest.raises(SpecError, match="a phase that every step has: data, forward"):
        Fault.read("slow", "rank=1@step=2,phase=save")


def test_drawn_faults_are_the_same_for_a_seed_and_lie_within_the_job(job: JobSpec) -> None:
    for seed in range(50):
        faults = draw_faults(job, 5, seed)
        assert faults == draw_faults(job, 5, seed)
        check_faults(job, faults)
        steps = [fault.step for fault in faults]
        assert all(later - earlier >= 2 for earlier, later in pairwise(steps))
        assert all(fault.phase != "save" or fault.step % 3 == 0 for fault in faults)
    with pytest.raises(SpecError, match="at least 23"):
        draw_faults(job, 10, 0)


def table(report: ChaosReport) -> str:
    return "\n".join(f"{one.fault}: {one.seen} {one.recovery}" for one in report.judged)


@pytest.mark.ray
def test_whatever_is_lost_wherever_the_run_is_the_same_bit_for_bit(
    job: JobSpec, mortal_nodes: Any
) -> None:
    for _ in range(3):
        mortal_nodes.add_node(num_cpus=4)
    faults = [
        # Rank 1 has no connection to rank 2: it is told by its neighbours, who leave.
        Fault(kind="kill", rank=2, step=3, phase="backward"),
        Fault(kind="raise", rank=1, step=5, phase="optimizer"),
        Fault(kind="node", rank=3, step=7, phase="collective"),
        Fault(kind="kill", rank=0, step=9, phase="save"),
        Fault(kind="stop", rank=2, step=11, phase="forward"),
    ]
    names: dict[str, Any] = {"client": Client(), "job": job, "faults": faults}
    run_example(Client.chaos, names)
    report: ChaosReport = names["report"]
    print(table(report))
    assert [one.fault for one in report.judged if not one.passed] == [], table(report)
    assert report.steps == 13
    assert report.different_losses == 0
    assert report.weights_equal
    # Written beside the steps but for the last one, whatever was lost meanwhile.
    assert list_steps(Path(job.directory) / "broken" / "checkpoints") == [12, 13]
    hung = report.judged[-1].recovery
    assert hung is not None
    assert "rank 2 was lost" in hung.reason
    assert "does not answer while others wait in" in hung.reason
    (verdict,) = (Path(job.directory) / "broken" / "hangs").glob("*/verdict.txt")
    assert verdict.read_text().startswith("rank 2 does not answer")
    assert "torch/distributed" in verdict.with_name("rank-00003.txt").read_text()


@pytest.mark.ray
def test_a_slow_rank_is_named_and_replaced(
    text_job: JobSpec, mortal_nodes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With laps of a second in place of four."""
    monkeypatch.setattr(gang, "_WATCH_S", 0.25)
    monkeypatch.setattr(laps, "_ASK_S", 0.75)
    monkeypatch.setattr(laps, "LAP_LOOKS", 25)
    mortal_nodes.add_node(num_cpus=2)
    job = text_job.changed(
        {
            "steps": 100_000,
            "plan.data": 2,
            "recovery.snapshot_every_steps": 1,
            "recovery.max_restarts": 1,
            "recovery.spares": 1,
            "recovery.stragglers": "replace",
        }
    )
    fault = Fault(kind="slow", rank=1, step=20, phase="forward")
    stop = threading.Event()
    events: list[tuple[str, str]] = []

    def note(kind: str, text: str) -> None:
        events.append((kind, text))
        if kind == "recovered":
            stop.set()

    assignment = Assignment(
        job,
        Path(str(job.model.directory)),
        worker_bundle(job.resources, gpu=False),
        partial(faulty_rank, (fault,)),
    )
    placement = Placement(gang_bundles(job.plan, job.resources, gpu=False))
    Controller(assignment, placement, [], StopRequest(stop), note).run()
    assert [kind for kind, _ in events] == ["straggler", "restarted", "recovered"], events
    told = events[0][1]
    assert told.startswith("worker rank 1 (pp0-dp1-cp0-tp0) takes ")
    assert "times as long for its own part of a step as its only peer, since step " in told
    assert told.endswith("; it is replaced")
    assert events[1][1].startswith("rank 1 is slow; restart 1 of 1: takes ")
