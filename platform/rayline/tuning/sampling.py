"""Which values the next draw has: Optuna, asked and told, and rebuilt from a journal.

Every sampler of Optuna is a function of its seed, of what was asked and of what was told, in order.
A search that goes on therefore asks and tells once more, as the journal says, and stands where the
one before stood, whatever the sampler keeps to itself.
"""

from __future__ import annotations

import logging
import math
import random
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.trial import TrialState, create_trial

from rayline.spec import Range, TuneSpec
from rayline.tuning.journal import DrawRow, EndRow, KnownRow, Row, RungRow, StopRow
from rayline.tuning.pareto import costs_of
from rayline.tuning.space import distributions, drawn_indices, drawn_values, grid_values

log = logging.getLogger(__name__)


class Sampling:
    """The sampler of one search; `draw`, then `take` of every line that is journaled."""

    def __init__(self, spec: TuneSpec, known: Sequence[KnownRow] = ()) -> None:
        """`known` is what is learnt from before the first draw."""
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._spec = spec
        self._distributions = distributions(spec.space)
        earlier = [_frozen(spec, row) for row in known]
        with warnings.catch_warnings():
            # Warm starts and Gaussian processes are called experimental there.
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            self._study = optuna.create_study(
                directions=["minimize"] * len(spec.goals), sampler=_sampler(spec, earlier)
            )
        if spec.search != "cmaes":
            self._study.add_trials(earlier)
        self._grid = grid_order(spec) if spec.search == "grid" else None
        self._draws = 0
        self._asked: optuna.Trial | None = None
        self._open: dict[int, optuna.Trial | int] = {}
        """Number of a trial to what Optuna knows it as."""
        self._reported: set[tuple[int, int]] = set()
        """Trials and steps."""

    def draw(self) -> dict[str, Any] | None:
        """Field to value; None where a grid has no more. The DrawRow made of it is to be taken
        before the next."""
        if self._grid is not None:
            return grid_draw(self._spec.space, self._grid, self._draws)
        self._asked = self._study.ask(dict(self._distributions))
        return drawn_values(self._spec.space, self._asked.params)

    def take(self, row: Row) -> None:
        """What was journaled. A draw that nobody asked for here is asked for again."""
        match row:
            case DrawRow():
                self._draws += 1
                self._take_draw(row)
            case RungRow():
                self._report(row.trial, row.step, row.values)
            case StopRow():
                self._report(row.trial, row.step, row.values)
                self._tell(row.trial, None, stopped=True)
            case EndRow(ending="finished" | "failed"):
                values = row.values if row.ending == "finished" else {}
                self._tell(row.trial, costs_of(values, self._spec.goals))

    def _take_draw(self, row: DrawRow) -> None:
        if self._grid is not None:
            return
        if self._asked is None:
            again = self.draw()
            if again != row.params:
                self._put(row, again)
        asked, self._asked = self._asked, None
        if asked is None:
            return
        if row.trial is None:
            self._study.tell(asked, state=TrialState.FAIL)
        else:
            self._open[row.trial] = asked

    def _put(self, row: DrawRow, again: object) -> None:
        """Another version, or another machine's rounding, draws otherwise: the journal holds."""
        log.warning("draw %d was %s, and would be %s now", row.draw, row.params, again)
        if self._asked is not None:
            self._study.tell(self._asked, state=TrialState.FAIL)
            self._asked = None
        if row.trial is None:
            return
        self._open[row.trial] = len(self._study.get_trials(deepcopy=False))
        self._study.add_trial(
            create_trial(
                state=TrialState.RUNNING,
                params=drawn_indices(self._spec.space, row.params),
                distributions=dict(self._distributions),
            )
        )

    def _report(self, number: int, step: int, values: Mapping[str, float]) -> None:
        """Optuna takes what comes on the way of one objective only."""
        costs = costs_of(values, self._spec.goals)
        theirs = self._open.get(number)
        if (number, step) in self._reported or costs is None or len(costs) > 1:
            return
        if isinstance(theirs, optuna.Trial):
            self._reported.add((number, step))
            theirs.report(costs[0], step)

    def _tell(self, number: int, costs: Sequence[float] | None, *, stopped: bool = False) -> None:
        """The end of a trial. Of those that stopped early, TPE ranks who came farther as better; of
        several objectives it cannot, and learns nothing from them."""
        theirs = self._open.pop(number, None)
        if theirs is None:
            return
        if costs is not None:
            self._study.tell(theirs, list(costs))
        elif stopped and len(self._spec.goals) == 1:
            self._study.tell(theirs, state=TrialState.PRUNED)
        else:
            self._study.tell(theirs, state=TrialState.FAIL)


def _sampler(
    spec: TuneSpec, earlier: Sequence[optuna.trial.FrozenTrial]
) -> optuna.samplers.BaseSampler:
    samplers = optuna.samplers
    match spec.search:
        case "random" | "grid":
            return samplers.RandomSampler(seed=spec.seed)
        case "cmaes":
            # Warm-started as Nomura et al. 2021.
            return samplers.CmaEsSampler(
                seed=spec.seed, source_trials=list(earlier) or None, warn_independent_sampling=False
            )
        case "gp":
            return samplers.GPSampler(seed=spec.seed)
        case "tpe" | "bohb":
            return samplers.TPESampler(seed=spec.seed)


def grid_order(spec: TuneSpec) -> list[int]:
    """Numbers of the grid's combinations in the order of their draws. (Optuna's own GridSampler
    raises once all are told of, outside its own loop.)"""
    order = list(range(math.prod(len(values) for values in grid_values(spec.space).values())))
    random.Random(spec.seed).shuffle(order)
    return order


def grid_draw(space: Mapping[str, Range], order: Sequence[int], draw: int) -> dict[str, Any] | None:
    """The combination of this draw, counted from 0; None once there is no more."""
    if draw >= len(order):
        return None
    number, params = order[draw], {}
    for dotted, values in grid_values(space).items():
        number, place = divmod(number, len(values))
        params[dotted] = values[place]
    return params


def _frozen(spec: TuneSpec, row: KnownRow) -> optuna.trial.FrozenTrial:
    costs = costs_of(row.values, spec.goals)
    if costs is None:
        raise ValueError(f"run {row.run_id} lacks a value of an objective")
    return create_trial(
        values=list(costs),
        params=drawn_indices(spec.space, row.params),
        distributions=distributions(spec.space),
    )
