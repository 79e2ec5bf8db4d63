"""The profiler around steps: sampled rarely enough, traced where asked."""

import gzip
import json
from pathlib import Path

import torch
from hypothesis import given
from hypothesis import strategies as st

from rayline.spec import Coordinate, ProfileSpec, WorkerContext
from rayline.train.profile import FIRST_COST_S, LARGEST_SHARE, StepProfiler, sample_due


@given(
    costs=st.lists(st.floats(0.01, 50), min_size=1, max_size=30),
    step_s=st.floats(0.05, 20),
)
def test_samples_that_cost_what_the_one_before_did_take_a_hundredth(
    costs: list[float], step_s: float
) -> None:
    now_s = sampled_s = spent_s = 0.0
    cost_s = FIRST_COST_S
    for next_cost_s in sorted(costs, reverse=True):
        while not sample_due(now_s, sampled_s, cost_s):
            now_s += step_s
        # Samples that grow cheaper: none costs more than what was waited for.
        cost_s = min(next_cost_s, cost_s)
        now_s += cost_s
        spent_s += cost_s
        sampled_s = now_s
        assert spent_s <= LARGEST_SHARE * now_s


def context(rank: int) -> WorkerContext:
    return WorkerContext(
        rank=rank,
        world_size=2,
        local_rank=rank,
        coordinate=Coordinate(pipeline=0, data=rank, context=0, tensor=0),
        master_address="127.0.0.1",
        master_port=0,
        device="cpu",
    )


def do_steps(profiler: StepProfiler, count: int) -> list[float | None]:
    told = []
    matrix = torch.ones(32, 32)
    for step in range(1, count + 1):
        profiler.begin(step)
        with profiler.engine():
            matrix @ matrix
        told.append(profiler.end(step))
    return told


def names(file: Path) -> list[str]:
    events = json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]
    return [str(event.get("name")) for event in events]


def test_the_steps_asked_for_are_traced_and_no_others(tmp_path: Path) -> None:
    with StepProfiler(ProfileSpec(first_step=2, last_step=3), tmp_path, context(1)) as profiler:
        told = do_steps(profiler, 5)
    assert told == [None, None, 0.0, None, None]
    assert profiler.trace == tmp_path / "rank-00001-pp0-dp1-cp0-tp0.json.gz"
    found = names(profiler.trace)
    assert [name for name in found if name.startswith("step ")] == ["step 2", "step 3"]
    assert found.count("aten::mm") == 2


def test_a_job_that_ends_within_the_traced_steps_keeps_those_it_did(tmp_path: Path) -> None:
    with StepProfiler(ProfileSpec(first_step=2, last_step=9), tmp_path, context(0)) as profiler:
        do_steps(profiler, 3)
    assert profiler.trace is not None
    assert {"step 2", "step 3"} <= set(names(profiler.trace))


def test_rank_0_samples_and_leaves_no_trace(tmp_path: Path) -> None:
    with StepProfiler(None, tmp_path, context(0), first_cost_s=0.0) as profiler:
        told = do_steps(profiler, 20)
    assert told[0] == 0.0
    # The first sample cost so much that the next is far off.
    assert told[1:] == [None] * 19
    assert list(tmp_path.iterdir()) == []
    assert profiler.trace is None


def test_other_ranks_do_not_sample(tmp_path: Path) -> None:
    with StepProfiler(None, tmp_path, context(1), first_cost_s=0.0) as profiler:
        assert do_steps(profiler, 3) == [None] * 3


def test_a_short_run_is_not_sampled(tmp_path: Path) -> None:
    with StepProfiler(None, tmp_path, context(0)) as profiler:
        assert do_steps(profiler, 50) == [None] * 50
