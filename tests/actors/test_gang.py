"""Real gangs on a simulated cluster of three nodes with three GPUs each that are not real."""

import contextlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from rayline.actors import cluster
from rayline.actors.bundles import gang_bundles, worker_bundle
from rayline.actors.controller import Controller
from rayline.actors.gang import Assignment
from rayline.actors.interrupt import StopRequest
from rayline.actors.placement import Placement, refuse_impossible
from rayline.actors.worker import RankFunction
from rayline.errors import PlacementError, SpecError, WorkerError
from rayline.spec import JobSpec, ParallelPlan, ResourceSpec, StepReport, TrainResult

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("three_nodes")]

MakeJob = Callable[..., JobSpec]


def run(
    job: JobSpec,
    function: RankFunction,
    reports: list[StepReport] | None = None,
    *,
    gpu: bool = False,
) -> tuple[TrainResult, list[str]]:
    """The result of a gang, and why it was started again."""
    assignment = Assignment(job, Path("model"), worker_bundle(job.resources, gpu), function)
    placement = Placement(gang_bundles(job.plan, job.resources, gpu))
    restarts: list[str] = []
    observers = [] if reports is None else [reports.append]

    def note(kind: str, text: str) -> None:
        if kind == "restarted":
            restarts.append(text)

    controller = Controller(assignment, placement, observers, StopRequest(), note)
    try:
        return controller.run(), restarts
    finally:
        assert_nothing_left()


def worker_processes() -> list[int]:
    """Processes of workers that this cluster's nodes started."""
    import ray

    ours = f"--gcs-address={ray.get_runtime_context().gcs_address}"
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            parent = process.parent()
            if process.name().startswith("ray::Worker") and parent and ours in parent.cmdline():
                found.append(process.pid)
    return found


def assert_nothing_left() -> None:
    from ray.util import placement_group_table

    deadline = time.monotonic() + 15
    while True:
        groups = [each for each in placement_group_table().values() if each["state"] != "REMOVED"]
        held = [node for node in cluster.nodes() if node.available != node.total]
        left = (worker_processes(), groups, held)
        if not any(left):
            return
        assert time.monotonic() < deadline, f"left over: {left}"
        time.sleep(0.2)


def places(job: JobSpec) -> list[dict[str, Any]]:
    return [
        json.loads(Path(job.directory, f"place-{rank}.json").read_text())
        for rank in range(job.plan.world_size)
    ]


