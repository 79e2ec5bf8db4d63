"""`plan: auto`: the choice on a cluster's nodes, what is kept of it, and the same choice again."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from rayline.actors.automatic import automatic, machines_for, told
from rayline.actors.bundles import Node
from rayline.errors import SpecError
from rayline.planner.model_catalogue import SHAPES
from rayline.spec import JobSpec, StepReport

MakeJob = Callable[..., JobSpec]
LLAMA = SHAPES["meta-llama/Llama-3.2-1B"]


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home without a calibration of its own."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def gpu_nodes(count: int, gpus: int = 8, kind: str = "H100") -> list[Node]:
    total = {"CPU": 64.0, "GPU": float(gpus), "memory": 2.0**40, f"accelerator_type:{kind}": 1.0}
    return [Node(f"node{n}", f"10.0.0.{n}", total, total) for n in range(count)]


def cpu_nodes(count: int, cpus: float = 2.0) -> list[Node]:
    total = {"CPU": cpus, "memory": 16.0 * 2**30}
    return [Node(f"node{n}", f"10.0.0.{n}", total, total) for n in range(count)]


def auto_job(make_job: MakeJob, **changes: object) -> JobSpec:
    usual = {"plan": "auto", "precision": "bf16", "data.sequence_tokens": 2048}
    return make_job(**{**usual, "batch.sequences": 64, **changes})


def test_all_of_the_cluster_is_used_and_a_tensor_group_stays_on_a_node(make_job: MakeJob) -> None:
    chosen = automatic(auto_job(make_job), LLAMA, gpu_nodes(4), gpu=True)
    plan = chosen.job.plan

    assert plan.world_size == 32
    assert plan.tensor <= 8
    assert not plan.auto
    assert not chosen.resumed
    assert chosen.predicted == chosen.best[0]
    assert told(auto_job(make_job), chosen).plan == plan


def test_spares_and_what_divides_nothing_are_left_over(make_job: MakeJob) -> None:
    spare = auto_job(make_job, **{"recovery.spares": 1})
    assert machines_for(spare, gpu_nodes(2), True)[0].gpus == 15
    # 37 workers divide neither layers nor sequences: the next smaller gang that does is taken.
    chosen = automatic(auto_job(make_job), LLAMA, gpu_nodes(1, 37), gpu=True)
    assert chosen.job.plan.world_size in (32, 33, 34, 35, 36)


def test_gpus_of_a_kind_that_nobody_tells_are_refused(make_job: MakeJob) -> None:
    total = {"CPU": 8.0, "GPU": 8.0}
    with pytest.raises(SpecError, match="auto needs to know the kind"):
        automatic(auto_job(make_job), LLAMA, [Node("a", "10.0.0.1", total, total)], gpu=True)


def test_what_fits_nowhere_is_refused_with_what_is_missing(make_job: MakeJob) -> None:
    with pytest.raises(SpecError, match=r"none of .* plans fits 2 x L4"):
        automatic(
            auto_job(make_job), SHAPES["meta-llama/Llama-3-70B"], gpu_nodes(1, 2, "L4"), gpu=True
        )


def test_workers_that_share_cores_are_counted(make_job: MakeJob) -> None:
    small = replace(
        LLAMA, layers=4, hidden=64, heads=4, kv_heads=2, head_dim=16, ffn=128, vocab=512
    )
    job = auto_job(make_job, precision="fp32", **{"resources.cpus_per_worker": 0.5})
    (machines, *_) = machines_for(job, cpu_nodes(2), False)
    chosen = automatic(job, small, cpu_nodes(2), gpu=False)

    assert (machines.gpus, machines.node, machines.workers_per_core) == (8, 4, 2.0)
    assert chosen.job.plan.world_size == 8


@pytest.mark.ray
def test_a_job_is_planned_compared_and_goes_on_with_its_plan(
    text_job: JobSpec, own_home: Path
) -> None:
    import ray

    from rayline.actors import train
    from rayline.tracking import read_run

    job = text_job.changed(
        {"plan": "auto", "steps": 8, "stop_after_step": 6, "init": "random",
         "resources.cpus_per_worker": 0.5}
    )  # fmt: skip
    reports: list[StepReport] = []
    ray.init(address="local", num_cpus=1, num_gpus=0, include_dashboard=False, log_to_driver=False)
    try:
        first = train(job, observers=[reports.append])
        second = train(job.changed({"stop_after_step": None}), observers=[reports.append])
    finally:
        ray.shutdown()

    runs = [read_run(job.tracking, outcome.run_id) for outcome in (first, second)]
    assert [report.step for report in reports] == list(range(1, 9))
    assert [run.tags["rayline.plan_chosen"] for run in runs] == ["auto", "checkpoint"]
    assert runs[0].tags["rayline.plan"] == runs[1].tags["rayline.plan"]
    assert runs[0].params["plan.auto"] == "false"
    folder = Path(job.directory).parent / "mlartifacts" / first.run_id / "artifacts"
    kept = json.loads((folder / "plan.json").read_text())
    assert kept["alternatives"][0]["plan"] == kept["chosen"]["plan"]
    measured = json.loads((folder / "plan_measured.json").read_text())
    assert measured["measured_step_s"] > 0
    assert measured["measured_memory_gib"] > 0.1
    with (own_home / ".rayline" / "runs.csv").open() as table:
        (row, *_) = csv.DictReader(table)
    assert float(row["step_time_s"]) == pytest.approx(measured["measured_step_s"], rel=1e-4)
    assert (row["dp"], row["gpu_type"]) == (runs[0].params["plan.data"], "CPU")
    assert row["n_gpus"] == "2"
