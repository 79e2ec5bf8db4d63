"""What one report of a step becomes in the store: metrics, each with the step it belongs to."""

from __future__ import annotations

from rayline.spec import StepReport

_SHORTEST_PART_S = 1e-3


def step_metrics(report: StepReport) -> list[tuple[str, float | None, int]]:
    """The metrics of one report with the step that each belongs to; None where there is no value.
    A part of the step that took no time to speak of counts as not done, and costs no row."""
    parts, routing = report.parts, report.routing
    rows: list[tuple[str, float | None]] = [
        ("step", report.step),
        ("loss", report.loss),
        ("grad_norm", report.grad_norm),
        ("lr", report.lr),
        ("tokens_per_s", report.tokens_per_s),
        ("tokens_per_s_per_device", report.tokens_per_s_per_device),
        ("mfu", report.mfu),
        ("routing/max_load", None if routing is None else routing.max_load),
        ("routing/balance_loss", None if routing is None else routing.balance_loss),
        ("routing/dropped", None if routing is None else routing.dropped),
        ("routing/dropped_fraction", None if routing is None else routing.dropped_fraction),
        ("memory_gib", report.memory_bytes / 2**30),
        ("time/step_s", report.seconds),
        ("time/data_s", _if_done(parts.data_s)),
        ("time/engine_s", _if_done(parts.engine_s)),
        ("time/compute_s", parts.compute_s),
        ("time/communication_s", parts.communication_s),
        ("time/evaluation_s", _if_done(parts.evaluation_s)),
        ("time/checkpoint_s", _if_done(parts.checkpoint_s)),
        ("time/profile_s", _if_done(parts.profile_s)),
    ]
    measured = [
        (key, value, evaluation.step)
        for evaluation in report.evaluations
        for key, value in (
            ("val_loss", evaluation.loss),
            ("val_perplexity", evaluation.perplexity),
        )
    ]
    return [*((key, value, report.step) for key, value in rows), *measured]


def _if_done(seconds: float) -> float | None:
    return seconds if seconds >= _SHORTEST_PART_S else None
