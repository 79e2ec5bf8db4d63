"""From figures to a verdict: what is within the tolerance, and what kind of fault the rest looks
like. Pure: numbers in, words out.

A parameter's error is the 2-norm of the difference over the 2-norm of the reference. What rounding
may do is measured, not guessed: the reference runs twice, the second time sequence by sequence in
reverse order (and in bf16 for a bf16 job), and the distance of the two is the parameter's `noise`.
So a gradient that is zero but for rounding, such as that of a key's bias, raises no alarm.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from rayline.spec import ParallelPlan

Check = Literal["run", "start", "gradient", "loss", "grad_norm", "weights", "resume"]


@dataclass(frozen=True, slots=True)
class Figures:
    """One quantity in the gang and in the reference."""

    name: str
    """Parameter's Hugging Face name, or `step N`."""
    here: float
    """2-norm in the gang; NaN where the gang has no such parameter."""
    there: float
    """2-norm in the reference; NaN where the reference has no such parameter."""
    apart: float
    """2-norm of the difference."""
    noise: float = 0.0
    """2-norm of the difference that rounding alone made in the reference."""
    cosine: float = 1.0
    """Of the angle between the two."""
    permuted: bool = False
    """Whether the gang has the reference's values, in other places."""

    @property
    def error(self) -> float:
        """Relative to the reference; infinite where that is zero and this is not."""
        if math.isnan(self.here) or math.isnan(self.there) or not math.isfinite(self.apart):
            return math.inf
        if self.apart == 0.0:
            return 0.0
        return self.apart / self.there if self.there > 0 else math.inf


@dataclass(frozen=True, slots=True)
class Measured:
    """Everything that was measured of one plan."""

    start: tuple[Figures, ...]
    """Of the weights that training begins with, by parameter."""
    gradients: tuple[Figures, ...]
    """Of step 1, by parameter."""
    losses: tuple[Figures, ...]
    """By step."""
    grad_norms: tuple[Figures, ...]
    """By step."""
    weights: tuple[Figures, ...]
    """Of what all steps changed in each parameter, not of its value: a value hides a small step."""
    resumed: tuple[Figures, ...]
    """What differs, bit by bit, between the resumed run and the unbroken one: losses and norms by
    step, then tensors of the last checkpoint. Empty where they are identical."""
    compared_on_resume: int
    """Losses, norms and tensors that were compared bit by bit."""


@dataclass(frozen=True, slots=True)
class Tolerance:
    """Relative errors that one precision explains."""

    gradient: float
    loss: float
    grad_norm: float
    weights: float
    noise_margin: float
    """So many times the measured noise is allowed on top."""


TOLERANCES: Mapping[str, Tolerance] = {
    "fp32": Tolerance(gradient=1e-4, loss=1e-5, grad_norm=1e-4, weights=3e-3, noise_margin=8.0),
    "bf16": Tolerance(gradient=5e-2, loss=2e-2, grad_norm=5e-2, weights=1e-1, noise_margin=3.0),
}
"""fp32: two orders of summation differ by about 1e-6, a fault by 1e-2 or more. bf16: 8 bits of
mantissa, layers add up; the reference computes in fp32. Adam divides by the gradient's own size, so
weights amplify what rounding does to gradients near zero."""


COARSE_RULES = frozenset({"lion", "adam8bit"})
"""Optimizers that choose between few values, element by element: a sign, one of 256 shares."""
COARSE_WEIGHTS = 5e-2
"""Relative error of the weights' changes that rounding explains there: it seldom tips a choice, and
not the same ones in two runs."""


@dataclass(frozen=True, slots=True)
class Offence:
    """Something that differs by more than it may."""

    check: Check
    name: str
    error: float
    """Relative to the reference."""
    allowed: float
    here: float
    there: float
    hint: str
    """What kind of fault it looks like."""


