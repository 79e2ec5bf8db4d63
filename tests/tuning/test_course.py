"""The course of a search without a cluster: a world whose losses are known, drivers that are killed
anywhere, and what must come of it all the same."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rayline.spec import JobSpec, TuneSpec
from rayline.tuning.course import Course, Turn
from rayline.tuning.history import OVER
from rayline.tuning.journal import (
    JOURNAL_FILE,
    DrawRow,
    EndRow,
    GenerationRow,
    Journal,
    Row,
    SearchRow,
    StopRow,
    read_rows,
)
from rayline.tuning.outcome import TrialReport
from rayline.tuning.pruning import Verdict

MakeSearch = Callable[..., TuneSpec]
CHECKPOINT_STEPS = 2


class Killed(Exception):
    """The driver is gone, whatever it was about."""


@dataclass
class World:
    """What trials come to: the loss depends on lr and falls with the steps. It outlives drivers, as
    checkpoints do."""

    folder: Path
    steps_done: dict[int, list[int]] = field(default_factory=dict)
    """By trial, every step that was computed, those computed again included."""
    checkpoints: dict[int, int] = field(default_factory=dict)
    """By trial, the step of its newest checkpoint."""
    taken: list[tuple[int, str]] = field(default_factory=list)
    now_s: float = 0.0
    reports_until_kill: float = math.inf

    def loss(self, params: dict[str, Any], step: int) -> float:
        distance = abs(math.log10(params["optim.lr"]) + 2.5)
        return distance + 3.0 / step

    def driver(
        self,
        spec: TuneSpec,
        *,
        judge: Callable[[JobSpec, dict[str, Any]], Verdict] = lambda job, params: Verdict(),
        observers: tuple[Callable[[TrialReport], None], ...] = (),
    ) -> Course:
        """One driver's life: until the search is over, or until it is killed."""
        file = self.folder / JOURNAL_FILE
        rows = read_rows(file.read_text(), "journal") if file.exists() else []
        with closing(Journal(file)) as journal:
            begun = bool(rows)
            if not begun:
                rows = [SearchRow(at_s=self.now_s, run_id="run", spec={}, optuna="5")]
                journal.append(rows[0])
            course = Course(
                spec,
                journal,
                rows,
                str(self.folder),
                judge,
                observers=observers,
                clock=lambda: self.now_s,
            )
            if begun:
                course.resume()
            self._live(course, spec)
        return course

    def _live(self, course: Course, spec: TuneSpec) -> None:
        running: list[tuple[Turn, int]] = []
        while True:
            while len(running) < spec.concurrent and (turn := course.next()) is not None:
                if turn.take_over is not None and turn.number not in self.checkpoints:
                    self.taken.append((turn.number, turn.take_over))
                course.started(turn.number, 1, 0.0)
                first = self.checkpoints.get(turn.number, 0)
                if spec.population is not None:
                    # A generation takes its checkpoint from where it is told.
                    first = max(first, turn.segment * spec.population.every_steps)
                running.append((turn, first))
            if not running:
                assert course.over
                return
            turn, step = running.pop(0)
            self.now_s += 1.0
            if self.reports_until_kill <= 0:
                raise Killed
            self.reports_until_kill -= 1
            trial = course.history.trials[turn.number]
            values = {"loss": self.loss(trial.params, step + 1), "tokens_per_s": 100.0}
            self.steps_done.setdefault(turn.number, []).append(step + 1)
            if (step + 1) % CHECKPOINT_STEPS == 0:
                self.checkpoints[turn.number] = step + 1
            if course.report(turn.number, step + 1, values):
                continue
            if step + 1 < turn.job.last_step:
                running.append((turn, step + 1))
                continue
            finished = step + 1 == turn.job.steps
            course.ended(
                turn.number,
                {
                    "ending": "finished" if finished else "paused",
                    "step": step + 1,
                    "values": values,
                    "run_id": f"run{turn.number}",
                    "checkpoint": f"checkpoint of {turn.number} after {step + 1}",
                },
            )

    def rows(self) -> list[Row]:
        return read_rows((self.folder / JOURNAL_FILE).read_text(), "journal")


def through_kills(world: World, spec: TuneSpec, kills: list[int]) -> Course:
    """The search under drivers that are killed after so many reports each, and a last one."""
    for reports in kills:
        world.reports_until_kill = reports
        try:
            return world.driver(spec)
        except Killed:
            continue
    world.reports_until_kill = math.inf
    return world.driver(spec)


def draws(rows: list[Row]) -> list[dict[str, Any]]:
    return [row.params for row in rows if isinstance(row, DrawRow)]


