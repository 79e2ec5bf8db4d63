"""What a ServeSpec means to Ray Serve and vLLM, as plain values: no Ray, no vLLM in here.

Both come with defaults made for other uses; each one that is set right here says what it does
otherwise (ray 2.60, vllm 0.32).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

from rayline.spec import ServeSpec

Device = Literal["cpu", "gpu"]
Options = dict[str, Any]
"""Keyword arguments of an upstream call, under its own names."""

HEALTH_CHECK_PERIOD_S = 3.0
"""Ray takes 10 s and three failures in a row: a dead engine stays in rotation for half a minute."""
SURGE_PERCENT = 25
"""Rounded up to whole replicas: at least one new one stands before an old one goes."""
GATEWAY_MAX_ONGOING_REQUESTS = 10_000
"""The gateway itself never makes a client wait: it has to take a request in order to refuse it in
OpenAI's shape. What limits it is the replicas' queue."""
RETRY_AFTER_S = 1.0
"""What a client that was refused for load is told to wait."""


def llm_config_fields(spec: ServeSpec, folder: Path, device: Device) -> Options:
    """The fields of ray.serve.llm's LLMConfig. `folder` holds the model on the replica's node.

    Called by each replica. Serve's own options are not in here: see `replica_options`.
    """
    return {
        "model_loading_config": {"model_id": spec.name, "model_source": str(folder)},
        # Without it the engine of a CPU deployment waits for a GPU for ever.
        "accelerator_config": {"kind": device},
        "engine_kwargs": engine_arguments(spec, device),
        "placement_group_config": {
            "bundles": replica_bundles(spec, device),
            "strategy": "STRICT_PACK",
        },
        # The default holds every token back for 50 ms, the first one too.
        "experimental_configs": {"stream_batching_interval_ms": 0},
        # By default a task on every node looks for something to download, which costs the start of
        # a Python with vLLM in it. The folder is already there.
        "callback_config": {"callback_class": "rayline.serving.engine.NothingToDownload"},
        "runtime_env": {"env_vars": environment(spec, device)},
    }


def engine_arguments(spec: ServeSpec, device: Device) -> Options:
    """vLLM's engine arguments."""
    engine = spec.engine
    arguments: Options = {
        "dtype": engine.dtype,
        "max_model_len": engine.max_model_len,
        "max_num_seqs": engine.max_num_seqs,
        "tensor_parallel_size": engine.tensor_parallel_size,
        "enforce_eager": engine.enforce_eager
        if engine.enforce_eager is not None
        else device == "cpu",
        "seed": engine.seed,
        # "auto" would fall back to pickled weights, which run code when they are read.
        "load_format": "safetensors",
        "trust_remote_code": False,
    }
    if device == "gpu":
        return {**arguments, "gpu_memory_utilization": engine.gpu_memory_utilization}
    if engine.dtype == "auto":
        # A model saved in bfloat16 would compute in it, and processors that only claim to have the
        # instructions (seen on virtual machines) die of SIGILL in the first attention.
        arguments["dtype"] = "float32"
    # In bytes here, because the environment variable that vLLM documents takes whole GiB only. Set,
    # it also spares the profiling run that would guess it.
    return {**arguments, "kv_cache_memory_bytes": int(engine.kv_cache_gib * 2**30)}


def environment(spec: ServeSpec, device: Device) -> dict[str, str]:
    """Environment variables of the replica and of the processes vLLM starts below it."""
    variables = {
        "VLLM_LOGGING_LEVEL": "WARNING",
        # vLLM reports home unless told not to.
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
    }
    if spec.model.hub is None:
        # The model is a folder: a file that it lacks must not be looked for on the network.
        variables["HF_HUB_OFFLINE"] = "1"
    if device == "cpu":
        # "auto" ties every replica of a node to the same first cores, and refuses tensor
        # parallelism on a machine with one NUMA node.
        variables["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
        # One CPU a worker is the scheduler's, as vLLM's own binding has it: threads that wait for
        # one another while one of them has no core took eight times as long.
        share = math.floor(spec.cpus_per_replica / spec.engine.tensor_parallel_size)
        variables["OMP_NUM_THREADS"] = str(max(1, share - 1))
    return variables


def replica_bundles(spec: ServeSpec, device: Device) -> list[dict[str, float]]:
    """Resources of one replica, one bundle a device; all of them must lie on one node."""
    if device == "cpu":
        return [{"CPU": spec.cpus_per_replica}]
    rest = [{"GPU": 1.0} for _ in range(spec.engine.tensor_parallel_size - 1)]
    return [{"CPU": spec.cpus_per_replica, "GPU": 1.0}, *rest]


def replica_options(spec: ServeSpec, device: Device) -> Options:
    """Ray Serve's options of the deployment that holds the engines."""
    return {
        "name": "replica",
        "ray_actor_options": {
            "num_cpus": spec.cpus_per_replica,
            "runtime_env": {"env_vars": environment(spec, device)},
        },
        "placement_group_bundles": replica_bundles(spec, device),
        "placement_group_strategy": "STRICT_PACK",
        # ray.serve.llm's own are 1e9 requests a replica: it would never scale.
        "autoscaling_config": {
            "min_replicas": spec.scale.min_replicas,
            "max_replicas": spec.scale.max_replicas,
            "target_ongoing_requests": spec.scale.target_ongoing_requests,
            "upscale_delay_s": spec.scale.upscale_delay_s,
            "downscale_delay_s": spec.scale.downscale_delay_s,
        },
        "max_ongoing_requests": spec.max_ongoing_requests,
        # Unbounded by default: under overload everybody waits, and nobody is answered in time.
        "max_queued_requests": spec.max_queued_requests,
        "backpressure_config": {"status_code": 503, "retry_after_s": RETRY_AFTER_S},
        # By default 20 s, which cuts long streams.
        "graceful_shutdown_timeout_s": spec.drain_s,
        "health_check_period_s": HEALTH_CHECK_PERIOD_S,
        # The replica judges its engine by health_timeout_s itself; this is for a replica that
        # does not answer at all.
        "health_check_timeout_s": spec.health_timeout_s + HEALTH_CHECK_PERIOD_S,
        # The default 0 stops an old replica before its successor has started.
        "max_surge_percent": SURGE_PERCENT,
        # Three tries a replica by default, each as long as a start, for what mostly fails alike.
        "max_constructor_retry_count": spec.scale.min_replicas,
    }


def gateway_options(spec: ServeSpec) -> Options:
    """Ray Serve's options of the deployment that HTTP reaches."""
    return {
        "name": "gateway",
        "num_replicas": spec.gateway.replicas,
        # It only passes text on: holding a CPU, it would take one from the engine.
        "ray_actor_options": {"num_cpus": 0},
        "max_ongoing_requests": GATEWAY_MAX_ONGOING_REQUESTS,
        "graceful_shutdown_timeout_s": spec.drain_s,
        "max_surge_percent": SURGE_PERCENT,
    }
