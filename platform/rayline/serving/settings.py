"""What a ServeSpec means to Ray Serve and vLLM, as plain values: no Ray, no vLLM in here.

Both come with defaults made for other uses; each one that is set right here says what it does
otherwise (ray 2.60, vllm 0.32).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

from rayline.spec import GatewaySpec, ServeSpec

Device = Literal["cpu", "gpu"]
Options = dict[str, Any]
"""Keyword arguments of an upstream call, under its own names."""

HEALTH_CHECK_PERIOD_S = 3.0
"""Ray takes 10 s and three failures in a row: a dead engine stays in rotation for half a minute."""
SURGE_PERCENT = 25
"""Rounded up to whole replicas: at least one new one stands before an old one goes."""
APP = "rayline"
"""Serve application of what stands before every model."""
GATEWAY = "gateway"
DIRECTOR = "director"
REPLICA = "replica"
_STOP_S = 10.0
"""What ending the processes of an engine may take, after the last answer."""
_CALLS = 10_000
"""Calls from the cluster's own actors, such as reports, that one actor takes at once. No client's
request is among them."""
_QUIET = {"enable_access_log": False}
"""Serve logs every call: here twice a second for nothing. Requests have a log of the gateway's."""
CONTROLLER_ENVIRONMENT = {
    # Ten times a second by default, which takes 6 % of a core from the engine for nothing.
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.4",
}
"""Of Serve's own controller."""


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
        "callback_config": {
            "callback_class": "rayline.serving.replica.vllm_engine.NothingToDownload"
        },
        # Its own way sends every metric through Ray's agent; vLLM's keeps them in the process.
        "log_engine_metrics": False,
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
        "name": REPLICA,
        "ray_actor_options": {
            "num_cpus": spec.cpus_per_replica,
            "runtime_env": {"env_vars": environment(spec, device)},
        },
        "placement_group_bundles": replica_bundles(spec, device),
        "placement_group_strategy": "STRICT_PACK",
        "num_replicas": spec.scale.min_replicas,
        "max_ongoing_requests": _CALLS,
        "logging_config": _QUIET,
        # By default 20 s, which cuts long streams.
        "graceful_shutdown_timeout_s": spec.drain_s + _STOP_S,
        "health_check_period_s": HEALTH_CHECK_PERIOD_S,
        # The replica judges its engine by health_timeout_s itself; this is for a replica that
        # does not answer at all.
        "health_check_timeout_s": spec.health_timeout_s + HEALTH_CHECK_PERIOD_S,
        # The default 0 stops an old replica before its successor has started.
        "max_surge_percent": SURGE_PERCENT,
        # Three tries a replica by default, each as long as a start, for what mostly fails alike.
        "max_constructor_retry_count": max(1, spec.scale.min_replicas),
    }


def gateway_options(spec: GatewaySpec) -> Options:
    """Ray Serve's options of the deployment that HTTP reaches."""
    return {
        "name": GATEWAY,
        "num_replicas": spec.replicas,
        # It only passes text on: holding a CPU, it would take one from the engine.
        "ray_actor_options": {"num_cpus": 0},
        "max_ongoing_requests": _CALLS,
        "logging_config": _QUIET,
        "graceful_shutdown_timeout_s": spec.drain_s + _STOP_S,
        "health_check_period_s": HEALTH_CHECK_PERIOD_S,
        "max_surge_percent": SURGE_PERCENT,
    }


def director_options() -> Options:
    """Ray Serve's options of the deployment that knows the fleet."""
    return {
        "name": DIRECTOR,
        "num_replicas": 1,
        "ray_actor_options": {"num_cpus": 0},
        "max_ongoing_requests": _CALLS,
        "logging_config": _QUIET,
        "graceful_shutdown_timeout_s": 1,
        "health_check_period_s": HEALTH_CHECK_PERIOD_S,
    }
