"""Memory by arithmetic, against what autograd and ZeRO really keep."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, LlamaConfig, PretrainedConfig, Qwen3Config

from rayline.planner import count_parameters, estimate_memory
from rayline.planner.memory import layer_activation_bytes
from rayline.planner.pipeline import peak_in_flight
from rayline.planner.schedule import action_orders
from rayline.spec import JobSpec, ModelShape, ParallelPlan

SHAPE = ModelShape(
    layers=12,
    hidden=256,
    heads=8,
    kv_heads=4,
    head_dim=32,
    ffn=512,
    vocab=1024,
    tied_embeddings=False,
    max_positions=2048,
    architecture="LlamaForCausalLM",
)


def job(**fields: Any) -> JobSpec:
    tree = {
        "name": "job",
        "model": {"directory": "m"},
        "steps": 1,
        "data": {"kind": "text", "files": ["a.txt"], "sequence_tokens": 128},
        "batch": {"sequences": 64},
        "optim": {"lr": 1e-3},
    }
    return JobSpec.parse(tree).changed(fields)


def test_one_worker_in_fp32_keeps_sixteen_bytes_a_parameter() -> None:
    estimate = estimate_memory(SHAPE, job())
    parameters = count_parameters(SHAPE)

    assert estimate.weights_bytes == estimate.gradients_bytes == 4 * parameters
    assert estimate.optimizer_bytes == 8 * parameters


@pytest.mark.parametrize(
    ("stage", "weights", "gradients", "optimizer"),
    # Bytes a parameter on 4 data ranks, bf16: the copy to compute with, the float32 master, the
    # float32 gradients, two float32 means; in stage 3 two layers and the ends are gathered besides.
    [(0, 2 + 4, 4, 8), (1, 2 + 1, 4, 2), (2, 2 + 1, 1, 2), (3, 0.5 + 1, 1, 2)],
)
def test_deepspeed_keeps_what_the_zero_paper_says(
    stage: int, weights: float, gradients: float, optimizer: float
) -> None:
    plan = {"plan.data": 4, "plan.zero_stage": stage}
    estimate = estimate_memory(SHAPE, job(engine="deepspeed", precision="bf16", **plan))
    parameters = count_parameters(SHAPE)
    layer = (parameters - 2 * 1024 * 256 - 256) // 12
    gathered = 2 * (2 * layer + 2 * 1024 * 256 + 256) if stage == 3 else 0

    assert estimate.weights_bytes == pytest.approx(weights * parameters + gathered, rel=1e-4)
    assert estimate.gradients_bytes == pytest.approx(gradients * parameters, rel=1e-4)
    assert estimate.optimizer_bytes == pytest.approx(optimizer * parameters, rel=1e-4)


def test_what_is_offloaded_is_not_on_the_device() -> None:
    """Unless the device is the host."""
    fields = {"engine": "deepspeed", "precision": "bf16", "plan.data": 4}
    here = estimate_memory(SHAPE, job(**fields))
    fields |= {"offload.optimizer": "cpu", "offload.parameters": "cpu"}
    away = estimate_memory(SHAPE, job(**fields))
    parameters = count_parameters(SHAPE)

    assert away.optimizer_bytes == 0
    assert here.weights_bytes - away.weights_bytes == pytest.approx(1.5 * parameters, rel=1e-4)
    assert estimate_memory(SHAPE, job(**fields, **{"resources.device": "cpu"})) == here


def test_offloaded_activations_are_those_of_one_layer() -> None:
    here = estimate_memory(SHAPE, job())
    away = estimate_memory(SHAPE, job(**{"offload.activations": "cpu"}))
    one = 64 * 128 * layer_activation_bytes(SHAPE, job())
    assert here.activations_bytes - away.activations_bytes == 11 * one


@pytest.mark.parametrize(
    ("optim", "each"),
    [
        ({"kind": "adamw"}, 8),
        ({"kind": "lion"}, 4),
        ({"kind": "sgd"}, 4),
        ({"kind": "sgd", "momentum": 0.0}, 0),
        ({"kind": "adafactor"}, 0),
        ({"kind": "adam8bit"}, 2 + 1 / 32),
    ],
)
def test_the_optimizer_keeps_what_its_kind_needs(optim: dict[str, Any], each: float) -> None:
    estimate = estimate_memory(SHAPE, job(optim={"lr": 1e-3, **optim}))
    assert estimate.optimizer_bytes == pytest.approx(each * count_parameters(SHAPE), rel=1e-4)


def test_a_running_mean_of_the_weights_is_four_bytes_a_parameter() -> None:
    plain, averaged = (
        estimate_memory(SHAPE, job(ema=ema)).optimizer_bytes for ema in (None, {"decay": 0.9})
    )
    assert averaged - plain == plain // 2


@pytest.mark.parametrize(("kind", "each"), [("adamw", 8), ("muon", 4), ("adam8bit", 2)])
@pytest.mark.parametrize("stage", [0, 1, 3])
def test_a_worker_keeps_the_state_of_its_own_experts(stage: int, kind: str, each: int) -> None:
    """On four data ranks with experts over two. Stage 0 keeps half of them where it kept all; what
    the other stages share out they share out all the same, and gather less of it."""
    shape = replace(SHAPE, experts=8, experts_per_token=2, expert_ffn=128)
    plan = {"plan.data": 4, "plan.zero_stage": stage, "optim": {"kind": kind, "lr": 1e-3}}
    spread, whole = (
        estimate_memory(shape, job(**plan, **{"plan.expert": size})) for size in (2, 1)
    )
    experts = shape.layers * 3 * shape.hidden * 8 * 128

    saved = each * experts / 2 if stage == 0 else 0
    assert whole.optimizer_bytes - spread.optimizer_bytes == pytest.approx(saved, rel=1e-6)
    gathered = experts if stage < 3 else 2 * experts / shape.layers
    kept = experts if stage == 0 else 0
    assert whole.weights_bytes - spread.weights_bytes == 4 * (gathered + kept) / 2


def test_muon_keeps_one_mean_of_hidden_matrices_and_two_of_the_ends() -> None:
    estimate = estimate_memory(SHAPE, job(optim={"kind": "muon", "lr": 1e-3}))
    ends = 2 * 1024 * 256 + 256
    assert estimate.optimizer_bytes == 4 * (count_parameters(SHAPE) + ends)


@pytest.mark.parametrize("engine", ["native", "deepspeed"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_higher_zero_stage_never_needs_more(engine: str, precision: str) -> None:
    totals = [
        estimate_memory(
            SHAPE,
            job(
                engine=engine,
                precision=precision,
                **{"plan.data": 4, "plan.zero_stage": stage, "plan.microbatches": 4},
            ),
        ).total_bytes
        for stage in range(4)
    ]
    assert totals == sorted(totals, reverse=True)


@given(
    data=st.sampled_from([1, 2, 4]),
    tensor=st.sampled_from([1, 2, 4]),
    pipeline=st.integers(1, 4),
    zero=st.integers(0, 3),
    precision=st.sampled_from(["fp32", "bf16"]),
    schedule=st.sampled_from(["1f1b", "gpipe"]),
)
def test_more_workers_never_need_more_each(
    data: int, tensor: int, pipeline: int, zero: int, precision: str, schedule: str
) -> None:
    one = job(precision=precision, **{"plan.microbatches": 4, "plan.schedule": schedule})
    plan = {"data": data, "tensor": tensor, "pipeline": pipeline, "zero_stage": zero}
    many = one.changed({f"plan.{axis}": size for axis, size in plan.items()})

    first, second = estimate_memory(SHAPE, one), estimate_memory(SHAPE, many)

    assert second.optimizer_bytes <= first.optimizer_bytes
    assert all(
        getattr(second, f"{part}_bytes") >= 0
        for part in ("weights", "gradients", "optimizer", "activations", "logits", "total")
    )


def test_recomputation_keeps_a_layers_input_and_one_whole_layer() -> None:
    none, selective, full = (
        estimate_memory(SHAPE, job(precision="bf16", recompute=kind)).activations_bytes
        for kind in ("none", "selective", "full")
    )
    one = job(precision="bf16")
    tokens, layer = 64 * 128, layer_activation_bytes(SHAPE, one)
    final_norm = none - tokens * 12 * layer
    assert full == tokens * (12 * 2 * SHAPE.hidden + layer) + final_norm
    assert full < selective < none


def test_the_first_stage_of_1f1b_holds_the_most_microbatches() -> None:
    plan = {"plan.pipeline": 4, "plan.microbatches": 8}
    steady = estimate_memory(SHAPE, job(**plan))
    all_at_once = estimate_memory(SHAPE, job(**plan, **{"plan.schedule": "gpipe"}))

    assert steady.stage == 0
    assert all_at_once.activations_bytes >= 2 * steady.activations_bytes


def test_a_large_vocabulary_makes_the_last_stage_the_worst() -> None:
    wide = ModelShape.from_config(
        {
            "num_hidden_layers": 4,
            "hidden_size": 64,
            "num_attention_heads": 4,
            "vocab_size": 100_000,
            "intermediate_size": 128,
        }
    )
    estimate = estimate_memory(wide, job(**{"plan.pipeline": 2, "plan.microbatches": 2}))

    tokens = 64 // 2 * 128
    assert estimate.stage == 1
    # One microbatch: logits and their gradients, in float32.
    assert estimate.logits_bytes == 8 * tokens * 100_000

    chunked = estimate_memory(
        wide,
        job(**{"plan.pipeline": 2, "plan.microbatches": 2, "objective.chunk_tokens": 512}),
    )
    # Gradients of the hidden states and of the head, twice more of the head, 512 tokens' logits.
    assert chunked.logits_bytes == 4 * (tokens + 3 * 100_000) * 64 + 8 * 512 * 100_000


def test_a_worker_of_several_stages_holds_all_of_them() -> None:
    """Interleaving leaves the state as it is, and keeps more microbatches in flight than 1f1b."""
    plan = {"plan.pipeline": 2, "plan.microbatches": 8, "plan.layers_per_stage": [6, 6]}
    one = estimate_memory(SHAPE, job(**plan))
    several = estimate_memory(
        SHAPE,
        job(
            **plan
            | {
                "plan.schedule": "interleaved",
                "plan.stages_per_worker": 2,
                "plan.layers_per_stage": [3, 3, 3, 3],
            }
        ),
    )

    assert several.optimizer_bytes == one.optimizer_bytes
    # Worker 0 has five halves of a stage in flight (Narayanan et al. 2021, section 2.2: its memory
    # is that of 1f1b times 1 + (p - 1) / (p v) = 5 / 4).
    received = 64 // 8 * 128 * SHAPE.hidden * 4
    assert several.activations_bytes - 5 * received == pytest.approx(
        (one.activations_bytes - 2 * received) * 5 / 4
    )


def test_the_stages_of_a_v_balance_the_microbatches_in_flight() -> None:
    """ZB-V's promise (Qi et al. 2023, section 6): the memory of 1f1b, the same on every worker."""
    plan = ParallelPlan(pipeline=4, microbatches=16, stages_per_worker=2, schedule="zero_bubble_v")
    peaks = [
        peak_in_flight(order, dict.fromkeys(plan.stages_of_worker(worker), 1))
        for worker, order in enumerate(action_orders(plan))
    ]
    assert peaks == [8] * 4


