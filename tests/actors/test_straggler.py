"""Which ranks are found slow, by how often each is seen at work of its own."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayline.actors.effort import Effort
from rayline.actors.laps import Laps
from rayline.actors.straggler import LAP_LOOKS, LAP_STEPS, LAPS, Lap, find_stragglers
from rayline.spec import ParallelPlan

PAIR = [0, 0]


def laps(*shares: Sequence[float], looks: int = 170) -> list[Lap]:
    """LAPS laps in which each rank's share is the same."""
    return [Lap(5 * number, looks, dict(enumerate(shares))) for number in range(LAPS)]


def slow(shares: Sequence[float], stages: Sequence[int]) -> list[int]:
    found = find_stragglers([], laps(*shares), stages)
    return [one.rank for one in found]


def test_a_rank_is_compared_with_the_median_of_the_others_of_its_stage() -> None:
    assert slow([0.3, 0.6], PAIR) == [1]
    assert slow([0.3, 0.43], PAIR) == []
    assert slow([0.3, 0.3, 0.7, 0.3], [0] * 4) == [2]
    # Two of four, as where a node is slow.
    assert slow([0.3, 0.3, 0.7, 0.7], [0] * 4) == [2, 3]
    # By design, the second stage works three times as long as the first.
    assert slow([0.2, 0.2, 0.6, 0.6], [0, 0, 1, 1]) == []
    assert slow([0.2, 0.2, 0.3, 0.6], [0, 0, 1, 1]) == [3]
    assert slow([0.9], [0]) == []


def test_a_rank_with_a_stage_to_itself_is_compared_with_how_it_stood_at_first() -> None:
    stages = [0, 1, 2]
    first = laps(0.3, 0.3, 0.7)
    assert find_stragglers(first, laps(0.3, 0.3, 0.7), stages) == []
    (found,) = find_stragglers(first, laps(0.2, 0.8, 0.45), stages)
    assert (found.rank, found.peers) == (1, 0)
    assert "times as long for its own part of a step as at first" in str(found)
    # Nothing is known of how it stood.
    assert find_stragglers(first[:2], laps(0.2, 0.8, 0.45), stages) == []


def test_it_is_told_by_how_much_and_since_when() -> None:
    (found,) = find_stragglers([], laps(0.3, 0.3, 0.3, 0.66), [0] * 4)
    assert (found.rank, found.peers, found.since_step) == (3, 3, 0)
    assert found.times == pytest.approx(2.2)
    assert str(found) == (
        "takes 2.2 times as long for its own part of a step as the median of its 3 peers, "
        "since step 0"
    )


def test_one_lap_like_its_peers_ends_the_row() -> None:
    row = laps(0.3, 0.7)
    assert len(find_stragglers([], row, PAIR)) == 1
    for number in range(LAPS):
        broken = list(row)
        broken[number] = replace(row[number], shares={0: 0.3, 1: 0.4})
        assert find_stragglers([], broken, PAIR) == []
    assert find_stragglers([], row[1:], PAIR) == []


def test_what_costs_the_gang_next_to_nothing_is_nobodys_concern() -> None:
    assert slow([0.02, 0.09], PAIR) == []
    assert slow([0.0, 0.15], PAIR) == [1]


def test_few_looks_have_to_show_more() -> None:
    assert find_stragglers([], laps(0.3, 0.5, looks=1000), PAIR)
    assert not find_stragglers([], laps(0.3, 0.5, looks=LAP_LOOKS), PAIR)


@given(
    st.floats(0, 0.66),
    st.lists(st.floats(1.0, 1.49), min_size=2, max_size=8),
)
def test_ranks_that_are_nearly_alike_are_never_named(least: float, factors: list[float]) -> None:
    shares = [least * factor for factor in factors]
    assert slow(shares, [0] * len(shares)) == []


@given(st.integers(2, 8), st.data())
def test_one_that_takes_twice_as_long_is_named_and_no_other(
    ranks: int, data: st.DataObject
) -> None:
    rank = data.draw(st.integers(0, ranks - 1))
    share = data.draw(st.floats(0.2, 0.5))
    shares = [share] * ranks
    shares[rank] *= 2
    assert slow(shares, [0] * ranks) == [rank]


