"""What the planner refuses, in numbers: nothing is started."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rayline.errors import SpecError
from rayline.planner.accelerators import find_accelerator
from rayline.planner.calibration_file import shipped_calibration
from rayline.planner.columns import Machines
from rayline.spec import JobSpec, ModelShape, TuneSpec
from rayline.tuning.pruning import Devices, Pruning, Verdict, plan_values

MakeSearch = Callable[..., TuneSpec]
SHAPE = ModelShape(
    layers=32,
    hidden=4096,
    heads=32,
    kv_heads=8,
    head_dim=128,
    ffn=14336,
    vocab=128256,
    tied_embeddings=False,
    max_positions=8192,
)
"""Llama 3, 8 B."""
PLANS = {
    "plan.data": {"choices": [1, 2, 4, 8]},
    "plan.tensor": {"choices": [1, 2, 4, 8]},
    "plan.pipeline": {"choices": [1, 2, 4]},
    "recompute": {"choices": ["none", "full"]},
    "optim.lr": {"low": 1e-5, "high": 1e-3, "log": True},
}
H100 = Machines(find_accelerator("H100"), 64)


def large(make_search: MakeSearch, **changes: Any) -> TuneSpec:
    return make_search(
        space=PLANS,
        **{
            "job.precision": "bf16",
            "job.data.sequence_tokens": 4096,
            "job.batch.sequences": 64,
            "job.plan.microbatches": 4,
            **changes,
        },
    )


def judged(
    spec: TuneSpec,
    params: dict[str, Any],
    memory_gib: float | None = None,
    pruning: Pruning | None = None,
) -> tuple[JobSpec, Verdict]:
    pruning = pruning or Pruning(spec, shipped_calibration().curves)
    job = spec.job.changed(params)
    room = memory_gib or H100.accelerator.memory_gib
    devices = Devices(replace(H100, gpus=job.plan.world_size), room)
    return job, pruning.judge(job, params, SHAPE, devices)


def test_what_does_not_fit_is_refused_with_both_figures(make_search: MakeSearch) -> None:
    one = {"plan.data": 1, "plan.tensor": 1, "plan.pipeline": 1, "recompute": "none"}
    _, verdict = judged(large(make_search), one)
    # Weights, their gradients and two means in fp32, and a copy in bf16: 18 bytes x 8 B.
    assert verdict.refused == "memory"
    assert verdict.memory_gib is not None
    assert verdict.memory_gib > 130
    assert f"needs {verdict.memory_gib:.2f} GiB" in verdict.reason


def test_what_fits_passes_with_its_prediction(make_search: MakeSearch) -> None:
    wide = {"plan.data": 8, "plan.tensor": 8, "plan.pipeline": 1, "recompute": "full"}
    _, verdict = judged(large(make_search), wide)
    assert verdict.refused is None
    assert verdict.memory_gib is not None
    assert verdict.memory_gib < 80
    assert verdict.step_s is not None
    assert verdict.step_s > 0


def test_what_the_spec_refuses_is_refused_in_its_words(make_search: MakeSearch) -> None:
    spec = large(make_search, **{"job.batch.sequences": 6})
    _, verdict = judged(spec, {"plan.data": 4})
    assert verdict.refused == "spec"
    assert "batch.sequences" in verdict.reason


@given(
    data=st.sampled_from([1, 2, 4, 8]),
    tensor=st.sampled_from([1, 2, 4, 8]),
    recompute=st.sampled_from(["none", "full"]),
    room_gib=st.floats(1, 2000),
)
@settings(
    deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_memory_decides_and_only_memory(
    make_search: MakeSearch, data: int, tensor: int, recompute: str, room_gib: float
) -> None:
    params = {"plan.data": data, "plan.tensor": tensor, "recompute": recompute}
    spec = large(make_search)
    _, verdict = judged(spec, params, room_gib)
    assert verdict.memory_gib is not None
    assert (verdict.refused == "memory") is (verdict.memory_gib > room_gib)
    off = large(make_search, **{"prune.memory": False})
    assert judged(off, params, room_gib)[1].refused is None


def test_no_plan_is_compared_by_time_unless_asked(make_search: MakeSearch) -> None:
    slow = {"plan.data": 1, "plan.tensor": 8, "plan.pipeline": 4, "recompute": "full"}
    assert judged(large(make_search), slow)[1].refused is None


@pytest.mark.parametrize("times", [1.01, 1.5, 100.0])
def test_what_is_slower_than_so_many_times_the_best_is_refused(
    make_search: MakeSearch, times: float
) -> None:
    spec = large(make_search, **{"prune.slower_than": times})
    pruning = Pruning(spec, shipped_calibration().curves)
    predicted: dict[tuple[Any, ...], Verdict] = {}
    values = plan_values(spec.space)
    for data in values["plan.data"]:
        for tensor in values["plan.tensor"]:
            for pipeline in values["plan.pipeline"]:
                for recompute in values["recompute"]:
                    params = {
                        "plan.data": data,
                        "plan.tensor": tensor,
                        "plan.pipeline": pipeline,
                        "recompute": recompute,
                        "optim.lr": 1e-4,
                    }
                    key = tuple(params.values())
                    try:
                        predicted[key] = judged(spec, params, pruning=pruning)[1]
                    except SpecError:
                        continue
    fitting = [one for one in predicted.values() if one.refused in (None, "time")]
    times_s = [one.step_s for one in fitting if one.step_s is not None]
    best_s = min(times_s)
    for one in fitting:
        assert one.step_s is not None
        assert (one.refused == "time") is (one.step_s > times * best_s)
    assert any(one.refused is None for one in fitting)


def test_unknown_devices_refuse_nothing(make_search: MakeSearch) -> None:
    spec = large(make_search, **{"prune.slower_than": 2.0})
    pruning = Pruning(spec, shipped_calibration().curves)
    verdict = pruning.judge(spec.job, {}, SHAPE, Devices(None, None))
    assert verdict.refused is None
    assert verdict.step_s is None


def test_a_memory_that_is_told_holds_for_unknown_devices(make_search: MakeSearch) -> None:
    spec = large(make_search)
    pruning = Pruning(spec, shipped_calibration().curves)
    assert pruning.judge(spec.job, {}, SHAPE, Devices(None, 80.0)).refused == "memory"


def test_the_plans_of_a_space(make_search: MakeSearch) -> None:
    spec = make_search(
        space={
            "plan.data": {"low": 1, "high": 3, "integer": True},
            "recompute": {"choices": ["none", "full"]},
            "optim.lr": {"choices": [1.0]},
        }
    )
    assert plan_values(spec.space) == {"plan.data": [1, 2, 3], "recompute": ["none", "full"]}
