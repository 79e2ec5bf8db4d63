"""A job that may go on narrower: on fewer nodes it goes on, on more it is what it was."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from rayline.actors import controller
from rayline.actors.chaos import faulty_rank
from rayline.actors.driver import train
from rayline.actors.elastic import Elastic, with_own_room
from rayline.errors import PlacementError
from rayline.launch.capacity import Node
from rayline.spec import Fault, JobSpec, ModelShape, StepReport, TrainResult, WorkerContext
from rayline.tracking import read_run
from rayline.train.link import Link

SHAPE = ModelShape.from_config(
    {
        "num_hidden_layers": 4,
        "hidden_size": 64,
        "num_attention_heads": 4,
        "intermediate_size": 128,
        "vocab_size": 512,
    }
)
GIB = 2.0**30


def node(name: str, free_cpus: float, cpus: float = 4.0, memory: float = 64 * GIB) -> Node:
    return Node(name, name, {"CPU": cpus, "memory": memory}, {"CPU": free_cpus, "memory": memory})


@pytest.fixture
def job(text_job: JobSpec) -> JobSpec:
    """Two data ranks, on a node each."""
    return text_job.changed(
        {
            "steps": 40,
            "plan": {"data": 2},
            "checkpoint.every_steps": 15,
            "recovery.snapshot_every_steps": 1,
            "recovery.max_restarts": 1,
            "recovery.elastic": True,
            "recovery.patience_s": 2,
            "resources.cpus_per_worker": 4,
        }
    )


def paced_rank(
    faults: tuple[Fault, ...], job: JobSpec, context: WorkerContext, model: Path, link: Link
) -> TrainResult:
    """Steps that are slow while the gang is narrow, so that a node comes while there are steps."""

    def observe(report: StepReport) -> None:
        link.observe(report)
        time.sleep(0.3 if context.world_size == 1 else 0.0)

    return faulty_rank(faults, job, context, model, replace(link, observe=observe))


def test_what_others_hold_is_no_room_and_what_the_gang_holds_is(job: JobSpec) -> None:
    elastic = Elastic(job, SHAPE, gpu=False)
    narrow = elastic.fitting([node("a", 3.0), node("b", 4.0)])
    assert narrow is not None
    assert elastic.fitting([node("a", 4.0), node("b", 4.0)], below=2) == narrow
    assert narrow.plan.world_size == 1
    assert elastic.fitting([node("a", 1.0), node("b", 1.0)]) is None
    assert elastic.could_fit([node("a", 1.0), node("b", 1.0)])
    bundle = {"CPU": 4.0}
    freed = with_own_room([node("a", 0.0), node("b", 4.0)], [("a", bundle), ("gone", bundle)])
    assert [one.available["CPU"] for one in freed] == [4.0, 4.0]
    whole = elastic.fitting(freed)
    assert whole is not None
    assert whole.plan == job.plan


def test_a_node_without_the_memory_is_no_room(job: JobSpec) -> None:
    assert Elastic(job, SHAPE, gpu=False).fitting([node("a", 4.0, memory=1e6)]) is None
    # What a GPU has is not known to Ray.
    gpus = Node("a", "a", {"CPU": 8.0, "GPU": 4.0}, {"CPU": 8.0, "GPU": 4.0})
    assert Elastic(job, SHAPE, gpu=True).fitting([gpus]) is not None


def test_no_room_says_what_each_node_has(job: JobSpec) -> None:
    wrong = Elastic(job, SHAPE, gpu=False).no_room([node("first", 1.0)])
    assert isinstance(wrong, PlacementError)
    assert "node first has 1 CPU free" in str(wrong)
    assert "resume" in str(wrong)


@pytest.mark.ray
def test_a_lost_node_narrows_the_gang_and_a_new_one_widens_it_again(
    job: JobSpec, mortal_nodes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batch and data stay: every step once, and its loss that of one worker in an unbroken run."""
    monkeypatch.setattr(controller, "_ROOM_LOOK_S", 1.0)
    for _ in range(2):
        mortal_nodes.add_node(num_cpus=4)
    # Workers import this file for `paced_rank`, and have no tests' modules.
    from support.one_rank import run_alone

    alone = job.changed({"plan": {"data": 1}, "output_dir": f"{job.output_dir}-unbroken"})
    unbroken = [report.loss for report in run_alone(alone, Path(str(job.model.directory)))[1]]
    told: list[StepReport] = []
    came: list[int] = []

    def follow(report: StepReport) -> None:
        told.append(report)
        if report.workers == 1 and not came:
            came.append(report.step)
            mortal_nodes.add_node(num_cpus=4)

    lost = Fault(kind="node", rank=1, step=8, phase="backward")
    outcome = train(job, observers=[follow], rank_function=partial(paced_rank, (lost,)))

    assert [report.step for report in told] == list(range(1, 41))
    widths = [report.workers for report in told]
    assert [width for at, width in enumerate(widths) if not at or widths[at - 1] != width] == [
        2,
        1,
        2,
    ]
    assert max(abs(report.loss - loss) for report, loss in zip(told, unbroken, strict=True)) < 1e-4
    (recovery,) = outcome.recoveries
    assert recovery.resumed_step is not None
    assert recovery.resumed_step >= 6
    events = read_run(job.tracking, outcome.run_id).events
    replanned = [event.text for event in events if event.kind == "replanned"]
    assert len(replanned) == 2, events
