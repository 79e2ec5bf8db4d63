"""Fit the curves to measured runs.

Robust least squares on logarithms of step times (a run that is off by a factor counts as much
either way; one far off counts no more than linearly), held near physically plausible figures by
their spreads, so that a figure of which the runs say nothing stays what it was. Levenberg's and
Marquardt's step over a numeric Jacobian: every column of it is one more prediction of all runs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from rayline.planner.columns import Columns, Numbers, stack
from rayline.planner.curves import Curves, as_vector, from_vector, spreads
from rayline.planner.published import MeasuredRun
from rayline.planner.stage_memory import GIB, predict_memory
from rayline.planner.step_time import predict_step

_NOISE = 0.05
"""Relative error at which a run begins to count less: the noise of such tables."""
_ROUNDS = 40
_LITTLE_KNOWN = 1.5
_NUDGE = 1e-3
_EVENNESS = 0.6
"""How far sources count alike: 0 every run alike, 1 every source alike."""


def fit_curves(runs: Sequence[MeasuredRun], start: Curves | None = None) -> Curves:
    """The curves under which `runs` come out best; only those with a step time count."""
    before = start or Curves()
    for name, on_cpu in (("reserved_gib", False), ("process_gib", True)):
        kind = [r for r in runs if (r.machines.accelerator.generation == "cpu") == on_cpu]
        before = _fit_memory(kind, before, name)
    timed = [run for run in runs if run.step_s]
    if not timed:
        return before
    columns = stack(run.parts for run in timed)
    measured = np.log(np.array([run.step_s for run in timed]))
    per_source = Counter(run.source for run in timed)
    weights = np.array([per_source[run.source] ** -_EVENNESS for run in timed])
    spread = spreads()
    if all(run.machines.accelerator.generation == "cpu" for run in timed):
        # What is known of GPUs' links and launches says nothing of a processor's.
        spread = np.maximum(spread, _LITTLE_KNOWN)
    return from_vector(_fit(columns, measured, weights, as_vector(before), spread))


def _fit_memory(runs: Sequence[MeasuredRun], before: Curves, base: str) -> Curves:
    """The base and the fragments under which peaks come out best; runs that ran out of memory
    pull where they are predicted to fit, and those that ran where they are not."""
    told = [run for run in runs if run.memory_gib]
    if not told:
        return before
    columns = stack(run.parts for run in told)
    measured = np.array([run.memory_gib for run in told])
    room = np.array([run.machines.accelerator.memory_gib for run in told])
    ran = np.isfinite(measured)
    per_source = Counter(run.source for run in told)
    weights = np.array([per_source[run.source] ** -_EVENNESS for run in told])

    def cost(held: float, fragments: float) -> float:
        curves = _with_memory(before, base, held, fragments)
        gib = predict_memory(columns, curves).total / GIB
        off = np.log(np.where(ran, gib / np.where(ran, measured, 1.0), gib / room))
        off = np.where(ran, off, np.minimum(0.0, 3 * off))
        robust = np.sqrt(1 + (off / _NOISE) ** 2) - 1
        return float(np.sum(weights * robust))

    reserves = np.linspace(0.25, 2.0, 29) * getattr(before, base)
    fragments = np.linspace(0.0, 0.5, 11)
    best = min((cost(r, f), float(r), float(f)) for r in reserves for f in fragments)
    return _with_memory(before, base, best[1], max(best[2], 0.01))


def _with_memory(curves: Curves, base: str, held: float, fragments: float) -> Curves:
    if base == "process_gib":
        return replace(curves, process_gib=held, fragments=fragments)
    return replace(curves, reserved_gib=held, fragments=fragments)


def _fit(
    c: Columns, measured: Numbers, weights: Numbers, centre: Numbers, spread: Numbers
) -> Numbers:
    point, damping = centre.copy(), 1e-2
    error = _errors(c, measured, point)
    cost = _cost(error, weights, (point - centre) / spread)
    for _ in range(_ROUNDS):
        jacobian = np.stack(
            [(_errors(c, measured, _nudged(point, i)) - error) / _NUDGE for i in range(len(point))],
            axis=1,
        )
        # Soft L1: a far run's weight falls as one over its error.
        robust = weights / np.sqrt(1 + (error / _NOISE) ** 2) / _NOISE**2
        pull = 1 / spread**2
        hessian = jacobian.T @ (robust[:, None] * jacobian) + np.diag(pull)
        slope = jacobian.T @ (robust * error) + pull * (point - centre)
        improved = False
        while damping < 1e6:
            step = np.linalg.solve(hessian + damping * np.diag(np.diag(hessian)), -slope)
            trial = point + step
            trial_error = _errors(c, measured, trial)
            trial_cost = _cost(trial_error, weights, (trial - centre) / spread)
            if trial_cost < cost:
                improved = cost - trial_cost > 1e-5 * cost
                point, error, cost = trial, trial_error, trial_cost
                damping = max(1e-6, damping / 5)
                break
            damping *= 4
        if not improved:
            break
    return point


def _nudged(point: Numbers, entry: int) -> Numbers:
    moved = point.copy()
    moved[entry] += _NUDGE
    return moved


def _errors(c: Columns, measured: Numbers, point: Numbers) -> Numbers:
    return np.log(predict_step(c, from_vector(point)).total_s) - measured


def _cost(error: Numbers, weights: Numbers, off: Numbers) -> float:
    robust = np.sqrt(1 + (error / _NOISE) ** 2) - 1
    return float(np.sum(weights * robust) + np.sum(off**2) / 2)