def test_tensor_pairs_share_a_node_and_each_rank_knows_its_place(make_job: MakeJob) -> None:
    from support import rank_functions

    job = make_job(**{"plan.tensor": 2, "plan.pipeline": 3, "plan.microbatches": 3})
    reports: list[StepReport] = []
    result, _ = run(job, rank_functions.steps, reports, gpu=True)
    assert result == TrainResult(1, 3, True, None, None)
    assert [report.step for report in reports] == [1, 2, 3]
    found = places(job)
    assert [place["rank"] for place in found] == list(range(6))
    pairs = [(found[rank]["node"], found[rank + 1]["node"]) for rank in (0, 2, 4)]
    assert all(left == right for left, right in pairs)
    assert len({node for node, _ in pairs}) == 3
    assert [place["local_rank"] for place in found] == [0, 1] * 3
    # The GPUs are Ray's invention, so torch computes on the CPU, two nodes' workers share one
    # machine, and all six divide its cores.
    assert {place["device"] for place in found} == {"cpu"}
    cores = len(os.sched_getaffinity(0))
    assert {place["threads"] for place in found} == {str(max(1, cores // 6))}
    assert all(len(place["gpus"].split(",")) == 2 for place in found)
    assert len({tuple(place["master"]) for place in found}) == 1


def test_every_worker_keeps_a_log_of_all_it_says(make_job: MakeJob) -> None:
    from support import rank_functions

    job = make_job(**{"plan.tensor": 2})
    run(job, rank_functions.steps)
    logs = sorted(Path(job.directory, "logs").iterdir())
    assert [log.name for log in logs] == [
        "rank-00000-pp0-dp0-cp0-tp0.log",
        "rank-00001-pp0-dp0-cp0-tp1.log",
    ]
    text = logs[1].read_text()
    mark = " rank 1 pp0-dp0-cp0-tp1 | "
    assert f"{mark}printed by 1\n" in text
    assert f"{mark}second line\n" in text
    assert f"{mark}INFO user.code: logged by 1\n" in text
    assert "native line\n" in text


def test_four_on_a_node_of_three_is_refused_at_once() -> None:
    began = time.monotonic()
    bundles = gang_bundles(ParallelPlan(tensor=4), ResourceSpec(), gpu=True)
    with pytest.raises(PlacementError, match="needs 4 GPUs on one node; the largest node has 3"):
        refuse_impossible(bundles)
    assert time.monotonic() - began < 5


def test_what_is_not_free_in_time_names_every_node(make_job: MakeJob) -> None:

    import ray

    holder = ray.util.placement_group([{"GPU": 3}] * 3)
    assert holder.wait(20)
    job = make_job()
    placement = Placement(gang_bundles(job.plan, job.resources, gpu=True))
    try:
        with pytest.raises(PlacementError) as refused:
            placement.reserve(1.5, lambda: False)
        for node in cluster.nodes():
            assert f"node {node.id[:8]} ({node.address}) has " in str(refused.value)
        assert "0 of 3 GPU" in str(refused.value)
        assert "1 x (1 GPU, 1 CPU) within 1.5 s" in str(refused.value)
    finally:
        placement.release()
        ray.util.remove_placement_group(holder)
    assert_nothing_left()


def test_the_first_cause_is_told_and_nobody_is_waited_for(make_job: MakeJob) -> None:
    from support import rank_functions

    job = make_job(**{"plan.tensor": 3, "recovery.max_restarts": 3})
    began = time.monotonic()
    with pytest.raises(WorkerError) as told:
        run(job, rank_functions.raise_on_rank_1)
    assert time.monotonic() - began < 60
    assert told.value.rank == 1
    assert told.value.subject == "worker rank 1 (pp0-dp0-cp0-tp1)"
    assert told.value.problem.startswith("ZeroDivisionError: the user's own mistake, at ")
    assert "raise ZeroDivisionError" in told.value.remote_traceback


def test_a_refusal_of_the_training_arrives_unchanged(make_job: MakeJob) -> None:
    from support import rank_functions

    with pytest.raises(SpecError) as told:
        run(make_job(), rank_functions.refuse)
    assert str(told.value) == str(
        SpecError("data.files", "no such file", value="nothing.jsonl", fix="give another")
    )


def test_a_killed_worker_is_started_again_as_often_as_allowed(make_job: MakeJob) -> None:
    from support import rank_functions

    job = make_job(**{"plan.tensor": 2, "recovery.max_restarts": 1})
    reports: list[StepReport] = []
    result, restarts = run(job, rank_functions.killed_once, reports)
    assert result.last_step == 3
    assert [report.step for report in reports] == [3]
    assert len(restarts) == 1
    assert restarts[0].startswith("rank 1 was lost; restart 1 of 1")


def test_a_killed_worker_ends_the_job_where_no_restart_is_allowed(make_job: MakeJob) -> None:
    from support import rank_functions

    job = make_job(**{"plan.tensor": 2})
    with pytest.raises(WorkerError, match="its process ended") as told:
        run(job, rank_functions.killed_once)
    assert told.value.rank == 1
    assert "rank-00001-pp0-dp0-cp0-tp1.log" in told.value.fix


def test_a_lent_group_is_used_from_its_end_and_kept(make_job: MakeJob) -> None:
    import ray

    from support import rank_functions

    job = make_job(**{"plan.tensor": 2})
    bundles = gang_bundles(job.plan, job.resources, gpu=False)
    lent = ray.util.placement_group([{"CPU": 1}, *bundles])
    assert lent.wait(20)
    try:
        assignment = Assignment(
            job, Path("model"), worker_bundle(job.resources, gpu=False), rank_functions.steps
        )
        placement = Placement(bundles, lent)
        Controller(assignment, placement, [], StopRequest(), lambda kind, text: None).run()
        table = ray.util.placement_group_table(lent)
        assert table["state"] == "CREATED"
        node_of_bundle = table["bundles_to_node_id"]
        assert {place["node"] for place in places(job)} == {node_of_bundle[1]}
        with pytest.raises(SpecError, match="has 2 bundles; the gang needs 3"):
            Placement([*bundles, *bundles, *bundles], lent)
    finally:
        ray.util.remove_placement_group(lent)