def test_asha_stops_the_weak_and_every_trial_has_one_end(
    make_search: MakeSearch, tmp_path: Path
) -> None:
    spec = make_search(trials=12, stopping={"kind": "asha", "grace_steps": 1})
    course = World(tmp_path).driver(spec)
    outcomes = course.outcomes()
    assert len(outcomes) == 12
    assert {one.status for one in outcomes} == {"finished", "stopped_early"}
    finished = [one for one in outcomes if one.status == "finished"]
    best = min(outcomes, key=lambda one: abs(math.log10(one.params["optim.lr"]) + 2.5))
    assert best in finished
    assert len(finished) < 8
    for one in outcomes:
        assert one.steps == 9 if one.status == "finished" else one.steps in (1, 3)


@pytest.mark.parametrize(
    "how",
    [
        {"search": "random", "stopping": "hyperband"},
        {"search": "bohb"},
        {"stopping": {"kind": "median", "grace_steps": 2, "every_steps": 2}},
        {"search": "cmaes", "space": {"optim.lr": {"low": 1e-4, "high": 1e-1, "log": True},
                                      "optim.weight_decay": {"low": 0.0, "high": 0.1}}},
        {"search": "gp"},
        {"search": "grid",
         "space": {"optim.lr": {"low": 1e-4, "high": 1e-1, "log": True, "points": 4},
                   "optim.warmup_steps": {"low": 0, "high": 2, "integer": True}}},
    ],
)  # fmt: skip
def test_a_search_whose_drivers_die_is_the_same_search(
    make_search: MakeSearch, tmp_path: Path, how: dict[str, Any]
) -> None:
    spec = make_search(trials=12, **how)
    whole, broken = World(tmp_path / "whole"), World(tmp_path / "broken")
    expected = whole.driver(spec).outcomes()
    found = through_kills(broken, spec, [7, 1, 0, 12, 3]).outcomes()
    assert draws(broken.rows()) == draws(whole.rows())
    assert [(one.number, one.params, one.status, one.steps) for one in found] == [
        (one.number, one.params, one.status, one.steps) for one in expected
    ]


@given(
    kills=st.lists(st.integers(0, 25), max_size=6),
    concurrent=st.integers(1, 4),
    trials=st.integers(1, 10),
)
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_no_trial_is_lost_and_none_runs_twice(
    make_search: MakeSearch,
    tmp_path_factory: pytest.TempPathFactory,
    kills: list[int],
    concurrent: int,
    trials: int,
) -> None:
    spec = make_search(
        trials=trials, concurrent=concurrent, search="random", stopping={"kind": "asha"}
    )
    world = World(tmp_path_factory.mktemp("search"))
    course = through_kills(world, spec, kills)
    assert sorted(course.history.trials) == list(range(trials))
    assert all(trial.phase in OVER for trial in course.history.trials.values())
    ends = [row.trial for row in world.rows() if isinstance(row, EndRow | StopRow)]
    assert sorted(ends) == list(range(trials))
    for steps in world.steps_done.values():
        # What was done again lay behind the newest checkpoint, once a kill.
        repeated = len(steps) - len(set(steps))
        assert repeated <= len(kills) * (CHECKPOINT_STEPS - 1)
        assert sorted(set(steps)) == list(range(1, max(steps) + 1))


def test_a_rung_that_was_noted_but_not_judged_is_judged_by_the_next_driver(
    make_search: MakeSearch, tmp_path: Path
) -> None:
    spec = make_search(trials=2, search="random", asha={"grace_steps": 3, "reduction_factor": 3})
    world = World(tmp_path)
    world.driver(spec)
    rows = world.rows()
    stop = next(place for place, row in enumerate(rows) if isinstance(row, StopRow))
    lines = (tmp_path / JOURNAL_FILE).read_text().splitlines(keepends=True)
    # Killed between the two lines, in the middle of writing the second.
    (tmp_path / JOURNAL_FILE).write_text("".join(lines[:stop]) + lines[stop][:20])
    before = dict(world.steps_done)
    course = world.driver(spec)
    assert course.history.trials[1].phase == "stopped_early"
    assert world.steps_done == before


def test_refused_draws_cost_no_trial_and_are_told(make_search: MakeSearch, tmp_path: Path) -> None:
    space = {
        "optim.lr": {"low": 1e-4, "high": 1e-1, "log": True},
        "plan.tensor": {"choices": [1, 2]},
        "engine": {"choices": ["native", "deepspeed"]},
    }
    spec = make_search(trials=5, space=space, search="random")
    seen: list[TrialReport] = []

    def judge(job: JobSpec, params: dict[str, Any]) -> Verdict:
        assert job.plan.tensor == params["plan.tensor"]
        return Verdict(refused="memory", reason="too much") if job.plan.tensor == 2 else Verdict()

    course = World(tmp_path).driver(spec, judge=judge, observers=(seen.append,))
    assert len(course.outcomes()) == 5
    assert all(one.params["plan.tensor"] == 1 for one in course.outcomes())
    kinds = {draw.kind for draw in course.refused()}
    # deepspeed with tensor 2 is refused by the spec itself.
    assert kinds == {"memory", "spec"}
    assert course.history.draws == 5 + len(course.refused())
    assert seen[-1].status == "finished"
    assert seen[-1].refused == len(course.refused())


