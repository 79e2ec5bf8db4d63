"""What a search knows: the fold of its journal. Values only; nothing is decided here."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from rayline.tuning.journal import (
    ClosedRow,
    DrawRow,
    EndRow,
    GenerationRow,
    KnownRow,
    ResumedRow,
    Row,
    RungRow,
    SearchRow,
    StartRow,
    StopRow,
)

Phase = Literal["waiting", "running", "paused", "finished", "stopped_early", "failed"]
OVER: frozenset[Phase] = frozenset({"finished", "stopped_early", "failed"})


@dataclass(slots=True)
class Known:
    """One trial so far."""

    number: int
    params: dict[str, Any]
    phase: Phase = "waiting"
    segment: int = 0
    """The one that runs, or ran last."""
    step: int = 0
    values: dict[str, float] = field(default_factory=dict)
    """The newest: metric to value."""
    rungs: dict[int, dict[str, float]] = field(default_factory=dict)
    """Step to the values there."""
    run_id: str | None = None
    checkpoints: dict[int, str] = field(default_factory=dict)
    """Segment to the folder of the checkpoint that it ended with."""
    problem: str = ""
    moves: list[tuple[int, int, dict[str, Any]]] = field(default_factory=list)
    """Of a population: segment, number of the trial whose checkpoint it took, values."""
    takes_from: int | None = None
    """Whose checkpoint the next segment goes on from; None takes its own."""


@dataclass(slots=True)
class Spent:
    """What a search used up."""

    worker_s: float = 0.0
    gpu_s: float = 0.0
    wall_s: float = 0.0


@dataclass(slots=True)
class History:
    """Everything so far. `take` is called for each line, in order."""

    trials: dict[int, Known] = field(default_factory=dict)
    refused: list[DrawRow] = field(default_factory=list)
    known: list[KnownRow] = field(default_factory=list)
    generation: int = 0
    closed: str | None = None
    """Why it is over."""
    last: Row | None = None
    starts: int = 0
    """Drivers that began or went on with it."""
    _spent: Spent = field(default_factory=Spent)
    _held: dict[int, StartRow] = field(default_factory=dict)
    """By trial, what its gang holds now."""
    _driver_s: float | None = None

    @classmethod
    def of(cls, rows: Iterable[Row]) -> History:
        """The fold of these lines."""
        history = cls()
        for row in rows:
            history.take(row)
        return history

    @property
    def draws(self) -> int:
        """Combinations drawn, those that were refused included."""
        return len(self.trials) + len(self.refused)

    def in_phase(self, *phases: Phase) -> list[Known]:
        """The trials of these phases, by number."""
        found = [trial for trial in self.trials.values() if trial.phase in phases]
        return sorted(found, key=lambda trial: trial.number)

    def spent(self, now_s: float) -> Spent:
        """What was used up until `now_s`, Unix time."""
        whole = Spent(self._spent.worker_s, self._spent.gpu_s, self._spent.wall_s)
        for held in self._held.values():
            _add(whole, held, now_s)
        if self._driver_s is not None:
            whole.wall_s += max(0.0, now_s - self._driver_s)
        return whole

    def take(self, row: Row) -> None:
        """The next line."""
        match row:
            case SearchRow():
                self.starts, self._driver_s = 1, row.at_s
            case ResumedRow():
                self._resume(row)
            case KnownRow():
                self.known.append(row)
            case DrawRow():
                if row.trial is None:
                    self.refused.append(row)
                else:
                    self.trials[row.trial] = Known(row.trial, row.params)
            case StartRow():
                trial = self.trials[row.trial]
                trial.phase, trial.segment = "running", row.segment
                self._held[row.trial] = row
            case RungRow():
                trial = self.trials[row.trial]
                trial.rungs[row.step] = row.values
                trial.step, trial.values = row.step, row.values
            case StopRow():
                self._end(row.trial, "stopped_early", row.at_s, row.step, row.values)
                self.trials[row.trial].problem = row.reason
            case EndRow():
                self._take_end(row)
            case GenerationRow():
                self._generation(row)
            case ClosedRow():
                self.closed = row.reason
                if self._driver_s is not None:
                    self._spent.wall_s += max(0.0, row.at_s - self._driver_s)
                    self._driver_s = None
        self.last = row

    def _take_end(self, row: EndRow) -> None:
        self._end(row.trial, row.ending, row.at_s, row.step, row.values)
        trial = self.trials[row.trial]
        trial.run_id = row.run_id or trial.run_id
        trial.problem = row.problem
        trial.takes_from = None
        if row.checkpoint is not None:
            trial.checkpoints[row.segment] = row.checkpoint

    def _end(
        self, number: int, phase: Phase, at_s: float, step: int, values: dict[str, float]
    ) -> None:
        trial = self.trials[number]
        trial.phase = phase
        if step > 0:
            trial.step, trial.values = step, values
        held = self._held.pop(number, None)
        if held is not None:
            _add(self._spent, held, at_s)

    def _generation(self, row: GenerationRow) -> None:
        self.generation = row.generation
        for trial in self.in_phase("paused"):
            trial.phase, trial.segment = "waiting", row.generation
            move = row.moves.get(trial.number)
            if move is not None:
                trial.params, trial.takes_from = move.params, move.source
                trial.moves.append((row.generation, move.source, move.params))

    def _resume(self, row: ResumedRow) -> None:
        """The driver before lived until the last line, as far as anybody knows."""
        last_s = row.at_s if self.last is None else self.last.at_s
        for held in self._held.values():
            _add(self._spent, held, last_s)
        if self._driver_s is not None:
            self._spent.wall_s += max(0.0, last_s - self._driver_s)
        for trial in self.in_phase("running"):
            trial.phase = "waiting"
        self._held.clear()
        self.closed, self._driver_s = None, row.at_s
        self.starts += 1


def _add(spent: Spent, held: StartRow, until_s: float) -> None:
    seconds = max(0.0, until_s - held.at_s)
    spent.worker_s += seconds * held.workers
    spent.gpu_s += seconds * held.gpus
