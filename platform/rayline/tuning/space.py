"""From a TuneSpec to Optuna's distributions, and from what was drawn to a job: no Ray, no cluster.

A list of choices is drawn by its index, so that any value may stand in it (lists, null, mixed
types); Optuna itself takes only scalars there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from rayline.errors import SpecError
from rayline.spec import JobSpec, Range, TuneSpec
from rayline.tuning.leavings import generation_folder

_OWN_FIELDS = ("name", "output_dir", "tracking.", "checkpoint.", "export.")
"""What a search sets itself for each trial."""
_NAME_CHARACTERS = 58
"""What a job's name leaves for the number of a trial."""


def distributions(space: Mapping[str, Range]) -> dict[str, BaseDistribution]:
    """Each field's distribution, as Optuna's `ask` takes them."""
    return {dotted: _distribution(wanted) for dotted, wanted in space.items()}


def drawn_values(space: Mapping[str, Range], drawn: Mapping[str, Any]) -> dict[str, Any]:
    """The values that Optuna's parameters stand for."""
    return {
        dotted: drawn[dotted] if wanted.choices is None else wanted.choices[drawn[dotted]]
        for dotted, wanted in space.items()
    }


def drawn_indices(space: Mapping[str, Range], values: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `drawn_values`. Raises ValueError where a value is none of the choices."""
    return {
        dotted: values[dotted] if wanted.choices is None else wanted.choices.index(values[dotted])
        for dotted, wanted in space.items()
    }


def holds(wanted: Range, value: Any) -> bool:
    """Whether a range has this value."""
    if wanted.choices is not None:
        return value in wanted.choices
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    low, high = _ends(wanted)
    return low <= value <= high and (not wanted.integer or value == int(value))


def grid_values(space: Mapping[str, Range]) -> dict[str, list[Any]]:
    """The values that a grid takes of each field: all choices, all whole numbers, or `points` that
    lie evenly, by their logarithm where the range says so."""
    return {dotted: _grid(wanted) for dotted, wanted in space.items()}


def _grid(wanted: Range) -> list[Any]:
    if wanted.choices is not None:
        return list(wanted.choices)
    low, high = _ends(wanted)
    points = wanted.points
    if points is None:
        return list(range(int(low), int(high) + 1))
    shares = [place / (points - 1) for place in range(points)]
    if wanted.log:
        values = [low * (high / low) ** share for share in shares]
    else:
        values = [low + (high - low) * share for share in shares]
    # Rounding must not lead out of the interval.
    values = [min(max(value, low), high) for value in values]
    return sorted({round(value) for value in values}) if wanted.integer else values


def check_space(spec: TuneSpec) -> None:
    """Refuse a range that would make every trial fail. Raises SpecError naming the field.

    Each field's ends (or choices) are tried by themselves; whether a combination works is known
    only once it is drawn.
    """
    for dotted, wanted in spec.space.items():
        if dotted.startswith(_OWN_FIELDS):
            raise SpecError(
                f"space.{dotted}",
                "the search sets this field itself, differently for each trial",
                fix="search over another field",
            )
        if wanted.integer and (_broken(wanted.low) or _broken(wanted.high)):
            raise SpecError(
                f"space.{dotted}",
                "integer, but its ends are no whole numbers",
                value=[wanted.low, wanted.high],
            )
        for value in _samples(wanted):
            _try_value(spec.job, dotted, value)


def trial_job(spec: TuneSpec, number: int, values: Mapping[str, Any], folder: str) -> JobSpec:
    """The job of one trial, in its own folder below `folder`. Raises SpecError where the values do
    not go together."""
    return spec.job.changed(
        {
            **values,
            "name": trial_name(spec, number),
            "output_dir": trial_folder(spec, number, folder),
            # Nor do its checkpoints outlive it: they lie in that folder, which is its own.
            "checkpoint.directory": None,
            # A trial keeps its model with its run; only the job of best.yaml is registered.
            "export.register_as": None,
        }
    )


def segment_job(job: JobSpec, segment: int, last_step: int) -> JobSpec:
    """The part of a trial's job that is one generation of a population: it ends after `last_step`,
    and its checkpoints have a folder of their own, from which the next generation takes them."""
    changes: dict[str, Any] = {"checkpoint.directory": generation_folder(job.directory, segment)}
    if last_step < job.last_step:
        changes["stop_after_step"] = last_step
    return job.changed(changes)


def trial_folder(spec: TuneSpec, number: int, folder: str) -> str:
    """Where everything lies that trial `number` leaves."""
    return f"{folder}/{trial_name(spec, number)}"


def best_job(spec: TuneSpec, values: Mapping[str, Any]) -> JobSpec:
    """The job as the user wrote it, with the best values in it."""
    return spec.job.changed(values)


def trial_name(spec: TuneSpec, number: int) -> str:
    """Such as lr-search-003; trials count from 0."""
    return f"{spec.name[:_NAME_CHARACTERS]}-{number:03d}"


def _distribution(wanted: Range) -> BaseDistribution:
    if wanted.choices is not None:
        return CategoricalDistribution(tuple(range(len(wanted.choices))))
    low, high = _ends(wanted)
    if wanted.integer:
        return IntDistribution(int(low), int(high), log=wanted.log)
    return FloatDistribution(low, high, log=wanted.log)


def _ends(wanted: Range) -> tuple[float, float]:
    """Range itself makes sure that both ends are there where choices are not."""
    if wanted.low is None or wanted.high is None:
        raise ValueError("an interval without an end")
    return wanted.low, wanted.high


def _samples(wanted: Range) -> list[Any]:
    """Values that a field must take if it takes the range at all."""
    if wanted.choices is not None:
        return wanted.choices
    low, high = _ends(wanted)
    if wanted.integer:
        return [int(low), int(high)]
    # A number between the ends that is not whole: a field that counts things refuses it.
    inside = low + (high - low) * 0.381966
    return [low, high, inside]


def _try_value(job: JobSpec, dotted: str, value: Any) -> None:
    try:
        job.changed({dotted: value})
    except SpecError as wrong:
        if wrong.subject != dotted:
            # The field takes the value; with the rest of the job it does not go together.
            return
        whole = isinstance(value, float) and "integer" in wrong.problem
        raise SpecError(
            f"space.{dotted}",
            f"the field does not take values of this range: {wrong.problem}",
            value=value,
            allowed=wrong.allowed,
            fix="add integer: true" if whole else "narrow the range",
        ) from None


def _broken(end: float | None) -> bool:
    return end is not None and end != int(end)
