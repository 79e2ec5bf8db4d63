"""Times in counters: how far off they are, and that they add up."""

from __future__ import annotations

import math
import pickle

from hypothesis import given
from hypothesis import strategies as st

from rayline.serving.rollout.measured import Measured
from rayline.serving.rollout.sketch import Sketch

times = st.lists(st.floats(0.01, 1e6), max_size=200)


@given(times, st.floats(0.1, 99.9))
def test_a_percentile_is_off_by_one_percent_at_most(values: list[float], percent: float) -> None:
    found = Sketch(values).percentile(percent)
    if not values:
        assert found is None
        return
    exact = sorted(values)[max(1, math.ceil(len(values) * percent / 100)) - 1]
    assert found is not None
    assert abs(found / exact - 1) <= 0.0101


@given(times, times)
def test_two_together_are_as_if_they_had_been_one(first: list[float], second: list[float]) -> None:
    both = Sketch(first) + Sketch(second)
    assert both == Sketch([*second, *first])
    assert both.count == len(first) + len(second)
    assert Sketch() + both == both


@given(times)
def test_ranks_rise_and_end_in_no_bound(values: list[float]) -> None:
    sketch = Sketch(values)
    ranked = [sketch.ranked(rank) for rank in range(len(values) + 2)]
    assert ranked == sorted(ranked)
    assert (ranked[0], ranked[-1]) == (0.0, math.inf)


def test_what_is_measured_travels_and_adds_up() -> None:
    one = Measured(3, 1, Sketch([5, 6]), Sketch([1.5]))
    assert pickle.loads(pickle.dumps(one)) == one
    assert one + one == Measured(6, 2, Sketch([5, 6, 5, 6]), Sketch([1.5, 1.5]))
    assert one + Measured() == one