@pytest.mark.parametrize("kind", [LlamaConfig, Qwen3Config])
@pytest.mark.parametrize(("precision", "dtype"), [("fp32", "float32"), ("bf16", "bfloat16")])
def test_a_layers_activations_are_what_autograd_saves(
    kind: Any, precision: str, dtype: str
) -> None:
    sequences, tokens = 2, 48
    saved = [saved_bytes(kind, layers, dtype, sequences, tokens) for layers in (2, 3)]
    config = small_config(kind, layers=1)
    shape = ModelShape.from_config(
        {**config.to_dict(), "architectures": [f"{kind.model_type.capitalize()}ForCausalLM"]}
    )

    expected = layer_activation_bytes(shape, job(precision=precision))

    assert (saved[1] - saved[0]) / (sequences * tokens) == expected


def small_config(kind: Any, layers: int) -> PretrainedConfig:
    config: PretrainedConfig = kind(
        num_hidden_layers=layers,
        hidden_size=96,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        intermediate_size=160,
        vocab_size=64,
    )
    return config


def saved_bytes(kind: Any, layers: int, dtype: str, sequences: int, tokens: int) -> int:
    """Bytes of all storages that one forward pass keeps for the backward one, weights aside."""
    config = small_config(kind, layers)
    model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype)).base_model
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = model(input_ids=torch.zeros(sequences, tokens, dtype=torch.int64), use_cache=False)
    assert output.last_hidden_state.requires_grad
    return sum(
        tensor.untyped_storage().nbytes() for ptr, tensor in kept.items() if ptr not in weights
    )
