"""Compiled layers: what they compute, how often they are compiled, and machines that cannot.

Ranks compile by `aot_eager`: the tracing, which is what a plan could upset, without the kernels,
which take a C++ compiler half a minute."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from rayline.errors import SpecError
from rayline.spec import CompileSpec
from rayline.train import compilation
from rayline.train.compilation import check_compiler, compile_layers
from support.architectures import write_architecture
from support.engine_gang import Task, run_gang
from support.plain_training import job

TRACED = CompileSpec(backend="aot_eager")
COMPILED = {"compile": {"backend": "aot_eager"}}
PLANS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "tensor, sequence, recomputed": (
        "llama",
        {"tensor": 2, "sequence": True},
        {"recompute": "full"},
    ),
    "data x expert": (
        "mixtral",
        {"data": 2, "expert": 2, "microbatches": 2},
        {"objective": {"router_aux_loss": 0.1, "expert_capacity_factor": 1.1}},
    ),
    "pipeline in bf16": ("llama", {"pipeline": 2, "microbatches": 2}, {"precision": "bf16"}),
}


class Mixing(nn.Linear):
    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return super().forward(hidden).tanh()


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = Mixing(4, 4)
        self.experts = Mixing(4, 4)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden + self.experts(self.attention(hidden))


@pytest.fixture
def compiler() -> Iterator[None]:
    """A compiler that has compiled nothing, and forgets what a test had it compile."""
    kept = {
        name: getattr(torch.compiler.config, name)
        for name in ("recompile_limit", "fail_on_recompile_limit_hit")
    }
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()
    for name, value in kept.items():
        setattr(torch.compiler.config, name, value)


@pytest.mark.usefixtures("compiler")
def test_layers_that_are_alike_are_compiled_once() -> None:
    layers, hidden = [Layer() for _ in range(12)], torch.randn(2, 4)
    expected = [layer(hidden) for layer in layers]
    compile_layers(layers, [], TRACED)
    for layer, output in zip(layers, expected, strict=True):
        assert torch.allclose(layer(hidden), output, atol=1e-6)
    assert counters["stats"]["unique_graphs"] == 1


@pytest.mark.usefixtures("compiler")
def test_of_a_layer_with_experts_the_other_parts_are_compiled() -> None:
    layer, hidden = Layer(), torch.randn(2, 4)
    compile_layers([layer], [layer.experts], TRACED)
    layer.experts(hidden)
    assert counters["stats"]["unique_graphs"] == 0
    layer(hidden)
    assert counters["stats"]["unique_graphs"] == 1


@pytest.mark.usefixtures("compiler")
def test_a_layer_that_is_compiled_too_often_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilation, "_MOST_COMPILATIONS", 1)
    layer = Layer()
    compile_layers([layer], [], TRACED)
    layer(torch.randn(2, 4))
    with pytest.raises(Exception, match="recompile_limit"):
        layer.double()(torch.randn(2, 4).double())


@pytest.mark.parametrize(
    ("device", "variable", "wanted"),
    [("cpu", "CXX", "no-such-compiler"), ("cuda", "CC", "triton|no-such-compiler")],
)
def test_a_machine_without_a_compiler_refuses(
    monkeypatch: pytest.MonkeyPatch, device: str, variable: str, wanted: str
) -> None:
    monkeypatch.setenv(variable, "no-such-compiler")
    with pytest.raises(SpecError, match=rf"(?s)compile.backend.*({wanted}).*--set compile=null"):
        check_compiler(CompileSpec(), torch.device(device))
    check_compiler(TRACED, torch.device(device))
    check_compiler(None, torch.device(device))


def test_a_machine_with_a_compiler_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "sh")
    check_compiler(CompileSpec(), torch.device("cpu"))


@pytest.fixture(scope="module")
def gang(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Task]:
    root = tmp_path_factory.mktemp("compiled")
    models = {
        name: write_architecture(root / name, name, num_hidden_layers=2)
        for name in ("llama", "mixtral")
    }
    tasks = {}
    for name, (model, plan, changes) in PLANS.items():
        for kind, how in (("plain", {}), ("compiled", COMPILED)):
            spec = job(plan, **changes, **how)
            # Each kind of pass is compiled by itself, and one plan with evaluations is enough.
            evaluates = "tensor" in plan
            tasks[f"{name}, {kind}"] = Task(spec, models[model], last=2, evaluate=evaluates)
    run_gang(root / "gang", list(tasks.values()))
    return tasks


@pytest.mark.dist
@pytest.mark.parametrize("name", PLANS)
def test_compiled_layers_train_as_plain_ones(gang: dict[str, Task], name: str) -> None:
    plain, compiled = gang[f"{name}, plain"], gang[f"{name}, compiled"]
    expected = [float.fromhex(loss) for loss in plain.losses]
    found = [float.fromhex(loss) for loss in compiled.losses]
    assert found == pytest.approx(expected, abs=1e-5)
    assert compiled.norms == pytest.approx(plain.norms, rel=1e-5)
    for (load, balance), told in zip(compiled.routing, plain.routing, strict=True):
        assert (load, balance) == (told[0], pytest.approx(told[1], rel=1e-5))
    losses = [[loss for loss, _ in task.evaluations] for task in (plain, compiled)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)
