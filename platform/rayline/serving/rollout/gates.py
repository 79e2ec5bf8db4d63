"""Whether a version that takes over is good enough: two measurements in, a verdict out.

A gate is broken where that is certain: the lowest value that the new version's percentile or rate
can have is above the highest that is allowed. Certainty needs no least number of requests of its
own; it comes at some twenty answers where a version is three times slower, and never for one that
is as good. A gate is kept where the values as measured keep it, over min_requests answers. Between
the two it is open, and the version waits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from rayline.serving.rollout.certainty import rank_bounds, rate_bounds
from rayline.serving.rollout.measured import Measured
from rayline.serving.rollout.sketch import Sketch
from rayline.spec.rollout import GatesSpec, LatencyGate, RolloutSpec

WRONG = 5e-3
"""Most chance of rolling back a version that just keeps every gate, over all looks at one step. Of
one that is as good as the stable version it is far less: the gates leave room between the two."""
SCORE = "score"
"""The gate of the evaluation set."""


@dataclass(frozen=True, slots=True)
class Scores:
    """Shares of the evaluation set that were answered as expected, 0 to 1."""

    canary: float
    stable: float | None
    """None where there is nothing to compare with."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One gate, judged."""

    gate: str
    """Such as "ttft p95"."""
    state: Literal["kept", "open", "broken"]
    value: float
    allowed: float
    text: str
    """Value and threshold in words."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What follows from all gates together."""

    action: Literal["promote", "wait", "roll_back"]
    reason: str
    findings: tuple[Finding, ...] = ()


def judge(
    stable: Measured,
    canary: Measured,
    rollout: RolloutSpec,
    *,
    unanswered_ms: Sequence[float] = (),
    scores: Scores | None = None,
) -> Verdict:
    """Judge what `canary` was measured at since its share last changed against `stable`, measured
    in the same time. `unanswered_ms`: how long each request that the canary owes a first token has
    waited so far; a version that answers nothing would otherwise never be found slow."""
    found = tuple(_findings(stable, canary, rollout.gates, unanswered_ms, scores))
    for finding in found:
        if finding.state == "broken":
            return Verdict("roll_back", finding.text, found)
    if canary.requests < rollout.min_requests:
        reason = f"{canary.requests} of min_requests {rollout.min_requests} answered"
        return Verdict("wait", reason, found)
    for finding in found:
        if finding.state == "open":
            return Verdict("wait", f"{finding.text}; not certain yet", found)
    return Verdict("promote", f"every gate kept over {canary.requests} requests", found)


def reference(now: Measured, before: Measured, rollout: RolloutSpec) -> Measured:
    """What a canary is compared with: the stable version as it was measured beside it; where that
    answers too little, as with the last step of a rollout, as it was `before` the share changed."""
    return now if now.requests >= rollout.min_requests else before


def _findings(
    stable: Measured,
    canary: Measured,
    gates: GatesSpec,
    unanswered_ms: Sequence[float],
    scores: Scores | None,
) -> Iterator[Finding]:
    # One chance of being wrong, dealt out evenly among all bounds that are looked at.
    rates = (gates.error_rate_more is not None) + (gates.error_rate is not None)
    comparisons = rates + _comparisons(gates.ttft) + _comparisons(gates.tpot)
    wrong = WRONG / (2 * max(1, comparisons))
    if scores is not None:
        yield from _score_findings(scores, gates)
    yield from _error_findings(stable, canary, gates, wrong)
    yield from _latency_findings(
        "ttft", stable.ttft_ms, canary.ttft_ms, gates.ttft, wrong, unanswered_ms
    )
    yield from _latency_findings("tpot", stable.tpot_ms, canary.tpot_ms, gates.tpot, wrong, ())


def _comparisons(gate: LatencyGate) -> int:
    return len(gate.percentiles) * (gate.times is not None) + (gate.limit_ms is not None)


