"""Predicted step times: what must hold whatever the curves are."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayline.planner.accelerators import ACCELERATORS, find_accelerator
from rayline.planner.columns import Habits, Layout, Machines, Sizes, stack
from rayline.planner.curves import Curves
from rayline.planner.model_catalogue import find_shape
from rayline.planner.stage_memory import predict_memory
from rayline.planner.step_time import predict_step

LLAMA = find_shape("Llama-3-8B")
assert LLAMA is not None
SIZES = Sizes.of(LLAMA)
KINDS = sorted(set(ACCELERATORS) - {"CPU"})


def predicted(
    layout: Layout, kind: str = "H100", habits: Habits | None = None, **fields: float
) -> dict[str, float]:
    """Seconds and bytes of one run, with its whole step and whole memory."""
    gpus = int(layout.tensor * layout.pipeline * layout.data * layout.context)
    machines = Machines(find_accelerator(kind), gpus)
    row = (SIZES, machines, layout, habits or Habits(), fields.get("tokens", 8192.0), "bf16")
    columns = stack([row])
    times, memory = predict_step(columns, Curves()), predict_memory(columns, Curves())
    found = {name: float(getattr(times, name)[0]) for name in times.__dataclass_fields__}
    held = {name: float(getattr(memory, name)[0]) for name in memory.__dataclass_fields__}
    return {**found, **held, "step": float(times.total_s[0]), "bytes": float(memory.total[0])}


layouts = st.builds(
    Layout,
    tensor=st.sampled_from([1, 2, 4, 8]),
    pipeline=st.sampled_from([1, 2, 4]),
    data=st.sampled_from([1, 2, 8]),
    microbatch=st.sampled_from([1, 2, 4]),
    microbatches=st.sampled_from([4, 8, 16]),
    zero=st.sampled_from([0, 1]),
    recompute=st.sampled_from([0, 1, 2]),
)


@settings(max_examples=25, deadline=None)
@given(layouts, st.sampled_from(KINDS))
def test_the_parts_of_a_step_add_up_and_none_is_negative(layout: Layout, kind: str) -> None:
    found = predicted(layout, kind)
    parts = [found[name] for name in found if name.endswith("_s")]

    assert len(parts) == 6
    assert min(parts) >= 0
    assert sum(parts) == pytest.approx(found["step"])


@settings(max_examples=25, deadline=None)
@given(layouts)
def test_the_parts_of_memory_add_up(layout: Layout) -> None:
    found = predicted(layout)
    names = ("weights", "gradients", "optimizer", "activations", "logits", "buffers")

    assert min(found[name] for name in names) >= 0
    assert sum(found[name] for name in names) == pytest.approx(found["bytes"])


@settings(max_examples=25, deadline=None)
@given(layouts)
def test_more_sequences_at_a_time_take_more_memory_and_more_time(layout: Layout) -> None:
    twice = replace(layout, microbatch=2 * layout.microbatch)

    assert predicted(twice)["bytes"] > predicted(layout)["bytes"]
    assert predicted(twice)["compute_s"] > predicted(layout)["compute_s"]


@settings(max_examples=25, deadline=None)
@given(layouts)
def test_recompute_trades_time_for_memory(layout: Layout) -> None:
    none = predicted(replace(layout, recompute=0))
    full = predicted(replace(layout, recompute=2))

    assert full["step"] > none["step"]
    assert full["bytes"] <= none["bytes"]


@settings(max_examples=25, deadline=None)
@given(layouts)
def test_more_microbatches_make_the_bubble_a_smaller_share(layout: Layout) -> None:
    more = replace(layout, microbatches=4 * layout.microbatches)
    share = [found["bubble_s"] / found["step"] for found in map(predicted, (layout, more))]

    assert share[1] <= share[0]


def test_the_bubble_of_even_stages_is_that_of_narayanan() -> None:
    """(stages - 1) / microbatches of the computing, and a chunk's part of it where there are
    several (Narayanan et al. 2021, section 2.2); the head makes the last stage a little longer."""
    found = predicted(Layout(pipeline=4, microbatches=16))
    chunked = predicted(Layout(pipeline=4, microbatches=16, chunks=4))

    assert found["bubble_s"] / found["compute_s"] == pytest.approx(3 / 16, rel=0.25)
    assert chunked["bubble_s"] == pytest.approx(found["bubble_s"] / 4)


def test_zero_shares_out_what_the_paper_says() -> None:
    """Rajbhandari et al. 2020, section 3: 12 bytes a parameter over the ranks."""
    whole = predicted(Layout(data=8))
    shared = predicted(Layout(data=8, zero=1, shard=8))

    assert shared["optimizer"] == pytest.approx(whole["optimizer"] / 8)
    assert shared["weights"] == whole["weights"]


def test_a_slow_network_costs_nothing_within_a_node() -> None:
    layout = Layout(data=8, zero=1, shard=8)
    gpus = find_accelerator("A100-80G")
    row = (SIZES, Machines(gpus, 8), layout, Habits(hides_data=0), 2048.0, "bf16")
    slow = (SIZES, Machines(gpus, 8, 0, 1e9), layout, Habits(hides_data=0), 2048.0, "bf16")
    apart = (SIZES, Machines(gpus, 8, 4, 1e9), layout, Habits(hides_data=0), 2048.0, "bf16")
    seconds = predict_step(stack([row, slow, apart]), Curves()).data_s

    assert seconds[0] == seconds[1]
    assert seconds[2] > 10 * seconds[0]


def test_columns_are_predicted_as_single_runs_are() -> None:
    rows = [
        (
            SIZES,
            Machines(find_accelerator("H100"), 8),
            Layout(data=8 // t, tensor=t),
            Habits(),
            4096.0,
            "bf16",
        )
        for t in (1, 2, 4, 8)
    ]
    together = predict_step(stack(rows), Curves()).total_s
    alone = [float(predict_step(stack([row]), Curves()).total_s[0]) for row in rows]

    assert np.allclose(together, alone)
