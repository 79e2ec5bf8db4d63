"""Who is beaten by nobody, in numbers."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rayline.spec import GoalSpec
from rayline.tuning.pareto import beats, costs_of, front, layers

points = st.dictionaries(
    st.integers(0, 30), st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(0, 5))
)


def test_costs_are_small_where_goals_are_met() -> None:
    goals = [GoalSpec(metric="loss"), GoalSpec(metric="tokens_per_s")]
    assert costs_of({"loss": 2.0, "tokens_per_s": 100.0}, goals) == (2.0, -100.0)
    assert costs_of({"loss": 2.0}, goals) is None
    assert GoalSpec(metric="memory_gib", goal="max").sign == -1


def test_a_front_by_hand() -> None:
    costs = {"a": (1.0, 9.0), "b": (2.0, 2.0), "c": (3.0, 3.0), "d": (9.0, 1.0), "e": (2.0, 2.0)}
    assert front(costs) == ["a", "b", "d", "e"]
    assert layers(costs) == {"a": 0, "b": 0, "d": 0, "e": 0, "c": 1}
    assert not beats((2.0, 2.0), (2.0, 2.0))


@given(points)
def test_everybody_is_on_the_front_or_beaten_by_somebody_on_it(
    costs: dict[int, tuple[float, ...]],
) -> None:
    best = front(costs)
    assert not any(beats(costs[one], costs[other]) for one in best for other in best)
    for key in costs.keys() - set(best):
        assert any(beats(costs[one], costs[key]) for one in best)


@given(points)
def test_layers_hold_all_and_each_is_beaten_from_the_one_before(
    costs: dict[int, tuple[float, ...]],
) -> None:
    found = layers(costs)
    assert found.keys() == costs.keys()
    for key, layer in found.items():
        beaten_by = [found[other] for other in costs if beats(costs[other], costs[key])]
        assert max(beaten_by, default=-1) == layer - 1
