"""What is advised where memory ran out: only what can work, and what helps."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rayline.planner import estimate_memory, memory_advice, memory_savings
from rayline.spec import JobSpec, ModelShape

SHAPE = ModelShape.from_config(
    {
        "num_hidden_layers": 8,
        "hidden_size": 512,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "intermediate_size": 1024,
        "vocab_size": 32000,
    }
)


def job(plan: dict[str, object], **fields: object) -> JobSpec:
    return JobSpec.parse(
        {
            "name": "tight",
            "model": {"directory": "model"},
            "steps": 10,
            "data": {"kind": "text", "files": ["a.txt"], "sequence_tokens": 1024},
            "batch": {"sequences": 32},
            "optim": {"lr": 1e-3},
            "plan": plan,
            **fields,
        }
    )


plans = st.fixed_dictionaries(
    {
        "data": st.sampled_from([1, 2, 4]),
        "tensor": st.sampled_from([1, 2, 4]),
        "pipeline": st.sampled_from([1, 2]),
        "microbatches": st.sampled_from([2, 4]),
        "zero_stage": st.sampled_from([0, 1, 2, 3]),
    }
)


@given(plan=plans, recompute=st.sampled_from(["none", "full"]))
def test_every_change_is_one_that_the_job_admits_and_that_saves(
    plan: dict[str, object], recompute: str
) -> None:
    tight = job(plan, recompute=recompute)
    tight.check(SHAPE)
    now_bytes = estimate_memory(SHAPE, tight).total_bytes
    for saving in memory_savings(tight, SHAPE):
        field, _, value = saving.override.partition("=")
        changed = tight.changed(
            {field: int(value) if value.isdigit() else value == "true" or value}
        )
        changed.check(SHAPE)
        assert estimate_memory(SHAPE, changed).total_bytes == saving.worker_bytes
        assert saving.worker_bytes <= 0.9 * now_bytes
        assert changed.batch == tight.batch


def test_what_saves_most_without_more_workers_comes_first() -> None:
    tight = job({"data": 2, "microbatches": 1})
    found = memory_savings(tight, SHAPE)
    same = [one for one in found if not one.workers]
    assert found[: len(same)] == same
    assert [one.worker_bytes for one in same] == sorted(one.worker_bytes for one in same)
    # Activations of 16 sequences at once are what is large here.
    assert same[0].override == "plan.microbatches=8"
    told = memory_advice(tight, SHAPE)
    assert told.startswith("--set plan.microbatches=8 (about ")
    assert "GiB a worker); or --set recompute=full" in told


def test_where_nothing_helps_that_is_said() -> None:
    tiny = ModelShape.from_config(
        {
            "num_hidden_layers": 1,
            "hidden_size": 3,
            "num_attention_heads": 1,
            "num_key_value_heads": 1,
            "intermediate_size": 3,
            "vocab_size": 7,
        }
    )
    alone = job(
        {"data": 1, "microbatches": 1, "zero_stage": 3},
        recompute="full",
        objective={"chunk_tokens": 1024},
        batch={"sequences": 1},
    )
    alone.check(tiny)
    assert memory_savings(alone, tiny) == []
    assert "smaller model" in memory_advice(alone, tiny)