def test_the_first_lap_and_laps_with_too_little_in_them_are_left_out() -> None:
    watch = Laps(PAIR)
    watch.begin()
    told = []
    for count in range(40):
        looks = 30 * count
        efforts = {0: Effort(count, looks, looks // 3), 1: Effort(count + 1, looks, looks)}
        told += [(count, one) for one in watch.take(efforts)]
    # A lap ends once it has steps and looks enough: the fifth ends after so many answers.
    lap = max(LAP_STEPS, -(-LAP_LOOKS // 30))
    ((count, found),) = told
    assert count == (LAPS + 1) * lap
    assert found.rank == 1
    assert found.since_step == lap
    watch.begin()
    assert watch.take({0: Effort(0, 0, 0), 1: Effort(0, 0, 0)}) == []


@dataclass(frozen=True)
class Machine:
    """What steps are like: each of some parts is over once all ranks have done theirs."""

    own_s: float
    """Of a rank, in a step."""
    transfer_s: float
    """Of a step, in which nobody works."""
    parts: int = 4
    spikes_per_s: float = 0.0
    """How often a rank loses its core to another process, for an exponential 40 ms."""
    drift: float = 0.0
    """Standard deviation of the logarithm of each core's speed, which wanders within seconds; ranks
    share two cores. Real ranks on two busy cores show less than 0.05."""

    def efforts(
        self, plan: ParallelPlan, steps: int, seed: int, slow: dict[int, float], since: int = 0
    ) -> list[dict[int, Effort]]:
        """What ranks answer every two seconds; `slow`: ranks to how many times as long they take,
        from step `since` on."""
        draw = np.random.default_rng(seed)
        ranks, count = plan.world_size, steps * self.parts
        part_s = self.own_s / self.parts
        # Heavy-tailed: a log-normal, and the scheduler's spikes.
        own_s = part_s * draw.lognormal(0.0, 0.3, (ranks, count))
        lost = draw.random((ranks, count)) < self.spikes_per_s * part_s
        own_s += lost * draw.exponential(0.04, (ranks, count))
        keep = np.exp(-part_s / 2.0)
        wander = draw.normal(0.0, self.drift, (2, count)) * np.sqrt(1 - keep**2)
        for at in range(1, count):
            wander[:, at] += keep * wander[:, at - 1]
        own_s *= np.exp(wander[np.arange(ranks) % 2])
        # A stage may work longer than another by design.
        own_s *= 1.0 + np.array([[plan.coordinate(rank).pipeline] for rank in range(ranks)])
        for rank, times in slow.items():
            own_s[rank, since * self.parts :] *= times
        ends_s = np.cumsum(own_s.max(axis=0) + self.transfer_s / self.parts)
        begins_s = np.concatenate([[0.0], ends_s[:-1]])
        return [
            dict(enumerate(answer))
            for answer in zip(
                *(self._answers(draw, own_s[rank], begins_s, ends_s) for rank in range(ranks)),
                strict=True,
            )
        ]

    def _answers(
        self, draw: np.random.Generator, own_s: np.ndarray, begins_s: np.ndarray, ends_s: np.ndarray
    ) -> list[Effort]:
        whole_s = ends_s[-1]
        looks_s = np.cumsum(draw.uniform(0.01, 0.03, int(whole_s / 0.02)))
        looks_s = looks_s[looks_s < whole_s]
        part = np.searchsorted(ends_s, looks_s, side="right")
        at_work = np.cumsum(looks_s - begins_s[part] < own_s[part])
        answers = []
        for asked_s in np.arange(2.0, whole_s, 2.0):
            looks = int(np.searchsorted(looks_s, asked_s))
            step = int(np.searchsorted(ends_s, asked_s)) // self.parts + 1
            answers.append(Effort(step, looks, int(at_work[looks - 1])))
        return answers


def named(efforts: list[dict[int, Effort]], plan: ParallelPlan) -> list[tuple[int, int]]:
    """Which answer named which rank."""
    stages = [plan.coordinate(rank).pipeline for rank in range(plan.world_size)]
    watch = Laps(stages)
    watch.begin()
    return [(number, one.rank) for number, each in enumerate(efforts) for one in watch.take(each)]


PLANS = [
    ParallelPlan(data=2, tensor=2),
    ParallelPlan(data=2, pipeline=2, microbatches=2),
    ParallelPlan(pipeline=4, microbatches=4),
]
QUIET = Machine(own_s=0.2, transfer_s=0.05)
BUSY = Machine(own_s=0.06, transfer_s=0.04, spikes_per_s=1.0, drift=0.1)
WAITING = Machine(own_s=0.02, transfer_s=0.1, spikes_per_s=1.0, drift=0.1)
LONG = Machine(own_s=3.0, transfer_s=1.0, parts=8, drift=0.1)


@pytest.mark.parametrize("plan", PLANS, ids=str)
@pytest.mark.parametrize("machine", [QUIET, BUSY, WAITING], ids=["quiet", "busy", "waiting"])
def test_no_rank_is_named_in_two_thousand_clean_steps(machine: Machine, plan: ParallelPlan) -> None:
    for seed in range(4):
        assert named(machine.efforts(plan, 2000, seed, {}), plan) == []


@pytest.mark.parametrize("plan", PLANS, ids=str)
@pytest.mark.parametrize("machine", [QUIET, BUSY, LONG], ids=["quiet", "busy", "long"])
def test_a_rank_that_becomes_slow_is_named_and_no_other(
    machine: Machine, plan: ParallelPlan
) -> None:
    for seed in range(4):
        rank, since = seed, max(40, int(30.0 / machine.own_s))
        steps = since + max(2 * LAPS * LAP_STEPS, int(30.0 / machine.own_s))
        efforts = machine.efforts(plan, steps, seed, {rank: 2.2}, since)
        found = named(efforts, plan)
        assert [each for _, each in found] == [rank], seed
        # Within 30 s of its twentieth slow step.
        until = since + LAPS * LAP_STEPS
        late = sum(one[0].step > until for one in efforts[: found[0][0]])
        assert 2.0 * late <= 30.0
