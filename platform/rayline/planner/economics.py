"""What a step time comes to: use of the GPUs, speed, money, days, energy."""

from __future__ import annotations

from dataclasses import dataclass

from rayline.planner.columns import Machines
from rayline.planner.flops import model_flops_per_token
from rayline.spec import ModelShape

_BILLION = 1e9
_DAY_S = 86400.0


@dataclass(frozen=True, slots=True)
class Economics:
    """Figures of one plan."""

    tokens_per_s: float
    """Of the whole cluster."""
    tokens_per_s_per_gpu: float
    mfu: float
    """Share of the bf16 peak, with operations as `rayline.planner.flops` counts them."""
    dollars_per_billion_tokens: float
    kwh_per_billion_tokens: float
    """At most: every board at its full power."""
    days: float | None
    """Until so many tokens are trained on; None without a number of tokens."""
    dollars: float | None
    """For all of them."""


def economics(
    shape: ModelShape,
    machines: Machines,
    tokens_per_step: int,
    sequence_tokens: int,
    step_s: float,
    *,
    total_tokens: float | None = None,
    price_per_hour: float | None = None,
) -> Economics:
    """The figures of a step that takes `step_s`. `price_per_hour` is that of one GPU, in dollars;
    None takes the catalogue's. Called on the driver."""
    kind, gpus = machines.accelerator, machines.gpus
    speed = tokens_per_step / step_s
    price = kind.price_per_hour if price_per_hour is None else price_per_hour
    flops = model_flops_per_token(shape, sequence_tokens) * speed
    hours_per_billion = _BILLION / speed / 3600
    dollars = gpus * price * hours_per_billion
    return Economics(
        tokens_per_s=speed,
        tokens_per_s_per_gpu=speed / gpus,
        mfu=flops / (gpus * kind.peak_flops_per_s("bf16")),
        dollars_per_billion_tokens=dollars,
        kwh_per_billion_tokens=gpus * kind.watts / 1000 * hours_per_billion,
        days=None if total_tokens is None else total_tokens / speed / _DAY_S,
        dollars=None if total_tokens is None else dollars * total_tokens / _BILLION,
    )
