"""What is made small keeps what decides whether a plan computes rightly."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayline.spec import JobSpec, ModelShape, ParallelPlan
from rayline.train.verify.shrink import (
    MOST_RANKS,
    as_it_is,
    narrowed,
    shrink,
    shrink_plan,
)

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "num_hidden_layers": 32,
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "initializer_range": 0.02,
    "attention_dropout": 0.1,
    "bos_token_id": 128000,
    "eos_token_id": [128001, 128008, 128009],
    "tie_word_embeddings": False,
}


def job(**plan: Any) -> JobSpec:
    parallel = ParallelPlan.parse(plan)
    return JobSpec.parse(
        {
            "name": "large",
            "model": {"hub": "org/large"},
            "steps": 500,
            "data": {"kind": "chat", "files": ["a.jsonl"], "sequence_tokens": 4096},
            "batch": {"sequences": parallel.data * parallel.microbatches * 4},
            "optim": {"lr": 1e-5, "warmup_steps": 20},
            "plan": plan,
        }
    )


def test_what_waits_for_many_steps_waits_for_few() -> None:
    growing = job(data=2, microbatches=3).changed(
        {
            "optim.schedule": {"kind": "plateau"},
            "batch.ramp": {"start": 6, "increment": 6, "steps": 90},
            "objective.chunk_tokens": 4096,
            "guard": {"spike_factor": 2.0, "on_spike": "stop"},
        }
    )
    small = shrink(growing, LLAMA).job
    assert [small.batch.sequences_at(step) for step in range(1, 6)] == [6, 6, 12, 12, 18]
    assert small.optim.schedule.model_dump()["patience_steps"] == 0
    assert small.objective.chunk_tokens is not None
    assert small.objective.chunk_tokens < small.data.sequence_tokens
    assert (small.guard.window_steps, small.guard.on_spike) == (2, "skip")


def test_a_large_llama_becomes_small_and_says_what_changed() -> None:
    shrunk = shrink(job(data=2, tensor=2, pipeline=2, microbatches=4), LLAMA)
    shape = ModelShape.from_config(shrunk.config)
    assert (shape.layers, shape.heads, shape.kv_heads, shape.head_dim) == (2, 32, 8, 8)
    assert (shape.hidden, shape.vocab) == (256, 264)
    assert shape.ffn < 60
    assert shrunk.config["eos_token_id"] == 258
    assert shrunk.config["attention_dropout"] == 0.0
    assert {
        "num_hidden_layers 32 -> 2",
        "hidden_size 4096 -> 256",
        "vocab_size 128256 -> 264",
        "data.sequence_tokens 4096 -> 64",
        "optim.lr 1e-05 -> 0.001",
        "batch.sequences 32 -> 16",
    } <= set(shrunk.changes)


def test_the_given_config_is_left_as_it_was() -> None:
    before = copy.deepcopy(LLAMA)
    shrink(job(data=2), LLAMA)
    as_it_is(job(data=2), LLAMA)
    assert before == LLAMA


def test_whole_only_dropout_goes() -> None:
    spec = job(data=2)
    whole = as_it_is(spec, LLAMA)
    assert whole.job == spec
    assert whole.changes == ("attention_dropout 0.1 -> 0.0",)


@given(
    layers=st.integers(1, 96),
    kv_heads=st.sampled_from([1, 2, 4, 8]),
    per_kv=st.integers(1, 8),
    head_dim=st.sampled_from([2, 8, 64, 128]),
    ffn=st.integers(8, 30000),
    vocab=st.integers(264, 260000),
    plan=st.builds(
        ParallelPlan,
        data=st.integers(1, 9),
        tensor=st.sampled_from([1, 2, 4, 8]),
        pipeline=st.integers(1, 12),
        microbatches=st.just(12),
    ),
)
def test_whatever_passed_the_check_whole_passes_it_small(
    layers: int,
    kv_heads: int,
    per_kv: int,
    head_dim: int,
    ffn: int,
    vocab: int,
    plan: ParallelPlan,
) -> None:
    heads = kv_heads * per_kv
    config = LLAMA | {
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "hidden_size": heads * head_dim,
        "intermediate_size": ffn * plan.tensor,
        "vocab_size": vocab,
    }
    if kv_heads % plan.tensor or plan.pipeline > layers:
        return
    spec = job(**plan.model_dump(mode="json"))
    spec.check(ModelShape.from_config(config))
    small = shrink(spec, config)
    shape = ModelShape.from_config(small.config)
    small.job.check(shape)
    assert (shape.heads, shape.kv_heads) == (heads, kv_heads)
    assert small.job.plan.pipeline <= shape.layers <= layers
    tensor = small.job.plan.tensor
    assert vocab % tensor == shape.vocab % tensor
    assert small.job.plan.world_size <= MOST_RANKS


@given(size=st.integers(1, 10**6), near=st.integers(1, 10**4), unit=st.integers(1, 64))
def test_a_narrowed_size_leaves_the_same_remainder(size: int, near: int, unit: int) -> None:
    found = narrowed(size, near, unit)
    assert 1 <= found <= size
    assert found % unit == size % unit
    assert found < near + unit or found == size


@given(
    st.builds(
        ParallelPlan,
        data=st.integers(1, 512),
        tensor=st.integers(1, 16),
        pipeline=st.integers(1, 64),
        context=st.integers(1, 4),
    )
)
def test_a_shrunk_plan_keeps_each_axis_that_it_had(plan: ParallelPlan) -> None:
    small = shrink_plan(plan)
    for axis in ("data", "tensor", "pipeline", "context"):
        before, after = getattr(plan, axis), getattr(small, axis)
        assert after <= before
        assert (after > 1) == (before > 1)
    used = [axis for axis in ("data", "tensor", "pipeline", "context") if getattr(plan, axis) > 1]
    assert small.world_size <= max(MOST_RANKS, 2 ** len(used))
    if plan.world_size <= MOST_RANKS:
        assert small == plan


@given(
    expert=st.sampled_from([1, 2, 3, 4, 6, 8, 16, 32]),
    sets=st.integers(1, 6),
    copies=st.integers(1, 3),
    tensor=st.sampled_from([1, 2, 4]),
    own=st.integers(1, 3),
)
def test_spread_experts_that_passed_the_check_pass_it_small(
    expert: int, sets: int, copies: int, tensor: int, own: int
) -> None:
    plan = ParallelPlan(data=expert * sets * copies, expert=expert, replicate=copies, tensor=tensor)
    mixture = replace(ModelShape.from_config(LLAMA), experts=expert * own, experts_per_token=1)
    plan.check(mixture, plan.data)
    small = shrink_plan(plan)
    small.check(mixture, small.data)
    assert (small.expert > 1) == (expert > 1)
    assert small.world_size <= MOST_RANKS


def test_experts_keep_their_number_and_their_share_of_the_data_axis() -> None:
    moe = LLAMA | {
        "num_local_experts": 16,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 1408,
        "router_jitter_noise": 0.01,
    }
    shrunk = shrink(job(data=16, tensor=2), moe)
    assert ModelShape.from_config(shrunk.config).experts == 16
    assert shrunk.config["num_experts_per_tok"] == 2
    assert shrunk.config["moe_intermediate_size"] < 100
    assert shrunk.config["router_jitter_noise"] == 0.0
    assert shrink_plan(ParallelPlan(data=16, expert=8)).data == 8
    many = shrink_plan(ParallelPlan(data=64, expert=32, replicate=2, tensor=2))
    assert (many.data, many.expert, many.replicate, many.tensor) == (4, 4, 1, 2)
    hybrid = shrink_plan(ParallelPlan(data=16, expert=4, replicate=4))
    assert (hybrid.data, hybrid.expert, hybrid.replicate) == (8, 4, 2)


def test_lists_of_one_entry_a_layer_are_cut_and_show_every_kind() -> None:
    kinds = (["sliding_attention"] * 5 + ["full_attention"]) * 8
    mixed = LLAMA | {
        "num_hidden_layers": 48,
        "layer_types": kinds,
        "sliding_window": 4096,
        "mlp_only_layers": [0, 40],
        "first_k_dense_replace": 3,
    }
    config = shrink(job(pipeline=2, microbatches=2), mixed).config
    assert config["num_hidden_layers"] == 6
    assert config["layer_types"] == kinds[:6]
    assert config["sliding_window"] == 16
    assert config["mlp_only_layers"] == [0]
    assert config["first_k_dense_replace"] == 3


def test_an_uneven_rest_of_layers_stays_uneven() -> None:
    config = shrink(job(pipeline=4, microbatches=4), LLAMA | {"num_hidden_layers": 30}).config
    assert config["num_hidden_layers"] == 4 + 30 % 4


@pytest.mark.parametrize(
    ("extra", "head_dim"),
    [
        ({"head_dim": 128}, 8),
        ({"head_dim": 256, "partial_rotary_factor": 0.25}, 8),
        ({"head_dim": 80, "partial_rotary_factor": 0.4}, 16),
        ({"head_dim": 96, "rope_scaling": {"short_factor": [1.0] * 48}}, 96),
    ],
)
def test_a_narrow_head_can_still_be_turned(extra: dict[str, Any], head_dim: int) -> None:
    config = shrink(job(tensor=2), LLAMA | extra).config
    assert config["head_dim"] == head_dim


def test_latent_attention_is_narrowed_in_all_its_parts() -> None:
    latent = LLAMA | {
        "num_key_value_heads": 32,
        "q_lora_rank": 1536,
        "kv_lora_rank": 512,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "qk_head_dim": 192,
        "v_head_dim": 128,
    }
    config = shrink(job(tensor=2), latent).config
    assert config["qk_head_dim"] == config["qk_nope_head_dim"] + config["qk_rope_head_dim"] == 16
    assert (config["q_lora_rank"], config["kv_lora_rank"]) == (16, 16)


def test_a_nested_text_config_is_shrunk_where_it_stands() -> None:
    config = shrink(job(data=2), {"model_type": "outer", "text_config": dict(LLAMA)}).config
    assert config["text_config"]["num_hidden_layers"] == 2
    assert config["model_type"] == "outer"