def _score_findings(scores: Scores, gates: GatesSpec) -> Iterator[Finding]:
    allowed = [] if gates.score is None else [(gates.score, "gates.score")]
    if gates.score_less is not None and scores.stable is not None:
        text = f"the stable version's {scores.stable:.3f} less {gates.score_less:g}"
        allowed.append((scores.stable - gates.score_less, text))
    for least, what in allowed:
        text = f"score is {scores.canary:.3f}, {least:.3f} wanted ({what})"
        # The same questions, answered greedily: asked again, it would be the same.
        state: Literal["kept", "broken"] = "kept" if scores.canary >= least else "broken"
        yield Finding(SCORE, state, scores.canary, least, text)


def _error_findings(
    stable: Measured, canary: Measured, gates: GatesSpec, wrong: float
) -> Iterator[Finding]:
    rate, usual = _rate(canary), _rate(stable)
    lowest, _ = rate_bounds(canary.errors, canary.requests, wrong)
    _, highest_usual = rate_bounds(stable.errors, stable.requests, wrong)
    if gates.error_rate_more is not None and stable.requests:
        more = gates.error_rate_more
        what = f"the stable version's {usual:.1%} and {more:.1%} more"
        yield _finding(
            "error rate", rate, usual + more, f"{rate:.1%}", what, lowest > highest_usual + more
        )
    if gates.error_rate is not None:
        allowed = gates.error_rate
        yield _finding(
            "error rate", rate, allowed, f"{rate:.1%}", f"{allowed:.1%}", lowest > allowed
        )


def _latency_findings(
    name: str,
    stable: Sketch,
    canary: Sketch,
    gate: LatencyGate,
    wrong: float,
    unanswered_ms: Sequence[float],
) -> Iterator[Finding]:
    for percent in gate.percentiles if gate.times is not None else ():
        usual_ms = stable.percentile(percent)
        if usual_ms is None or gate.times is None:
            continue
        _, rank = rank_bounds(stable.count, percent, wrong)
        most_ms = gate.times * stable.ranked(rank)
        seen = _with_unanswered(canary, unanswered_ms, most_ms)
        value_ms = seen.percentile(percent)
        if value_ms is None:
            continue
        what = f"{gate.times:g} times the stable version's {usual_ms:.1f} ms"
        yield _finding(
            f"{name} p{percent:g}",
            value_ms,
            gate.times * usual_ms,
            f"{value_ms:.1f} ms",
            what,
            _least_ms(seen, percent, wrong) > most_ms,
        )
    if gate.limit_ms is not None:
        percent = max(gate.percentiles)
        seen = _with_unanswered(canary, unanswered_ms, gate.limit_ms)
        value_ms = seen.percentile(percent)
        if value_ms is not None:
            broken = _least_ms(seen, percent, wrong) > gate.limit_ms
            limit = f"{gate.limit_ms:g} ms"
            gate_name = f"{name} p{percent:g}"
            yield _finding(gate_name, value_ms, gate.limit_ms, f"{value_ms:.1f} ms", limit, broken)


def _with_unanswered(answered: Sketch, unanswered_ms: Sequence[float], most_ms: float) -> Sketch:
    """Also those that have waited longer than is allowed: they are too slow whenever they end. Of
    the others it is not known, and they count once they are answered."""
    return answered + Sketch(age_ms for age_ms in unanswered_ms if age_ms > most_ms)


def _least_ms(times_ms: Sketch, percent: float, wrong: float) -> float:
    rank, _ = rank_bounds(times_ms.count, percent, wrong)
    return times_ms.ranked(rank)


def _finding(
    gate: str, value: float, allowed: float, shown: str, what: str, broken: bool
) -> Finding:
    state: Literal["kept", "open", "broken"] = "kept" if value <= allowed else "open"
    text = f"{gate} is {shown}, {what} allowed"
    return Finding(gate, "broken" if broken else state, value, allowed, text)


def _rate(measured: Measured) -> float:
    return measured.errors / measured.requests if measured.requests else 0.0