@dataclass(frozen=True, slots=True)
class CheckResult:
    """One check of one plan: how much was compared, and what came nearest to the limit."""

    check: Check
    compared: int
    worst: str
    """Name of what came nearest; empty where nothing differs."""
    error: float
    allowed: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether one plan computes what one process computes."""

    label: str
    """`whole plan`, `one worker`, or the axis that was taken alone."""
    plan: ParallelPlan
    checks: tuple[CheckResult, ...]
    offences: tuple[Offence, ...]
    """Worst first, by how far each is beyond what is allowed; wrong weights before all others."""

    @property
    def equal(self) -> bool:
        """Nothing is beyond its tolerance."""
        return not self.offences


def tolerance_of(precision: str, rule: str) -> Tolerance:
    """What a job's precision and its kind of optimizer explain."""
    tolerance = TOLERANCES[precision]
    if rule not in COARSE_RULES:
        return tolerance
    return replace(tolerance, weights=max(tolerance.weights, COARSE_WEIGHTS))


def judge(
    label: str, plan: ParallelPlan, precision: str, measured: Measured, rule: str = "adamw"
) -> Verdict:
    """The verdict on one plan of a job in this precision, with this kind of optimizer."""
    tolerance = tolerance_of(precision, rule)
    sizes = axis_sizes(plan)
    parts: list[tuple[Check, Sequence[Figures], float]] = [
        ("start", measured.start, 0.0),
        ("gradient", measured.gradients, tolerance.gradient),
        ("loss", measured.losses, tolerance.loss),
        ("grad_norm", measured.grad_norms, tolerance.grad_norm),
        ("weights", measured.weights, tolerance.weights),
    ]
    checks, offences = [], []
    for check, figures, relative in parts:
        limits = [_allowed(one, relative, tolerance.noise_margin) for one in figures]
        checks.append(_summary(check, figures, limits))
        offences += [
            Offence(check, one.name, one.error, limit, one.here, one.there, hint(one, sizes))
            for one, limit in zip(figures, limits, strict=True)
            if not one.error <= limit
        ]
    word = resume_hint(measured.resumed)
    offences += [
        Offence("resume", one.name, one.error, 0.0, one.here, one.there, word)
        for one in measured.resumed
    ]
    resumed = _summary("resume", measured.resumed, [0.0] * len(measured.resumed))
    checks.append(
        CheckResult("resume", measured.compared_on_resume, resumed.worst, resumed.error, 0.0)
    )
    # Weights that are wrong from the start make everything else wrong.
    offences.sort(key=lambda one: (one.check != "start", -_excess(one.error, one.allowed)))
    return Verdict(label, plan, tuple(checks), tuple(offences))


def did_not_run(label: str, plan: ParallelPlan, problem: str) -> Verdict:
    """The verdict on a plan whose ranks raised `problem`."""
    offence = Offence("run", "the ranks", math.inf, 0.0, math.nan, math.nan, problem)
    return Verdict(label, plan, (), (offence,))


def _allowed(figures: Figures, relative: float, margin: float) -> float:
    if not figures.there > 0 or not math.isfinite(figures.noise):
        return relative
    return relative + margin * figures.noise / figures.there


def _excess(error: float, allowed: float) -> float:
    if error == math.inf:
        return math.inf
    return error / allowed if allowed > 0 else error


def _summary(check: Check, figures: Sequence[Figures], limits: Sequence[float]) -> CheckResult:
    pairs = list(zip(figures, limits, strict=True))
    if not pairs:
        return CheckResult(check, 0, "", 0.0, 0.0)
    worst, limit = max(pairs, key=lambda pair: _excess(pair[0].error, pair[1]))
    return CheckResult(check, len(pairs), worst.name if worst.error else "", worst.error, limit)


_NO_AXES = ("microbatches", "number of ranks")
"""What may scale a gradient without being an axis to sum over."""