def test_a_search_whose_draws_are_all_refused_gives_up(
    make_search: MakeSearch, tmp_path: Path
) -> None:
    spec = make_search(trials=3, search="random", prune={"draws_per_trial": 4})
    course = World(tmp_path).driver(
        spec, judge=lambda job, params: Verdict(refused="placement", reason="no node")
    )
    assert course.outcomes() == []
    assert len(course.refused()) == 12
    assert course.no_more == "12 draws, of which 12 were refused"


def test_a_grid_draws_every_combination_once_and_ends(
    make_search: MakeSearch, tmp_path: Path
) -> None:
    space = {
        "optim.lr": {"low": 1e-4, "high": 1e-2, "log": True, "points": 3},
        "optim.warmup_steps": {"choices": [0, 5]},
    }
    world = World(tmp_path)
    course = world.driver(make_search(trials=20, space=space, search="grid"))
    drawn = [(one["optim.lr"], one["optim.warmup_steps"]) for one in draws(world.rows())]
    assert len(drawn) == len(set(drawn)) == 6
    assert {round(math.log10(lr)) for lr, _ in drawn} == {-4, -3, -2}
    assert "grid" in (course.no_more or "")


def test_a_budget_that_is_used_up_stops_what_runs_and_draws_no_more(
    make_search: MakeSearch, tmp_path: Path
) -> None:
    # A step takes a second of one worker.
    spec = make_search(trials=10, search="random", budget={"worker_hours": 12 / 3600})
    world = World(tmp_path)
    course = world.driver(spec)
    assert sum(len(steps) for steps in world.steps_done.values()) == 12
    ends = {one.number: one.status for one in course.outcomes()}
    assert ends == {0: "finished", 1: "stopped_early"}
    assert "worker_hours" in (course.no_more or "")


POPULATION = {
    "trials": 4,
    "search": "random",
    "population": {"every_steps": 3, "resample": 0.0},
}


def test_a_population_moves_its_weakest_to_its_best(
    make_search: MakeSearch, tmp_path: Path
) -> None:
    world = World(tmp_path)
    course = world.driver(make_search(**POPULATION))
    generations = [row for row in world.rows() if isinstance(row, GenerationRow)]
    assert [row.generation for row in generations] == [1, 2]
    outcomes = course.outcomes()
    assert {one.status for one in outcomes} == {"finished"}
    assert {one.steps for one in outcomes} == {9}
    for row in generations:
        assert len(row.moves) == 1
    moved = [(one.number, move.after_step, move.source) for one in outcomes for move in one.moved]
    assert {after for _, after, _ in moved} == {3, 6}
    for number, after, source in moved:
        assert f"checkpoint of {source} after {after}" != f"checkpoint of {number} after {after}"
    runs = {one.run_id for one in outcomes}
    assert runs == {"run0", "run1", "run2", "run3"}


@given(kills=st.lists(st.integers(0, 20), max_size=5), concurrent=st.integers(1, 4))
@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_population_whose_drivers_die_is_the_same_population(
    make_search: MakeSearch,
    tmp_path_factory: pytest.TempPathFactory,
    kills: list[int],
    concurrent: int,
) -> None:
    spec = make_search(concurrent=concurrent, **POPULATION)
    whole = World(tmp_path_factory.mktemp("whole")).driver(spec).outcomes()
    broken = through_kills(World(tmp_path_factory.mktemp("broken")), spec, kills).outcomes()
    assert broken == whole


def test_a_member_that_fails_leaves_the_population(make_search: MakeSearch, tmp_path: Path) -> None:
    spec = make_search(**POPULATION)
    with closing(Journal(tmp_path / JOURNAL_FILE)) as journal:
        first = SearchRow(run_id="run", spec={}, optuna="5")
        course = Course(spec, journal, [first], str(tmp_path), lambda job, params: Verdict())
        turns = [course.next() for _ in range(4)]
        assert course.next() is None
        for turn in turns:
            assert turn is not None
            course.started(turn.number, 1, 0.0)
            if turn.number == 2:
                course.lost(2, "its process was lost")
                continue
            values = {"loss": 1.0 + turn.number}
            course.ended(turn.number, {"ending": "paused", "step": 3, "values": values})
        following = {turn.number for turn in (course.next(), course.next(), course.next()) if turn}
        assert following == {0, 1, 3}
        assert course.next() is None
        assert not course.over


def test_two_drivers_never_hold_one_journal(tmp_path: Path) -> None:
    with (
        closing(Journal(tmp_path / JOURNAL_FILE)),
        pytest.raises(Exception, match="another driver"),
    ):
        Journal(tmp_path / JOURNAL_FILE)
