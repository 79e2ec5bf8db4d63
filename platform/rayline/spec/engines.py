"""What each engine can do: a job that asks for more is refused, with what the other one offers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rayline.errors import SpecError
from rayline.spec.model import ModelShape
from rayline.spec.stages import SCHEDULES

if TYPE_CHECKING:
    from rayline.spec.job import JobSpec


_WHOLE = "looks at whole parameters, which engine deepspeed shares out in flat partitions"
_NOT_UNDER_ZERO = {
    "adafactor": _WHOLE,
    "adam8bit": _WHOLE,
    "lamb": _WHOLE,
    "muon": _WHOLE,
    "adagrad": "is made anew by DeepSpeed, without its groups of parameters",
}
"""Why an optim.kind is not for the deepspeed engine. Adagrad: initialize_optimizer_states in
DeepSpeed's runtime/zero/stage3.py and stage_1_and_2.py."""


def why_engine_cannot(job: JobSpec) -> str | None:
    """The first thing in the job that its engine can't do, and what to do; None where it can."""
    reasons = _deepspeed_lacks(job) if job.engine == "deepspeed" else _native_lacks(job)
    return next(reasons, None)


def _deepspeed_lacks(job: JobSpec) -> Iterator[str]:
    plan = job.plan
    for name, usual in (
        ("context", 1),
        ("expert", 1),
        ("replicate", 1),
        ("sequence", False),
    ):
        value = getattr(plan, name)
        if value != usual:
            yield f"engine deepspeed has no plan.{name}, found {value}; use engine: native"
    if plan.pipeline > 1:
        yield from _deepspeed_pipeline_lacks(job)
    if plan.tensor > 1 and plan.zero_stage not in (1, 2):
        yield (
            f"engine deepspeed cuts matrices over plan.tensor with plan.zero_stage 1 or 2, found "
            f"{plan.zero_stage}; use one of them, or engine: native"
        )
    if job.recompute == "selective" and plan.zero_stage == 3:
        yield (
            "recompute selective keeps results of a layer's operations, and would keep the weights "
            "that plan.zero_stage 3 gathers among them; use recompute: full, plan.zero_stage 0, 1 "
            "or 2, or engine: native"
        )
    if job.compile is not None:
        yield "engine deepspeed compiles no layers; leave compile null, or use engine: native"
    if job.objective.router_aux_loss:
        yield "engine deepspeed has no objective.router_aux_loss; use engine: native"
    if job.objective.expert_capacity_factor is not None:
        yield (
            "engine deepspeed drops no choices of experts; leave objective.expert_capacity_factor "
            "null, or use engine: native"
        )
    if job.objective.chunk_tokens is not None:
        yield (
            "engine deepspeed computes all logits at once; leave objective.chunk_tokens null, or "
            "use engine: native"
        )
    reason = _NOT_UNDER_ZERO.get(job.optim.kind)
    if reason is not None:
        yield f"optim.kind {job.optim.kind} {reason}; use engine: native"
    yield from _deepspeed_offload_lacks(job)


def _deepspeed_pipeline_lacks(job: JobSpec) -> Iterator[str]:
    """DeepSpeed's own rules (runtime/pipe/engine.py), and what it would get wrong."""
    plan = job.plan
    if plan.zero_stage > 1:
        yield (
            f"engine deepspeed runs a pipeline with plan.zero_stage 0 or 1, found "
            f"{plan.zero_stage}; use one of them, or engine: native"
        )
    if plan.tensor > 1:
        yield (
            f"engine deepspeed cuts either layers over plan.pipeline or matrices over plan.tensor, "
            f"found {plan.pipeline} and {plan.tensor}; set one of them to 1, or use engine: native"
        )
    if plan.schedule != "1f1b":
        yield (
            f"engine deepspeed has no plan.schedule {plan.schedule}, only 1f1b; use it, or engine: "
            "native"
        )
    if job.precision != "fp32" and plan.zero_stage == 0:
        yield (
            f"engine deepspeed runs a pipeline in {job.precision} with plan.zero_stage 1, which "
            "keeps weights in fp32 beside those that compute, found 0; use it, or engine: native"
        )


def _deepspeed_offload_lacks(job: JobSpec) -> Iterator[str]:
    """DeepSpeed's own rules (runtime/zero/offload_config.py)."""
    stage, offload = job.plan.zero_stage, job.offload
    if offload.optimizer != "none" and stage == 0:
        yield (
            f"offload.optimizer {offload.optimizer} moves what ZeRO shards, and plan.zero_stage 0 "
            "shards nothing; use plan.zero_stage 1, 2 or 3"
        )
    if offload.activations != "none":
        yield (
            "engine deepspeed has no offload.activations; use recompute: full, or engine: native"
        )
    if offload.parameters != "none" and stage < 3:
        yield (
            f"offload.parameters {offload.parameters} needs plan.zero_stage 3, found {stage}: "
            "other stages keep whole weights; use offload.parameters: none, or plan.zero_stage: 3"
        )


def _native_lacks(job: JobSpec) -> Iterator[str]:
    plan = job.plan
    ring = plan.context > 1 and plan.context_method == "ring"
    if ring and job.data.packing == "documents":
        yield (
            "data.packing documents keeps documents apart by a mask over whole sequences, which no "
            "rank of a ring holds; use plan.context_method: ulysses, or data.packing: dense"
        )
    if job.offload.parameters != "none":
        yield (
            "engine native offloads no parameters; use plan.zero_stage 3 over more data ranks, or "
            "engine: deepspeed"
        )
    if job.offload.activations != "none" and job.recompute != "none":
        yield (
            f"offload.activations moves what layers save, and recompute {job.recompute} keeps it "
            "elsewhere or not at all; use one of the two"
        )

    if job.compile is not None:
        yield from _not_compiled(job)


def _not_compiled(job: JobSpec) -> Iterator[str]:
    """What torch.compile cannot trace, or would decide by itself."""
    plan = job.plan
    if plan.context > 1 and plan.context_method == "ring":
        yield (
            "compile traces through no sends and receives, of which a ring is made; use "
            "plan.context_method: ulysses, or compile: null"
        )
    if plan.pipeline > 1 and SCHEDULES[plan.schedule].splits_backward:
        yield (
            f"compile makes one backward pass of each layer, and plan.schedule {plan.schedule} "
            "splits it in two; use plan.schedule: interleaved, or compile: null"
        )
    if job.recompute == "selective":
        yield (
            "compile decides by itself which results of a layer are kept, as recompute selective "
            "does; use recompute: none or full, or compile: null"
        )
    if job.offload.activations != "none":
        yield (
            "compile decides by itself which results of a layer are kept, so offload.activations "
            "cannot take them; use recompute: full, or compile: null"
        )


def check_engine(job: JobSpec, model: ModelShape) -> None:
    """Refuse what the engine can't do with this model. Raises SpecError."""
    if job.engine == "deepspeed" and job.plan.tensor > model.kv_heads:
        raise SpecError(
            "plan.tensor",
            f"engine deepspeed gives each tensor rank key-value heads of its own, of which the "
            f"model has {model.kv_heads}",
            value=job.plan.tensor,
            allowed=f"1..{model.kv_heads}",
            fix="use engine: native, where neighbouring ranks hold the same head",
        )
