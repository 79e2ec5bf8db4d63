"""Whether a search may go on: what it used up against what it may."""

from __future__ import annotations

from rayline.spec import TuneSpec
from rayline.tuning.history import Spent

_HOUR_S = 3600.0


def money_spent(spec: TuneSpec, spent: Spent) -> float | None:
    """In the currency of price_per_worker_hour; None where that is not told."""
    if spec.price_per_worker_hour is None:
        return None
    return spent.worker_s / _HOUR_S * spec.price_per_worker_hour


def why_no_more(spec: TuneSpec, spent: Spent) -> str | None:
    """Which bound is reached; None where none is."""
    budget = spec.budget
    used = {
        "worker_hours": (spent.worker_s / _HOUR_S, budget.worker_hours),
        "gpu_hours": (spent.gpu_s / _HOUR_S, budget.gpu_hours),
        "money": (money_spent(spec, spent) or 0.0, budget.money),
        "wall_hours": (spent.wall_s / _HOUR_S, budget.wall_hours),
    }
    for name, (amount, most) in used.items():
        if most is not None and amount >= most:
            return f"budget.{name} of {most:g} is used up"
    return None
