"""The plain training's optimizers are the engine's, on whole parameters, written otherwise."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import TypeAdapter

from rayline.parallel.layout import Held
from rayline.spec import AnyOptimSpec
from rayline.train.optimizer import ShardedOptimizer
from rayline.train.shards import Holding, Shards
from rayline.train.verify.plain_optimizers import plain_optimizer

STEPS = 6
SHAPES = {
    "model.embed_tokens.weight": (20, 12),
    "model.layers.0.mlp.up_proj.weight": (24, 300),
    "model.layers.0.experts.down_proj": (3, 10, 24),
    "model.norm.weight": (12,),
}
SPECS: dict[str, dict[str, Any]] = {
    "adamw": {},
    "adam8bit": {},
    "adafactor": {},
    "lion": {},
    "lamb": {},
    "muon": {},
    "sgd": {"nesterov": True},
    "rmsprop": {},
    "adagrad": {},
    "adadelta": {},
}
GROUPS = [{"match": "*norm*", "lr_scale": 0.5, "weight_decay": 0.3}, {"match": "*norm*"}]


def drawn(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def held(tensor: torch.Tensor) -> Holding:
    view = tuple(slice(0, size) for size in tensor.shape)
    return Holding(tensor, tuple(tensor.shape), (Held((0,) * tensor.dim(), view),))


@pytest.mark.parametrize("kind", [*SPECS, "muon, original"])
def test_steps_are_those_of_the_engine(kind: str) -> None:
    fields = SPECS.get(kind, {"lr_adjust": "original", "nesterov": False})
    tree = {"kind": kind.split(",")[0], "lr": 1e-2, "weight_decay": 0.1, "groups": GROUPS}
    adapter: TypeAdapter[AnyOptimSpec] = TypeAdapter(AnyOptimSpec)
    spec = adapter.validate_python(tree | fields)
    tensors = drawn(1)
    engine = ShardedOptimizer(Shards({name: held(t) for name, t in tensors.items()}), spec)
    plain = {name: torch.nn.Parameter(tensor) for name, tensor in drawn(1).items()}
    step = plain_optimizer(spec, plain)
    for number in range(1, STEPS + 1):
        gradients = drawn(100 + number)
        for name, parameter in plain.items():
            parameter.grad = gradients[name].clone()
        engine.step(gradients, 1e-2 / number)
        step(1e-2 / number)
    for name, begun in drawn(1).items():
        moved = (tensors[name] - begun).norm()
        off = (plain[name].detach() - tensors[name]).norm()
        assert moved > 0, name
        assert off < 1e-4 * moved, f"{name}: {off / moved:.1e}"
