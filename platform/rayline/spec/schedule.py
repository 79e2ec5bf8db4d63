"""What the learning rate does after the warm-up: one kind of schedule, each with its own fields."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field

from rayline.spec.document import Document


class ConstantSchedule(Document):
    """The peak rate to the end."""

    kind: Literal["constant"] = "constant"


class LinearSchedule(Document):
    """A straight line down to the floor at the last step."""

    kind: Literal["linear"] = "linear"


class CosineSchedule(Document):
    """Half a cosine down to the floor at the last step (Loshchilov & Hutter 2017)."""

    kind: Literal["cosine"] = "cosine"


class PolynomialSchedule(Document):
    """(1 - progress) to a power, down to the floor at the last step."""

    kind: Literal["polynomial"] = "polynomial"
    power: float = Field(default=2.0, gt=0)
    """1 is linear; above 1 it falls fast at first."""


class WsdSchedule(Document):
    """Warm-up, stable, decay (Hu et al. 2024, MiniCPM): constant, then down at the very end."""

    kind: Literal["wsd"] = "wsd"
    decay_steps: int = Field(ge=1)
    """Steps of the decay: the last ones of the run."""
    decay: Literal["linear", "cosine", "sqrt"] = "sqrt"
    """Form of the decay; sqrt is 1 - sqrt(progress) (Hägele et al. 2024)."""


class ExponentialSchedule(Document):
    """Times the same factor at every step, never below the floor."""

    kind: Literal["exponential"] = "exponential"
    factor: float = Field(gt=0, lt=1)
    """What one step leaves of the rate."""


class StepSchedule(Document):
    """Times a factor after every so many steps, never below the floor."""

    kind: Literal["step"] = "step"
    every_steps: int = Field(ge=1)
    """Steps after the warm-up between two falls."""
    factor: float = Field(default=0.1, gt=0, lt=1)
    """What one fall leaves of the rate."""


class PlateauSchedule(Document):
    """Times a factor once the loss has stopped falling, never below the floor."""

    kind: Literal["plateau"] = "plateau"
    factor: float = Field(default=0.5, gt=0, lt=1)
    """What one fall leaves of the rate."""
    patience_steps: int = Field(default=100, ge=0)
    """Steps without a better loss that are borne; the next one makes the rate fall."""
    threshold: float = Field(default=1e-4, ge=0, lt=1)
    """A loss is better when it lies below the best one by more than this share of it."""


def _named(value: Any) -> Any:
    """`schedule: cosine` is short for `schedule: {kind: cosine}`."""
    return {"kind": value} if isinstance(value, str) else value


ScheduleSpec = Annotated[
    ConstantSchedule
    | LinearSchedule
    | CosineSchedule
    | PolynomialSchedule
    | WsdSchedule
    | ExponentialSchedule
    | StepSchedule
    | PlateauSchedule,
    Discriminator("kind"),
    BeforeValidator(_named),
]
