"""Many architectures under many plans: every gradient is that of transformers on one process.

Each architecture meets the axes in turn, so that every axis and pair meets several of them; three
very different ones meet every product of three axes, on eight ranks.
"""

from __future__ import annotations

from itertools import cycle
from pathlib import Path
from typing import Any

import pytest

from support.architectures import ARCHITECTURES, write_architecture
from support.engine_gang import Task, run_gang
from support.plain_training import assert_gradients_equal_reference, job

pytestmark = [pytest.mark.dist, pytest.mark.timeout(400)]

FOUR: dict[str, dict[str, Any]] = {
    "tensor, sequence x pipeline": {
        "tensor": 2,
        "sequence": True,
        "pipeline": 2,
        "microbatches": 2,
    },
    # Twice as many ranks as key-value heads.
    "tensor, shared heads": {"tensor": 4},
    "context x data, stage 0": {"context": 2, "data": 2, "zero_stage": 0},
    "tensor, sequence, shared heads": {"tensor": 4, "sequence": True},
    "context x tensor": {"context": 2, "tensor": 2, "sequence": True},
    "context, more ranks than heads": {"context": 4, "microbatches": 2},
    "data, hybrid": {"data": 4, "replicate": 2, "microbatches": 2},
    "context x pipeline": {"context": 2, "pipeline": 2, "microbatches": 2},
    "tensor x pipeline, interleaved": {
        "tensor": 2,
        "sequence": True,
        "pipeline": 2,
        "microbatches": 2,
        "schedule": "interleaved",
        "stages_per_worker": 2,
    },
    "tensor x pipeline, zero-bubble V": {
        "tensor": 2,
        "pipeline": 2,
        "microbatches": 4,
        "schedule": "zero_bubble_v",
        "stages_per_worker": 2,
    },
    "context x pipeline, zero-bubble": {
        "context": 2,
        "pipeline": 2,
        "microbatches": 4,
        "schedule": "zero_bubble",
        "stages_per_worker": 2,
        "zero_stage": 2,
    },
    "tensor x data, stage 2": {"tensor": 2, "data": 2, "zero_stage": 2, "microbatches": 2},
}
EIGHT: dict[str, dict[str, Any]] = {
    "data x tensor x pipeline": {"data": 2, "tensor": 2, "pipeline": 2, "microbatches": 2},
    "context x tensor x pipeline": {
        "context": 2,
        "tensor": 2,
        "sequence": True,
        "pipeline": 2,
        "microbatches": 2,
    },
    "data x context x tensor": {"data": 2, "context": 2, "tensor": 2, "zero_stage": 1},
    "data, expert x tensor x pipeline": {
        "data": 2,
        "expert": 2,
        "tensor": 2,
        "pipeline": 2,
        "microbatches": 2,
    },
    "data, hybrid x context x pipeline": {
        "data": 2,
        "replicate": 2,
        "context": 2,
        "pipeline": 2,
        "microbatches": 2,
    },
}
SPREAD: dict[str, dict[str, Any]] = {
    "expert x data": {"data": 4, "expert": 2, "microbatches": 2},
    "expert x pipeline, zero-bubble": {
        "data": 2,
        "expert": 2,
        "pipeline": 2,
        "microbatches": 4,
        "schedule": "zero_bubble",
        "stages_per_worker": 2,
        "zero_stage": 2,
    },
    "expert x context": {"data": 2, "expert": 2, "context": 2},
    "expert x tensor, sequence, stage 1": {
        "data": 2,
        "expert": 2,
        "tensor": 2,
        "sequence": True,
        "zero_stage": 1,
    },
    "expert, stage 0": {"data": 4, "expert": 4, "zero_stage": 0},
    "expert x data, hybrid": {"data": 4, "expert": 2, "replicate": 2, "zero_stage": 2},
}
MIXTURES = ("mixtral", "qwen3_moe", "olmoe")
SPREAD_PAIRS = list(zip(cycle(MIXTURES), SPREAD, strict=False))
BALANCED = {"objective": {"router_aux_loss": 0.1}}
THREE_AXES = ("gemma2", "starcoder2", "qwen3_moe")
TURNS = dict(zip(ARCHITECTURES, cycle(FOUR), strict=False))
"""Which two plans an architecture meets: this one and the one after the next."""


def plans_of(model_type: str) -> list[str]:
    first = list(FOUR).index(TURNS[model_type])
    return [list(FOUR)[first], list(FOUR)[(first + 2) % len(FOUR)]]


PAIRS = [(model_type, plan) for model_type in ARCHITECTURES for plan in plans_of(model_type)]
TRIPLES = [
    (model_type, plan)
    for model_type in THREE_AXES
    for plan in EIGHT
    if "expert" not in EIGHT[plan] or model_type in MIXTURES
]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {name: write_architecture(root / name, name) for name in ARCHITECTURES}


def gang(
    pairs: list[tuple[str, str]],
    plans: dict[str, dict[str, Any]],
    models: dict[str, Path],
    root: Path,
) -> dict[tuple[str, str], Task]:
    """All of it in one gang: starting processes costs more than the passes. Where experts are
    spread, routers are pulled towards balance too."""
    tasks = {}
    for name, plan in pairs:
        spec = job(plans[plan], **(BALANCED if "expert" in plans[plan] else {}))
        tasks[name, plan] = Task(spec, models[name], gradients=True)
    run_gang(root, list(tasks.values()))
    return tasks


@pytest.fixture(scope="module")
def four(
    models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[str, str], Task]:
    return gang(PAIRS + SPREAD_PAIRS, FOUR | SPREAD, models, tmp_path_factory.mktemp("four"))


@pytest.fixture(scope="module")
def eight(
    models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[str, str], Task]:
    return gang(TRIPLES, EIGHT, models, tmp_path_factory.mktemp("eight"))


@pytest.mark.parametrize(("model_type", "plan"), PAIRS + SPREAD_PAIRS)
def test_gradients_are_those_of_one_process(
    four: dict[tuple[str, str], Task], model_type: str, plan: str
) -> None:
    assert_gradients_equal_reference(four[model_type, plan])


@pytest.mark.parametrize(("model_type", "plan"), TRIPLES)
def test_products_of_three_axes_too(
    eight: dict[tuple[str, str], Task], model_type: str, plan: str
) -> None:
    assert_gradients_equal_reference(eight[model_type, plan])


def test_every_plan_meets_several_architectures() -> None:
    for plan in FOUR:
        assert sum(met == plan for _, met in PAIRS) >= 2, plan