def axis_sizes(plan: ParallelPlan) -> dict[str, int]:
    """What a scaled gradient may have been scaled by: the plan's numbers above one, by name."""
    named = ("data", "tensor", "pipeline", "context", "expert", "microbatches")
    sizes = {name: getattr(plan, name) for name in named}
    sizes["number of ranks"] = plan.world_size
    return {name: size for name, size in sizes.items() if size > 1}


_PARALLEL = 0.9999
"""Cosine above which only the length differs."""
_LITTLE = 0.2
_OFF = "a little off: most likely what another fault led to"
_SAME_LENGTH = 0.25
_ELSEWHERE = 0.5
"""Cosine below which two gradients have little in common: parts of a sum, or gradients on parts of
one batch, have more."""


def hint(figures: Figures, sizes: Mapping[str, int]) -> str:
    """What kind of fault `figures` look like; `sizes` as `axis_sizes` gives them."""
    if math.isnan(figures.here):
        return "missing: the gang has no such parameter"
    if math.isnan(figures.there):
        return "unknown: the reference has no such parameter"
    if not math.isfinite(figures.apart):
        return "not a number, or infinite"
    if figures.here == 0.0:
        return "zero: it took no part, or what it got was dropped"
    if figures.there == 0.0:
        return "not zero, as it should be"
    ratio = figures.here / figures.there
    if figures.cosine > _PARALLEL:
        return _scaled(ratio, sizes)
    if figures.error < _LITTLE:
        return _OFF
    if figures.permuted:
        return "the right values in the wrong places: swapped shard"
    if abs(ratio - 1) < _SAME_LENGTH and figures.cosine < _ELSEWHERE:
        return "right norm, wrong direction: swapped shard, or other data"
    axes = " or ".join(name for name in sizes if name not in _NO_AXES) or "data"
    return f"partial sum, or other data: a sum over the {axes} axis may be left out"


def _scaled(ratio: float, sizes: Mapping[str, int]) -> str:
    for word, factor in (("", ratio), ("1 / ", 1 / ratio)):
        names = [name for name, size in sizes.items() if abs(factor / size - 1) < 0.01]
        if names:
            return f"scaled by {word}{round(factor)}: the {_size_of(names)}"
    return _OFF if abs(ratio - 1) < 0.01 else f"scaled by {ratio:.4g}"


def _size_of(names: Iterable[str]) -> str:
    words = [name if name in _NO_AXES else f"{name} size" for name in names]
    return " or the ".join(words)


FIRST_RESUMED = " (first after the resume)"
RUNNING_MEANS = "optimizer/"


def resume_hint(resumed: Sequence[Figures]) -> str:
    """What kind of fault the differences after a resume look like.

    The first loss after the resume is computed before any step: if it differs, data or weights do.
    If not, the steps do: running means that were lost are far off, a shifted rate moves them little
    (they see it only through the weights)."""
    names = [figures.name for figures in resumed]
    if "first step after the resume" in names:
        return "the run did not go on from its checkpoint"
    if any(name.startswith("loss of ") and name.endswith(FIRST_RESUMED) for name in names):
        return "other data or other weights after the resume"
    means = sorted(figures.error for figures in resumed if figures.name.startswith(RUNNING_MEANS))
    # The upper quartile: one of AdamW's two running means may have been lost, and one parameter
    # may be more sensitive than all others.
    if means and means[len(means) * 3 // 4] > 0.1:
        return "optimizer state not restored"
    return "steps of another size after the resume: learning rate or step count"


def guilty(whole: Verdict, alone: Sequence[Verdict]) -> str:
    """Which axis is to blame, in words; `alone` are the plan's axes one at a time, `one worker`
    first."""
    if whole.equal:
        return ""
    failing = [verdict.label for verdict in alone if not verdict.equal]
    if not alone or "one worker" in failing:
        return "no axis: one worker alone differs (engine, precision or microbatches)"
    if failing:
        return " and ".join(failing)
    tried = ", ".join(verdict.label for verdict in alone if verdict.label != "one worker")
    return f"none alone ({tried}): the axes differ only together"
