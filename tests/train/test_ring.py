"""Sequences that go round a ring: every gradient is that of one process, whatever the heads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from rayline.errors import SpecError
from rayline.spec import ModelShape
from support.architectures import write_architecture
from support.engine_gang import Task, run_gang
from support.plain_training import assert_equals_reference, job

# A window and squeezed scores; two heads for four ranks; experts; a bias; each with other axes.
PLANS: dict[str, tuple[str, dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "four ranks": ("gemma2", {"context": 4}, {}, {}),
    "four ranks, two heads": (
        "qwen3",
        {"context": 4, "microbatches": 2},
        {"num_attention_heads": 2, "num_key_value_heads": 1},
        {"recompute": "full"},
    ),
    "with tensor, sequence": (
        "mixtral",
        {"context": 2, "tensor": 2, "sequence": True},
        {},
        {"objective": {"chunk_tokens": 8}},
    ),
    "with pipeline, zero-bubble": (
        "starcoder2",
        {
            "context": 2,
            "pipeline": 2,
            "microbatches": 2,
            "schedule": "zero_bubble",
            "zero_stage": 2,
        },
        {},
        {},
    ),
    "with data, stage 3": ("gemma3_text", {"context": 2, "data": 2}, {}, {}),
}


def ring(plan: dict[str, Any]) -> dict[str, Any]:
    return {**plan, "context_method": "ring"}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Task]:
    root: Path = tmp_path_factory.mktemp("ring")
    found = {}
    for number, (name, (model_type, plan, sizes, changes)) in enumerate(PLANS.items()):
        model = write_architecture(root / f"model-{number}", model_type, **sizes)
        found[name] = Task(job(ring(plan), **changes), model, gradients=True, last=2)
    run_gang(root, list(found.values()))
    return found


@pytest.mark.dist
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", PLANS)
def test_gradients_and_losses_are_those_of_one_process(tasks: dict[str, Task], name: str) -> None:
    assert_equals_reference(tasks[name])


@pytest.mark.dist
def test_joined_logits_stand_in_the_order_of_the_tokens(tasks: dict[str, Task]) -> None:
    """After two steps, so against the weights of then."""
    from transformers import AutoModelForCausalLM

    from support.engine_rank import global_batch

    task = tasks["four ranks"]
    model = AutoModelForCausalLM.from_pretrained(task.model, attn_implementation="eager")
    model.load_state_dict(task.tensors("weights"), strict=False)
    model.tie_weights()
    with torch.no_grad():
        expected = model(global_batch(task.job, model.config.vocab_size, 1)[0]).logits
    torch.testing.assert_close(task.tensors("logits")["logits"], expected, rtol=1e-4, atol=1e-4)


def test_the_ring_need_not_divide_the_heads_but_the_tokens() -> None:
    shape = ModelShape(
        layers=4,
        hidden=64,
        heads=2,
        kv_heads=1,
        head_dim=16,
        ffn=96,
        vocab=264,
        tied_embeddings=False,
        max_positions=256,
    )
    job(ring({"context": 4})).check(shape)
    with pytest.raises(SpecError, match=r"plan.context_method=ring"):
        job({"context": 4}).check(shape)
    with pytest.raises(SpecError, match="10 equal parts"):
        job(ring({"context": 5})).check(shape)
    with pytest.raises(SpecError, match="recompute: full"):
        job(ring({"context": 4}), recompute="selective")
