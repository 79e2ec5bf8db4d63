"""What is refused before anything is placed: plans that cannot run, do not fit or cannot win.

Arithmetic over the planner's predictions (memory within some per cent, step times less well: see
examples/bench/results); no cluster is asked, so the same holds for one elsewhere.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from rayline.errors import SpecError
from rayline.planner import estimate_memory
from rayline.planner.choice import device_memory, predict_job
from rayline.planner.columns import Machines
from rayline.planner.curves import Curves
from rayline.spec import JobSpec, ModelShape, Range, TuneSpec
from rayline.tuning.journal import RefusalKind

_GIB = 2**30
_MOST_PLANS = 4096
"""Combinations of a space's plans that are predicted at most to find the fastest."""
_PLAN_FIELDS = ("plan.", "recompute", "offload.")
"""What decides how fast a batch is computed, but not what is computed."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is predicted of one draw, and why it is refused."""

    memory_gib: float | None = None
    """Of the worker that needs most; None where nothing was predicted."""
    step_s: float | None = None
    refused: RefusalKind | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Devices:
    """What trials would run on, as far as it is known."""

    machines: Machines | None
    """None where the kind of the cluster's devices is not known; then no time is predicted."""
    memory_gib: float | None
    """Of one worker's device; None where that is not known; then all plans fit."""


class Pruning:
    """Judges the draws of one search. A value but for what it remembers of plans' times."""

    def __init__(self, spec: TuneSpec, curves: Curves) -> None:
        self._spec, self._curves = spec, curves
        self._best_s: dict[str, float | None] = {}

    def judge(
        self, job: JobSpec, params: Mapping[str, Any], shape: ModelShape, devices: Devices
    ) -> Verdict:
        """What the planner says of `job`, which `params` made of the search's. Called before
        anything is placed."""
        try:
            job.check(shape)
        except SpecError as wrong:
            return Verdict(refused="spec", reason=str(wrong))
        verdict = Verdict(self._memory_gib(job, shape, devices), self._step_s(job, shape, devices))
        room = devices.memory_gib
        if self._spec.prune.memory and room is not None and (verdict.memory_gib or 0.0) > room:
            told = f"needs {verdict.memory_gib:.2f} GiB a worker; a device has {room:.2f}"
            return replace(verdict, refused="memory", reason=told)
        return self._against_best(verdict, job, params, shape, devices)

    def _against_best(
        self,
        verdict: Verdict,
        job: JobSpec,
        params: Mapping[str, Any],
        shape: ModelShape,
        devices: Devices,
    ) -> Verdict:
        most = self._spec.prune.slower_than
        if most is None or verdict.step_s is None:
            return verdict
        best_s = self._fastest_s(job, params, shape, devices)
        if best_s is None or verdict.step_s <= most * best_s:
            return verdict
        told = (
            f"a step would take {verdict.step_s:.3g} s, {verdict.step_s / best_s:.1f} times that "
            f"of the best plan in the space; prune.slower_than is {most:g}"
        )
        return replace(verdict, refused="time", reason=told)

    def _memory_gib(self, job: JobSpec, shape: ModelShape, devices: Devices) -> float:
        estimate = estimate_memory(shape, job)
        if devices.machines is not None:
            estimate = device_memory(estimate, devices.machines, self._curves)
        return estimate.total_bytes / _GIB

    def _step_s(self, job: JobSpec, shape: ModelShape, devices: Devices) -> float | None:
        """None where the planner has no word for it: other engines, unknown devices."""
        if devices.machines is None or job.engine != "native":
            return None
        machines = replace(devices.machines, gpus=job.plan.world_size)
        return predict_job(job, shape, machines, self._curves).step_s

    def _fastest_s(
        self, job: JobSpec, params: Mapping[str, Any], shape: ModelShape, devices: Devices
    ) -> float | None:
        """Step time of the fastest plan that the space has for the same other values and that
        fits; None where the space has no plans, or too many."""
        varied = plan_values(self._spec.space)
        if not varied or math.prod(map(len, varied.values())) > _MOST_PLANS:
            return None
        same = {dotted: value for dotted, value in params.items() if dotted not in varied}
        key = repr(sorted(same.items()))
        if key not in self._best_s:
            self._best_s[key] = self._search_fastest(job, varied, shape, devices)
        return self._best_s[key]

    def _search_fastest(
        self,
        job: JobSpec,
        varied: Mapping[str, list[Any]],
        shape: ModelShape,
        devices: Devices,
    ) -> float | None:
        best_s: float | None = None
        for values in itertools.product(*varied.values()):
            try:
                changed = job.changed(dict(zip(varied, values, strict=True)))
                changed.check(shape)
            except SpecError:
                continue
            room = devices.memory_gib
            if room is not None and self._memory_gib(changed, shape, devices) > room:
                continue
            step_s = self._step_s(changed, shape, devices)
            if step_s is not None and (best_s is None or step_s < best_s):
                best_s = step_s
        return best_s


def plan_values(space: Mapping[str, Range]) -> dict[str, list[Any]]:
    """The fields of a space that say how a batch is computed, with all values that they take."""
    found: dict[str, list[Any]] = {}
    for dotted, wanted in space.items():
        if not dotted.startswith(_PLAN_FIELDS):
            continue
        if wanted.choices is not None:
            found[dotted] = wanted.choices
        elif wanted.integer and wanted.low is not None and wanted.high is not None:
            found[dotted] = list(range(int(wanted.low), int(wanted.high) + 1))
    return found
