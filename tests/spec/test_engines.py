"""What each engine is asked for and can't do: refused by name, with what to do instead."""

from typing import Any

import pytest

from rayline.errors import SpecError
from rayline.spec import JobSpec, ModelShape

JOB: dict[str, Any] = {
    "name": "offloading",
    "model": {"directory": "models/tiny"},
    "steps": 20,
    "data": {"kind": "text", "files": ["a.txt"], "sequence_tokens": 64},
    "batch": {"sequences": 8},
    "optim": {"lr": 1e-3},
    "engine": "deepspeed",
}


@pytest.mark.parametrize(
    ("changes", "offload"),
    [
        ({"plan.zero_stage": 1}, {"optimizer": "cpu"}),
        ({"plan.zero_stage": 2}, {"optimizer": "cpu"}),
        ({"plan.zero_stage": 3}, {"parameters": "cpu"}),
        ({"plan.zero_stage": 3}, {"optimizer": "cpu", "parameters": "cpu"}),
        ({"engine": "native", "plan.zero_stage": 0}, {"optimizer": "cpu", "activations": "cpu"}),
    ],
)
def test_an_engine_offloads_what_it_can(changes: dict[str, Any], offload: dict[str, str]) -> None:
    fields = {f"offload.{name}": place for name, place in offload.items()}
    job = JobSpec.parse(JOB).changed(changes | fields)
    assert job.offload.model_dump(exclude_defaults=True) == offload


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"plan.zero_stage": 0, "offload.optimizer": "cpu"}, "zero_stage 0 shards nothing"),
        (
            {"plan.zero_stage": 2, "offload.parameters": "cpu"},
            "parameters cpu needs plan.zero_stage 3, found 2",
        ),
        ({"offload.activations": "cpu"}, "use recompute: full, or engine: native"),
        ({"offload.optimizer": "disk"}, "offload.optimizer"),
        ({"engine": "native", "offload.parameters": "cpu"}, "or engine: deepspeed"),
        (
            {"engine": "native", "offload.activations": "cpu", "recompute": "full"},
            "use one of the two",
        ),
    ],
)
def test_what_cannot_be_offloaded_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(SpecError, match=said):
        JobSpec.parse(JOB).changed(changes)


@pytest.mark.parametrize("kind", ["adafactor", "adam8bit", "adagrad", "lamb", "muon"])
def test_deepspeed_refuses_what_its_partitions_would_falsify(kind: str) -> None:
    optim = {"lr": 1e-3, "kind": kind}
    JobSpec.parse(JOB | {"engine": "native", "optim": optim})
    with pytest.raises(SpecError, match=f"optim.kind {kind} .*; use engine: native"):
        JobSpec.parse(JOB | {"optim": optim})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"plan.pipeline": 2, "plan.zero_stage": 2},
            "pipeline with plan.zero_stage 0 or 1, found 2; use one of them, or engine: native",
        ),
        (
            {"plan.pipeline": 2, "plan.zero_stage": 1, "plan.tensor": 2},
            "found 2 and 2; set one of them to 1, or use engine: native",
        ),
        (
            {"plan.pipeline": 2, "plan.zero_stage": 1, "plan.schedule": "gpipe"},
            "no plan.schedule gpipe, only 1f1b; use it, or engine: native",
        ),
        (
            {"plan.pipeline": 2, "plan.zero_stage": 0, "precision": "bf16"},
            "in bf16 with plan.zero_stage 1.* found 0; use it, or engine: native",
        ),
        ({"plan.context": 2}, "no plan.context, found 2; use engine: native"),
        ({"plan.data": 2, "plan.expert": 2}, "no plan.expert, found 2; use engine: native"),
        ({"compile": {}}, "compiles no layers; leave compile null, or use engine: native"),
        ({"objective.router_aux_loss": 0.01}, "no objective.router_aux_loss; use engine: native"),
        (
            {"objective.expert_capacity_factor": 1.25},
            "leave objective.expert_capacity_factor null, or use engine: native",
        ),
        (
            {"objective.chunk_tokens": 512},
            "leave objective.chunk_tokens null, or use engine: native",
        ),
        ({"plan.data": 4, "plan.replicate": 2}, "no plan.replicate, found 2; use engine: native"),
        ({"plan.sequence": True}, "no plan.sequence, found True; use engine: native"),
        ({"plan.tensor": 2, "plan.zero_stage": 3}, "plan.zero_stage 1 or 2, found 3"),
        ({"plan.tensor": 2, "plan.zero_stage": 0}, "plan.zero_stage 1 or 2, found 0"),
        ({"recompute": "selective"}, "use recompute: full, plan.zero_stage 0, 1 or 2"),
    ],
)
def test_deepspeed_refuses_what_it_cannot_combine(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(SpecError, match=said):
        JobSpec.parse(JOB).changed(changes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"plan.context": 2, "plan.context_method": "ring"}, "context_method: ulysses, or compile"),
        (
            {"plan.pipeline": 2, "plan.microbatches": 2, "plan.schedule": "zero_bubble"},
            "plan.schedule: interleaved, or compile",
        ),
        ({"recompute": "selective"}, "recompute: none or full, or compile"),
        ({"offload.activations": "cpu"}, "use recompute: full, or compile"),
        ({"offload.optimizer": "nvme"}, "nvme is not offered.*use cpu"),
        ({"precision": "fp8"}, "fp8 is not offered; use bf16"),
        ({"compile": {"backend": "gcc"}}, r"(?s)compile.backend.*gcc.*aot_eager"),
    ],
)
def test_what_is_not_offered_and_what_cannot_be_compiled_is_refused(
    changes: dict[str, Any], said: str
) -> None:
    native = JobSpec.parse(JOB).changed({"engine": "native", "compile": {}})
    assert native.compile is not None
    assert native.compile.backend == "inductor"
    with pytest.raises(SpecError, match=said):
        native.changed(changes)


@pytest.mark.parametrize(
    ("stage", "changes"),
    [
        (0, {"recompute": "full"}),
        (1, {"precision": "bf16"}),
        (1, {"precision": "fp16"}),
        (1, {"offload.optimizer": "cpu"}),
    ],
)
def test_deepspeed_runs_a_pipeline(stage: int, changes: dict[str, Any]) -> None:
    plan = {"plan.pipeline": 2, "plan.data": 2, "plan.zero_stage": stage}
    job = JobSpec.parse(JOB).changed(plan | changes)
    assert (job.engine, job.plan.world_size) == ("deepspeed", 4)


def test_a_ring_refuses_documents_that_are_kept_apart() -> None:
    ring = {"engine": "native", "plan.context": 2, "plan.context_method": "ring"}
    JobSpec.parse(JOB).changed(ring)
    with pytest.raises(SpecError, match=r"use plan\.context_method: ulysses"):
        JobSpec.parse(JOB).changed(ring | {"data.packing": "documents"})


def test_deepspeed_gives_each_tensor_rank_a_head_of_its_own() -> None:
    shape = ModelShape(
        layers=2,
        hidden=64,
        heads=4,
        kv_heads=2,
        head_dim=16,
        ffn=128,
        vocab=64,
        tied_embeddings=False,
        max_positions=64,
        architecture="LlamaForCausalLM",
    )
    job = JobSpec.parse(JOB).changed({"plan.tensor": 2, "plan.zero_stage": 1})
    job.check(shape)
    job.changed({"plan.tensor": 4, "engine": "native"}).check(shape)
    with pytest.raises(SpecError, match=r"(?s)plan\.tensor.*1\.\.2.*engine: native"):
        job.changed({"plan.tensor": 4}).check(shape)
