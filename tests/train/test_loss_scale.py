"""The loss's scale, against torch's own scaler, and in an engine whose gradients overflow."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rayline.models.tiny import write_tiny_model
from rayline.spec import WorkerContext
from rayline.train import loss_scale
from rayline.train.build import build_engine
from rayline.train.engine import Batch
from rayline.train.loss_scale import LossScale
from rayline.train.process_group import joined
from support.engine_gang import free_port
from support.engine_rank import global_batch
from support.plain_training import job


@settings(deadline=None)
@given(
    overflows=st.lists(st.integers(0, 3 * loss_scale.GROWTH_INTERVAL_STEPS), max_size=6),
    steps=st.integers(1, 3 * loss_scale.GROWTH_INTERVAL_STEPS),
)
def test_it_rises_and_falls_as_torchs(overflows: list[int], steps: int) -> None:
    value, tracker = torch.tensor(2.0**16), torch.tensor(0, dtype=torch.int32)
    scale = LossScale()
    for step in range(steps):
        overflowed = step in overflows
        torch._amp_update_scale_(value, tracker, torch.tensor(float(overflowed)), 2.0, 0.5, 2000)
        scale = scale.after(overflowed=overflowed)
    assert scale.value == value.item()
    assert LossScale.from_scalars(scale.scalars()) == scale


def test_it_never_falls_below_one() -> None:
    scale = LossScale()
    for _ in range(40):
        scale = scale.after(overflowed=True)
    assert scale == LossScale(1.0)
    assert not scale.can_fall
    assert LossScale.from_scalars({"optimizer_steps": 3}) == LossScale()


@pytest.mark.dist
@pytest.mark.parametrize(
    ("engine", "stage", "offload"),
    [
        ("native", 3, {}),
        *(("deepspeed", stage, {}) for stage in range(4)),
        ("deepspeed", 1, {"optimizer": "cpu"}),
        ("deepspeed", 3, {"optimizer": "cpu"}),
    ],
)
def test_gradients_that_overflow_move_nothing_and_lower_the_scale(
    tmp_path: Path, engine: str, stage: int, offload: dict[str, str]
) -> None:
    model = write_tiny_model(tmp_path, hidden=64, ffn=128, layers=1)
    spec = job({"zero_stage": stage}, precision="fp16", engine=engine, offload=offload)
    place = spec.plan.coordinate(0)
    context = WorkerContext(0, 1, 0, place, "127.0.0.1", free_port(), "cpu")
    asked: list[float] = []

    def admits(loss: float, grad_norm: float) -> bool:
        asked.append(grad_norm)
        return True

    with joined(context) as device:
        one = build_engine(spec, context, model, device)
        huge = {"optimizer_steps": 0, **LossScale(2.0**40, 5).scalars()}
        one.restore(one.pieces(), huge)
        begun = {name: weight.clone() for name, weight in one.weights()}
        ids, labels = global_batch(spec, 64, 1)
        outcome = one.step(Batch(ids, labels), 1e-3, admits)
        assert (outcome.applied, outcome.overflowed_at) == (False, 2.0**40)
        assert asked == []
        assert all(torch.equal(weight, begun[name]) for name, weight in one.weights())
        assert one.scalars() == {"optimizer_steps": 0, **LossScale(2.0**39).scalars()}
        one.restore(one.pieces(), {"optimizer_steps": 0, **LossScale(2.0**10).scalars()})
        outcome = one.step(Batch(ids, labels), 1e-3, admits)
        assert outcome.applied
        assert asked == [outcome.grad_norm]
        assert any(not torch.equal(weight, begun[name]) for name, weight in one.weights())
