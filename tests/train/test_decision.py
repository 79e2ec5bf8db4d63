"""What becomes of a step: who is asked, and in which order."""

import math

import pytest

from rayline.train.decision import decide
from rayline.train.engine import Fault, StepOutcome
from rayline.train.loss_scale import LossScale

FAULTS = (Fault(1, "loss"),)


class Asked:
    """A guard and a search for faults that note what they were asked."""

    def __init__(self, *, admits: bool) -> None:
        self._admits = admits
        self.order: list[str] = []

    def admits(self, loss: float, grad_norm: float) -> bool:
        self.order.append(f"admits {loss} {grad_norm}")
        return self._admits

    def find_faults(self, outcome: StepOutcome) -> tuple[Fault, ...]:
        self.order.append(f"faults {outcome.loss}")
        return FAULTS


@pytest.mark.parametrize("scale", [None, LossScale(8.0)])
def test_an_admitted_step_is_applied_and_nobody_looks_for_faults(scale: LossScale | None) -> None:
    asked = Asked(admits=True)
    told = StepOutcome(loss=2.0, grad_norm=0.5, tokens=7)
    outcome, following = decide(told, scale, asked.admits, asked.find_faults)
    assert outcome == told
    assert outcome.applied
    assert asked.order == ["admits 2.0 0.5"]
    assert following == (None if scale is None else LossScale(8.0, 1))


def test_a_refused_step_is_not_applied_and_names_its_faults() -> None:
    asked = Asked(admits=False)
    told = StepOutcome(loss=9.0, grad_norm=3.0, tokens=7)
    outcome, following = decide(told, None, asked.admits, asked.find_faults)
    assert (outcome.applied, outcome.faults) == (False, FAULTS)
    assert asked.order == ["admits 9.0 3.0", "faults 9.0"]
    assert following is None


def test_an_overflow_lowers_the_scale_and_asks_nobody() -> None:
    asked = Asked(admits=True)
    told = StepOutcome(loss=2.0, grad_norm=math.inf, tokens=7)
    outcome, following = decide(told, LossScale(8.0, 3), asked.admits, asked.find_faults)
    assert (outcome.applied, outcome.overflowed_at) == (False, 8.0)
    assert asked.order == []
    assert following == LossScale(4.0)


def test_what_no_smaller_scale_could_mend_is_the_guards() -> None:
    asked = Asked(admits=False)
    told = StepOutcome(loss=2.0, grad_norm=math.inf, tokens=7)
    outcome, following = decide(told, LossScale(1.0), asked.admits, asked.find_faults)
    assert (outcome.applied, outcome.overflowed_at, outcome.faults) == (False, None, FAULTS)
    assert following == LossScale(1.0, 1)
