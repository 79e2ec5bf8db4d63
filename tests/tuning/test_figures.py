"""The figures by which trials compare, in numbers."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayline.tuning.figures import StepFigures, figures_of, in_order, read_steps, window_mean


def step(number: int, loss: float = 1.0, speed: float = 100.0) -> StepFigures:
    return StepFigures(number, loss, speed, memory_gib=0.5 + number / 10, worker_s=36.0)


@pytest.mark.parametrize(("window", "mean"), [(1, 4.0), (2, 3.0), (3, 2.0), (9, 2.0)])
def test_the_mean_spans_the_newest_steps(window: int, mean: float) -> None:
    assert window_mean([0.0, 2.0, 4.0], window) == mean


def test_all_figures_by_hand() -> None:
    steps = [step(1, 9.0, 1.0), step(2, 3.0, 50.0), step(3, 1.0, 70.0), step(4, 2.0, 60.0)]
    assert figures_of(steps, 2, 10.0) == {
        "loss": 1.5,
        # The first step warms up.
        "tokens_per_s": 60.0,
        "memory_gib": pytest.approx(0.9),
        "price": pytest.approx(0.4),
    }
    assert "price" not in figures_of(steps, 2, None)
    assert figures_of([], 2, None) == {}
    assert figures_of([step(1, speed=7.0)], 1, None)["tokens_per_s"] == 7.0


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_what_is_not_finite_is_left_out(loss: float) -> None:
    assert "loss" not in figures_of([step(1, loss)], 1, None)


@given(st.lists(st.integers(1, 20), max_size=40))
def test_what_was_done_again_takes_the_place_of_what_was_before(numbers: list[int]) -> None:
    found = in_order(step(number, loss=float(place)) for place, number in enumerate(numbers))
    assert [one.step for one in found] == sorted({one.step for one in found})
    for one in found:
        assert one.loss == max(place for place, number in enumerate(numbers) if number == one.step)


def test_a_file_is_read_back_without_half_a_line(tmp_path: Path) -> None:
    file = tmp_path / "steps.jsonl"
    assert read_steps(file) == []
    lines = [step(1), step(2), step(3), step(2, 5.0)]
    file.write_text("".join(one.to_json() + "\n" for one in lines) + '{"step": 3, "lo')
    assert read_steps(file) == [step(1), step(2, 5.0)]
