"""Which trial is best, who is on the front, and the tables."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rayline.spec import GoalSpec
from rayline.tuning.outcome import (
    RefusedDraw,
    TrialOutcome,
    as_table,
    pareto_front,
    ranked,
    refused_table,
)

LOSS = [GoalSpec(metric="loss")]


def trial(
    number: int, status: str, loss: float | None, steps: int = 9, speed: float = 1.0
) -> TrialOutcome:
    values = {"tokens_per_s": speed} | ({} if loss is None else {"loss": loss})
    return TrialOutcome(number, {"optim.lr": 0.1}, status, values, steps, f"run{number}")  # type: ignore[arg-type]


outcomes = st.builds(
    trial,
    st.integers(0, 99),
    st.sampled_from(["finished", "stopped_early", "interrupted", "failed"]),
    st.one_of(st.none(), st.floats(0, 10)),
    st.integers(0, 9),
)


def test_finished_trials_lead_by_loss_and_stopped_ones_follow_by_length() -> None:
    trials = [
        trial(0, "failed", 0.1),
        trial(1, "stopped_early", 0.2, steps=1),
        trial(2, "finished", 3.0),
        trial(3, "finished", 2.0),
        trial(4, "stopped_early", 2.5, steps=3),
        trial(5, "interrupted", None, steps=0),
        trial(6, "finished", None),
    ]
    assert [entry.number for entry in ranked(trials, LOSS)] == [3, 2, 6, 4, 1, 5, 0]


def test_the_first_objective_ranks_and_all_make_the_front() -> None:
    goals = [GoalSpec(metric="tokens_per_s"), GoalSpec(metric="loss")]
    trials = [
        trial(0, "finished", 1.0, speed=10.0),
        trial(1, "finished", 2.0, speed=30.0),
        trial(2, "finished", 2.5, speed=20.0),
        trial(3, "stopped_early", 0.1, speed=99.0),
        trial(4, "finished", None, speed=99.0),
    ]
    assert [entry.number for entry in ranked(trials, goals)][:3] == [4, 1, 2]
    assert pareto_front(trials, goals) == {0, 1}


@given(st.lists(outcomes), st.randoms())
def test_the_ranking_keeps_all_and_depends_on_no_order(
    trials: list[TrialOutcome], random: object
) -> None:
    by_number = list({entry.number: entry for entry in trials}.values())
    shuffled = sorted(by_number, key=lambda entry: hash((entry.number, 7)))
    assert ranked(shuffled, LOSS) == ranked(by_number, LOSS)
    assert len(ranked(by_number, LOSS)) == len(by_number)


def test_the_tables_have_a_line_a_trial_and_a_draw() -> None:
    broken = TrialOutcome(1, {"plan.tensor": 3}, "failed", {}, 0, None, "two\nlines")
    lines = as_table([trial(0, "finished", 0.5), broken]).splitlines()
    head = lines[0].split("\t")
    first = dict(zip(head, lines[1].split("\t"), strict=True))
    assert first["loss"] == "0.5"
    assert first["tokens_per_s"] == "1"
    assert first["optim.lr"] == "0.1"
    assert lines[2].endswith("two lines")
    assert {len(line.split("\t")) for line in lines} == {len(head)}
    draw = RefusedDraw(4, {"plan.tensor": 8}, "memory", "needs\t9 GiB")
    assert refused_table([draw]).splitlines()[1] == "4\tmemory\t8\tneeds 9 GiB"
