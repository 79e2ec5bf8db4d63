"""The learning rate and the batch as functions of the step."""

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from rayline.errors import SpecError
from rayline.spec import AdamWSpec, BatchSpec, PlateauSchedule, ScheduleSpec
from rayline.train.schedule import Plateau, learning_rate

KINDS: tuple[dict[str, Any], ...] = (
    {"kind": "constant"},
    {"kind": "linear"},
    {"kind": "cosine"},
    {"kind": "polynomial", "power": 3.0},
    {"kind": "wsd", "decay_steps": 5},
    {"kind": "wsd", "decay_steps": 5, "decay": "linear"},
    {"kind": "wsd", "decay_steps": 5, "decay": "cosine"},
    {"kind": "exponential", "factor": 0.9},
    {"kind": "step", "every_steps": 3, "factor": 0.5},
    {"kind": "plateau"},
)
ENDS_AT_FLOOR = ("linear", "cosine", "polynomial", "wsd")


def optim(schedule: object, warmup: int = 0, floor: float = 0.1, lr: float = 2.0) -> AdamWSpec:
    return AdamWSpec.parse(
        {"lr": lr, "warmup_steps": warmup, "schedule": schedule, "min_lr_ratio": floor}
    )


def rates(schedule: object, steps: int, **more: Any) -> list[float]:
    spec = optim(schedule, **more)
    return [learning_rate(spec, step, steps) for step in range(1, steps + 1)]


@settings(deadline=None)
@given(
    schedule=st.sampled_from(KINDS),
    warmup=st.integers(0, 8),
    steps=st.integers(1, 40),
    floor=st.floats(0, 1),
)
def test_it_rises_to_the_peak_and_never_leaves_the_floor_again(
    schedule: dict[str, Any], warmup: int, steps: int, floor: float
) -> None:
    found = rates(schedule, steps, warmup=warmup, floor=floor)
    rising, after = found[:warmup], found[warmup:]
    assert rising == [2.0 * (step + 1) / warmup for step in range(len(rising))]
    assert all(2.0 * floor * (1 - 1e-12) <= rate <= 2.0 for rate in after)
    assert all(later <= earlier * (1 + 1e-12) for earlier, later in pairwise(after))
    if after and schedule["kind"] in ENDS_AT_FLOOR:
        assert after[-1] == pytest.approx(2.0 * floor)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [2, 2, 2, 2]),
        ("linear", [1.5, 1, 0.5, 0]),
        ("cosine", [2 * 0.5 * (1 + math.cos(math.pi * n / 4)) for n in (1, 2, 3, 4)]),
        ({"kind": "polynomial"}, [2 * 0.75**2, 0.5, 2 * 0.25**2, 0]),
        ({"kind": "wsd", "decay_steps": 2, "decay": "linear"}, [2, 2, 1, 0]),
        ({"kind": "wsd", "decay_steps": 2}, [2, 2, 2 * (1 - 0.5**0.5), 0]),
        ({"kind": "wsd", "decay_steps": 9, "decay": "linear"}, [1.5, 1, 0.5, 0]),
        ({"kind": "exponential", "factor": 0.5}, [1, 0.5, 0.25, 0.125]),
        ({"kind": "step", "every_steps": 2, "factor": 0.1}, [2, 0.2, 0.2, 0.02]),
    ],
)
def test_the_rates_are_those_of_the_formula(schedule: object, expected: list[float]) -> None:
    assert rates(schedule, 4, floor=0.0) == pytest.approx(expected, abs=1e-12)


@settings(deadline=None)
@given(losses=st.lists(st.floats(0.1, 9), max_size=60), patience=st.integers(0, 5))
def test_a_plateau_falls_when_torchs_does(losses: list[float], patience: int) -> None:
    schedule = PlateauSchedule(factor=0.5, patience_steps=patience, threshold=0.01)
    spec = optim(schedule, floor=0.0, lr=1.0)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=0.5, patience=patience, threshold=0.01, eps=0.0
    )
    seen = Plateau()
    for step, loss in enumerate(losses, start=1):
        assert learning_rate(spec, step, 100, seen) == optimizer.param_groups[0]["lr"]
        theirs.step(loss)
        seen = seen.after(loss, schedule)
        assert Plateau.from_scalars(seen.scalars()) == seen
        assert all(math.isfinite(value) for value in seen.scalars().values())


def test_a_word_is_short_for_a_kind() -> None:
    adapter: TypeAdapter[Any] = TypeAdapter(ScheduleSpec)
    assert adapter.validate_python("cosine") == adapter.validate_python({"kind": "cosine"})
    with pytest.raises(SpecError, match=r"schedule\.kind.*'cosin'"):
        optim("cosin")
    with pytest.raises(SpecError, match=r"schedule\.patience_steps: unknown key"):
        optim({"kind": "linear", "patience_steps": 3})


@settings(deadline=None)
@given(
    rises=st.integers(1, 12),
    unit=st.integers(1, 8),
    first=st.integers(1, 4),
    stretch=st.integers(1, 9),
    step=st.integers(0, 200),
)
def test_a_batch_grows_in_equal_rises_and_every_sample_is_counted(
    rises: int, unit: int, first: int, stretch: int, step: int
) -> None:
    full, steps = (first + rises) * unit, rises * stretch
    ramp = {"start": first * unit, "increment": unit, "steps": steps}
    batch = BatchSpec.parse({"sequences": full, "ramp": ramp})
    sizes = [batch.sequences_at(number) for number in range(1, step + 1)]
    assert batch.samples_after(step) == sum(sizes)
    assert all(size % unit == 0 for size in sizes)
    assert all(later - earlier in (0, unit) for earlier, later in pairwise(sizes))
    assert batch.sequences_at(1) == first * unit
    assert batch.sequences_at(steps) < batch.sequences_at(steps + 1) == full
    batch.check_parts(unit, f"1 x {unit}")


@pytest.mark.parametrize(
    ("ramp", "message"),
    [
        ({"start": 4, "increment": 3, "steps": 9}, "does not lead to sequences 8"),
        ({"start": 8, "increment": 1, "steps": 9}, "does not lead to sequences 8"),
        ({"start": 4, "increment": 1, "steps": 3}, "fewer than the 4 rises"),
    ],
)
def test_a_ramp_that_leads_nowhere_is_refused(ramp: dict[str, int], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        BatchSpec.parse({"sequences": 8, "ramp": ramp})


@pytest.mark.parametrize(("start", "field"), [(3, "start"), (4, "increment")])
def test_a_ramp_that_cannot_be_shared_out_is_refused(start: int, field: str) -> None:
    ramp = {"start": start, "increment": 1, "steps": 50}
    batch = BatchSpec.parse({"sequences": 8, "ramp": ramp})
    with pytest.raises(SpecError, match=rf"batch\.ramp\.{field}.*data x plan.microbatches = 2 x 1"):
        batch.check_parts(2, "2 x 1")
