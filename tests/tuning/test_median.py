"""The median rule, in numbers."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from rayline.tuning.median import median_keeps

curves = st.lists(st.floats(0, 10), min_size=3, max_size=3).map(
    lambda costs: dict(zip((2, 4, 6), costs, strict=True))
)


def test_a_trial_stops_where_it_never_was_as_good_as_the_running_means() -> None:
    others = [{2: 4.0, 4: 2.0}, {2: 6.0, 4: 4.0}, {2: 8.0, 4: 6.0}]
    # Means up to step 4: 3, 5, 7.
    assert median_keeps({2: 9.0, 4: 5.0}, others, 4, 3)
    assert not median_keeps({2: 9.0, 4: 5.1}, others, 4, 3)
    # What it was once counts.
    assert median_keeps({2: 1.0, 4: 9.0}, others, 4, 3)
    # At step 2 the means are 4, 6, 8.
    assert median_keeps({2: 6.0}, others, 2, 3)
    assert not median_keeps({2: 7.0}, others, 2, 3)


def test_nobody_stops_before_enough_others_came_so_far() -> None:
    others = [{2: 1.0, 4: 1.0}, {2: 1.0}]
    assert median_keeps({2: 9.0, 4: 9.0}, others, 4, 2)
    assert not median_keeps({2: 9.0, 4: 9.0}, others, 4, 1)


def test_what_is_no_number_stops() -> None:
    assert not median_keeps({2: math.nan}, [{2: 1.0}], 2, 1)


@given(curves, st.lists(curves, min_size=1, max_size=6))
def test_the_best_of_all_is_never_stopped(
    own: dict[int, float], others: list[dict[int, float]]
) -> None:
    least = min([*own.values(), *(cost for other in others for cost in other.values())])
    assert median_keeps({**own, 6: least}, others, 6, 1)
