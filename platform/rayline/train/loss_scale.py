"""The loss's scale in fp16: large enough that small gradients do not vanish, small enough that
large ones do not overflow (Micikevicius et al. 2018, Mixed Precision Training, section 3.2; the
constants are torch.amp.GradScaler's)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

GROWTH_INTERVAL_STEPS = 2000
"""Steps without overflow after which the scale doubles."""


@dataclass(frozen=True, slots=True)
class LossScale:
    """What the mean loss is multiplied by before the backward pass; the same on every rank."""

    value: float = 2.0**16
    good_steps: int = 0
    """Steps without overflow since the scale last changed."""

    @property
    def can_fall(self) -> bool:
        """Whether an overflow can be the scale's fault: at 1 it is the gradient's own."""
        return self.value > 1.0

    def judged(self, loss: float, grad_norm: float) -> tuple[float | None, LossScale]:
        """What a step of this loss and gradient norm says of the scale: the scale at which the
        gradients overflowed, None where they did not, and the scale of the next step."""
        overflowed = self.can_fall and math.isfinite(loss) and not math.isfinite(grad_norm)
        return self.value if overflowed else None, self.after(overflowed=overflowed)

    def after(self, *, overflowed: bool) -> LossScale:
        """The scale of the next step."""
        if overflowed:
            return LossScale(max(1.0, self.value / 2))
        if self.good_steps + 1 == GROWTH_INTERVAL_STEPS:
            return LossScale(self.value * 2)
        return LossScale(self.value, self.good_steps + 1)

    def scalars(self) -> dict[str, float | int]:
        """As a checkpoint keeps it."""
        return {"loss_scale": self.value, "loss_scale_good_steps": self.good_steps}

    @classmethod
    def from_scalars(cls, scalars: Mapping[str, float | int]) -> LossScale:
        """The inverse of `scalars`; the beginning where a run in another precision wrote them."""
        if "loss_scale" not in scalars:
            return cls()
        return cls(float(scalars["loss_scale"]), int(scalars["loss_scale_good_steps"]))
