"""Which trial is best, and how trials compare."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayline.tuning.outcome import TrialOutcome, as_table, ranked, window_mean


def trial(number: int, status: str, loss: float | None, steps: int = 9) -> TrialOutcome:
    return TrialOutcome(number, {"optim.lr": 0.1}, status, loss, steps, f"run{number}")  # type: ignore[arg-type]


outcomes = st.builds(
    trial,
    st.integers(0, 99),
    st.sampled_from(["finished", "stopped_early", "interrupted", "failed", "infeasible"]),
    st.one_of(st.none(), st.floats(0, 10), st.just(math.nan)),
    st.integers(0, 9),
)


def test_finished_trials_lead_by_loss_and_stopped_ones_follow_by_length() -> None:
    trials = [
        trial(0, "failed", 0.1),
        trial(1, "stopped_early", 0.2, steps=1),
        trial(2, "finished", 3.0),
        trial(3, "finished", 2.0),
        trial(4, "stopped_early", 2.5, steps=3),
        trial(5, "infeasible", None, steps=0),
        trial(6, "finished", math.nan),
    ]
    assert [entry.number for entry in ranked(trials)] == [3, 2, 6, 4, 1, 0, 5]


@given(st.lists(outcomes), st.randoms())
def test_the_ranking_keeps_all_and_depends_on_no_order(
    trials: list[TrialOutcome], random: object
) -> None:
    by_number = list({entry.number: entry for entry in trials}.values())
    shuffled = sorted(by_number, key=lambda entry: hash((entry.number, 7)))
    assert ranked(shuffled) == ranked(by_number)
    assert len(ranked(by_number)) == len(by_number)


@pytest.mark.parametrize(("window", "mean"), [(1, 4.0), (2, 3.0), (3, 2.0), (9, 2.0)])
def test_the_mean_spans_the_newest_steps(window: int, mean: float) -> None:
    assert window_mean([0.0, 2.0, 4.0], window) == mean


def test_the_table_has_a_line_a_trial() -> None:
    broken = TrialOutcome(1, {"plan.tensor": 3}, "infeasible", None, 0, None, "two\nlines")
    lines = as_table([trial(0, "finished", 0.5), broken]).splitlines()
    assert lines[0].split("\t")[4:6] == ["optim.lr", "plan.tensor"]
    assert lines[1].split("\t")[:5] == ["0", "finished", "0.5", "9", "0.1"]
    assert lines[2].endswith("two lines")
    assert {len(line.split("\t")) for line in lines} == {8}
