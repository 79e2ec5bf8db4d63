"""How a deployment's plan is shown: the model, its memory, and how many sequences that holds."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from rayline.cli.plans import parameters_text
from rayline.cli.screen import Screen, plain, size_text
from rayline.cli.serving import prefill_text

if TYPE_CHECKING:
    from rayline.planner import DeploymentPlan, ServingPlan
    from rayline.spec import EngineSpec


def show_deployment_plan(screen: Screen, plan: DeploymentPlan) -> None:
    """The whole plan of one deployment."""
    from rayline.planner import count_parameters, fitting_advice

    deployment, replica = plan.deployment, plan.replica
    scale, engine = deployment.scale, deployment.engine
    shape = plan.model.shape
    kept = "" if plan.model.quantization is None else f", {plan.model.quantization}"
    replicas = f"{scale.min_replicas} to {scale.max_replicas} replicas{prefill_text(engine)}"
    size = f"{parameters_text(count_parameters(shape))} parameters{kept}"
    rows = [
        ("deployment", f"{deployment.name}, {engine.task}, {replicas}"),
        ("model", f"{deployment.model}, {size}"),
        ("replica", devices_text(engine, replica)),
        ("memory", memory_text(replica)),
        *zip(("KV cache", ""), cache_lines(replica), strict=False),
        *([("node", node_text(replica))] if replica.fits else []),
    ]
    screen.table(["", ""], rows)
    if not replica.known:
        screen.say("of a GPU's memory nothing is known: --set engine.gpu=H100, or another kind")
    elif not replica.fits:
        screen.say("does not fit. What would:")
        for fit in plan.fits or [fitting_advice([])]:
            screen.say(f"  {fit}")


def deployment_document(plan: DeploymentPlan) -> dict[str, Any]:
    """The same for a program: what `--json` prints."""
    from rayline.planner import count_parameters

    replica = plan.replica
    return {
        "deployment": plain(plan.deployment),
        "model": plain(plan.model),
        "parameters": count_parameters(plan.model.shape),
        "device": replica.device,
        "devices_per_replica": replica.devices,
        "memory_per_device": {
            "weights_bytes": replica.weights_bytes,
            "reserve_bytes": replica.reserve_bytes,
            "cache_bytes": replica.cache_bytes,
            "usable_bytes": replica.memory_bytes,
        },
        "cache": {
            "bytes_per_token": replica.layout.token_bytes,
            "block_tokens": replica.layout.block_tokens,
            "blocks": replica.layout.usable_blocks(replica.cache_bytes),
            "sequences_of_max_model_len": _finite(replica.sequences) if replica.known else None,
            "longest_sequence_tokens": replica.longest_tokens if replica.known else None,
            "longest_of_max_num_seqs_tokens": replica.concurrent_tokens if replica.known else None,
        },
        "fits": replica.fits,
        "changes_that_fit": [plain(fit) for fit in plan.fits],
    }


def devices_text(engine: EngineSpec, replica: ServingPlan) -> str:
    """What one replica runs on."""
    if replica.device == "cpu":
        return "CPU" if replica.devices == 1 else f"CPU, {replica.devices} workers"
    kind = engine.gpu or "GPU"
    if replica.devices == 1:
        return f"one {kind}"
    cut = f"tensor {engine.tensor_parallel_size} x pipeline {engine.pipeline_parallel_size}"
    return f"{replica.devices} x {kind} ({cut})"


def memory_text(replica: ServingPlan) -> str:
    """Weights, reserve and cache of one device, against what there is."""
    parts = [
        f"weights {size_text(replica.weights_bytes)}",
        f"step and processes {size_text(replica.reserve_bytes)}",
    ]
    if replica.known:
        parts.append(f"KV cache {size_text(replica.cache_bytes)}")
    has = "" if replica.memory_bytes is None else f", of {size_text(replica.memory_bytes)}"
    each = " a device" if replica.devices > 1 else ""
    return f"about {size_text(replica.total_bytes)}{each}{has}: {', '.join(parts)}"


def cache_lines(replica: ServingPlan) -> list[str]:
    """What a token takes, and how many sequences are held."""
    if not replica.layout.block_bytes:
        return ["none: each text is computed in one step"]
    layout = replica.layout
    other = layout.shape.other_layers
    left_out = f"; the state of {other} other layers is not counted" if other else ""
    taken = f"{size_text(layout.token_bytes)} a token{left_out}"
    if not replica.cache_bytes:
        return [taken]
    held = (
        f"holds {_count(replica.sequences)} sequences of {replica.sequence_tokens:,} tokens at "
        f"once, {replica.max_sequences} of {replica.concurrent_tokens:,}"
    )
    return [taken, held]


def node_text(replica: ServingPlan) -> str:
    """How many replicas a node holds."""
    if replica.device == "gpu":
        gpus = max(8, replica.devices)
        held = replica.replicas(gpus)
        return "not known" if held is None else f"one of {gpus} such GPUs holds {held} replicas"
    return f"one with this machine's memory holds {replica.replicas(0)} replicas"


def _count(sequences: float) -> str:
    return f"{sequences:.2f}" if sequences < 10 else f"{math.floor(sequences):,}"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
