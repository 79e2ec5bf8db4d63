"""What a ServeSpec means to Ray Serve and vLLM, as plain values: no Ray, no vLLM in here.

Both come with defaults made for other uses; each one that is set right here says what it does
otherwise (ray 2.60, vllm 0.32).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from rayline.planner import KIND_RESOURCE, Quantization, check_quantization
from rayline.spec import Device, EngineSpec, GatewaySpec, Role, ServeSpec, SpeculationSpec

Options = dict[str, Any]
"""Keyword arguments of an upstream call, under its own names."""

HEALTH_CHECK_PERIOD_S = 3.0
"""Ray takes 10 s and three failures in a row: a dead engine stays in rotation for half a minute."""
SURGE_PERCENT = 25
"""Rounded up to whole replicas: at least one new one stands before an old one goes."""
LOOPBACK = "127.0.0.1"
"""Where replicas listen on a cluster of one node."""
APP = "rayline"
"""Serve application of what stands before every model."""
GATEWAY = "gateway"
DIRECTOR = "director"
REPLICA = "replica"
PREFILL = "prefill"
"""Deployment of the replicas that compute prompts, where engine.split parts them."""
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


def llm_config_fields(
    spec: ServeSpec,
    folder: Path,
    device: Device,
    *,
    quantization: Quantization | None = None,
    draft: Path | None = None,
    role: Role | None = None,
) -> Options:
    """The fields of ray.serve.llm's LLMConfig. `folder` holds the model on the replica's node; for
    the rest see `engine_arguments`.

    Called by each replica. Serve's own options are not in here: see `replica_options`.
    """
    arguments = engine_arguments(spec, device, quantization=quantization, draft=draft, role=role)
    return {
        "model_loading_config": {"model_id": spec.name, "model_source": str(folder)},
        # Without it the engine of a CPU deployment waits for a GPU for ever.
        "accelerator_config": {"kind": device},
        "engine_kwargs": {**arguments, **frontend_arguments(spec.engine)},
        "placement_group_config": {
            "bundles": replica_bundles(spec, device),
            "strategy": placement_strategy(spec),
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


def engine_arguments(
    spec: ServeSpec,
    device: Device,
    *,
    quantization: Quantization | None = None,
    draft: Path | None = None,
    role: Role | None = None,
) -> Options:
    """vLLM's engine arguments (AsyncEngineArgs), but for the model's folder.

    `quantization` is what the checkpoint's config says, None for a plain one; `draft` holds
    speculation.model on the replica's node; `role` is the replica's where engine.split is given.
    Raises SpecError where the device or the checkpoint cannot do what the spec asks.
    """
    engine = spec.engine
    engine.check_device(device)
    check_quantization(engine, quantization, device)
    return {
        "dtype": _dtype(engine, device, quantized=quantization is not None),
        "max_model_len": engine.max_model_len,
        "max_num_seqs": engine.max_num_seqs,
        "tensor_parallel_size": engine.tensor_parallel_size,
        "pipeline_parallel_size": engine.pipeline_parallel_size,
        "enforce_eager": engine.enforce_eager
        if engine.enforce_eager is not None
        else device == "cpu",
        "seed": engine.seed,
        "stream_interval": engine.stream_interval,
        "enable_prefix_caching": engine.enable_prefix_caching,
        "kv_cache_dtype": engine.kv_cache_dtype,
        # "auto" would fall back to pickled weights, which run code when they are read.
        "load_format": "safetensors",
        "trust_remote_code": False,
        # Text alone is served: what fetches and decodes pictures is never set up.
        "language_model_only": True,
        **_given(
            quantization=engine.quantization,
            max_num_batched_tokens=engine.max_num_batched_tokens,
            block_size=engine.block_size,
        ),
        **_task_arguments(engine),
        **_memory_arguments(engine, device),
        **_adapter_arguments(engine),
        **({} if engine.speculation is None else _speculation(engine.speculation, draft)),
        **({} if role is None else {"kv_transfer_config": _transfer(role, device)}),
    }


def frontend_arguments(engine: EngineSpec) -> Options:
    """Arguments of vLLM's OpenAI layer (FrontendArgs)."""
    if engine.tool_call_parser is None:
        return {}
    return {"enable_auto_tool_choice": True, "tool_call_parser": engine.tool_call_parser}


def _given(**arguments: object) -> Options:
    """Those that are not None: vLLM has a choice of its own for the others."""
    return {name: value for name, value in arguments.items() if value is not None}


def _dtype(engine: EngineSpec, device: Device, *, quantized: bool) -> str:
    if engine.dtype != "auto" or device == "gpu":
        return engine.dtype
    # A model saved in bfloat16 would compute in it, and processors that only claim to have the
    # instructions (seen on virtual machines) die of SIGILL in the first attention. The kernels for
    # quantized weights take no float32.
    online = engine.quantization is not None
    return "bfloat16" if quantized or online else "float32"


def _task_arguments(engine: EngineSpec) -> Options:
    if engine.task == "generate":
        return {
            "runner": "generate",
            "structured_outputs_config": {"backend": engine.structured_outputs},
            **_given(reasoning_parser=engine.reasoning_parser),
        }
    # A model made for generating gives vectors, too; one that classifies keeps its head.
    convert = {"convert": "embed"} if engine.task == "embed" else {}
    return {"runner": "pooling", **convert}


def _memory_arguments(engine: EngineSpec, device: Device) -> Options:
    if device == "cpu":
        # In bytes here, because the environment variable that vLLM documents takes whole GiB only.
        # Set, it also spares the profiling run that would guess it.
        return {"kv_cache_memory_bytes": int(engine.kv_cache_gib * 2**30)}
    return {
        "gpu_memory_utilization": engine.gpu_memory_utilization,
        **_given(
            cpu_offload_gb=engine.cpu_offload_gib or None,
            kv_offloading_size=engine.kv_offload_gib or None,
        ),
    }


def _adapter_arguments(engine: EngineSpec) -> Options:
    """Every adapter has a place on the device: none is read from a file while a client waits."""
    if not engine.adapter_places:
        return {}
    return {
        "enable_lora": True,
        "max_loras": engine.adapter_places,
        "max_cpu_loras": engine.adapter_places,
        "max_lora_rank": engine.max_lora_rank,
    }


_VLLM_METHODS = {"draft": "draft_model"}
"""What vLLM calls a method otherwise than the spec."""


def _speculation(speculation: SpeculationSpec, draft: Path | None) -> Options:
    method = speculation.method
    config: Options = {
        "method": _VLLM_METHODS.get(method, method),
        "num_speculative_tokens": speculation.tokens,
        **_given(model=None if draft is None else str(draft)),
    }
    if method == "ngram":
        config["prompt_lookup_min"] = 2
        config["prompt_lookup_max"] = speculation.ngram_tokens
    return {"speculative_config": config}


def _transfer(role: Role, device: Device) -> Options:
    """How pages travel from the replica that computed a prompt to the one that answers it."""
    return {
        "kv_connector": "NixlConnector",
        "kv_role": "kv_producer" if role == "prefill" else "kv_consumer",
        # Where the pages lie, and are sent from and to.
        "kv_buffer_device": "cpu" if device == "cpu" else "cuda",
        # By default a request whose pages were lost fails; computed again it is only slower.
        "kv_load_failure_policy": "recompute",
    }


def environment(spec: ServeSpec, device: Device) -> dict[str, str]:
    """Environment variables of the replica and of the processes vLLM starts below it."""
    variables = {
        "VLLM_LOGGING_LEVEL": "WARNING",
        # vLLM reports home unless told not to.
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
    }
    if spec.engine.structured_outputs == "guidance":
        # What vLLM makes of tools by default only xgrammar can read. Without it, guidance is given
        # the schema of the tool that must be called.
        variables["VLLM_ENFORCE_STRICT_TOOL_CALLING"] = "0"
    speculation = spec.engine.speculation
    models = [spec.model, speculation.model if speculation is not None else None]
    if all(model is None or model.hub is None for model in models):
        # The models are folders: a file that one lacks must not be looked for on the network.
        variables["HF_HUB_OFFLINE"] = "1"
    if device == "cpu":
        # "auto" ties every replica of a node to the same first cores, and refuses tensor
        # parallelism on a machine with one NUMA node.
        variables["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
        # One CPU a worker is the scheduler's, as vLLM's own binding has it: threads that wait for
        # one another while one of them has no core took eight times as long.
        share = math.floor(spec.cpus_per_replica / spec.engine.devices)
        variables["OMP_NUM_THREADS"] = str(max(1, share - 1))
    return variables


def transfer_environment(host: str, port: int) -> dict[str, str]:
    """Environment variables of one replica where engine.split is given. Others ask it at `host` and
    `port` where its pages are; vLLM's own port is the same for every replica of a node."""
    variables = {"VLLM_NIXL_SIDE_CHANNEL_HOST": host, "VLLM_NIXL_SIDE_CHANNEL_PORT": str(port)}
    if host == LOOPBACK:
        # UCX, which carries the pages, listens on every network otherwise.
        variables["UCX_NET_DEVICES"] = "lo"
    return variables


def replica_bundles(spec: ServeSpec, device: Device) -> list[dict[str, float]]:
    """Resources of one replica, one bundle a GPU, as vLLM's Ray executor wants them; the actor lies
    in the first. Stage by stage, so that packing keeps a tensor group together."""
    if device == "cpu":
        return [{"CPU": spec.cpus_per_replica}]
    # A trace of the resource by which Ray knows nodes with this kind of GPU.
    kind = {} if spec.engine.gpu is None else {f"{KIND_RESOURCE}{spec.engine.gpu}": 0.001}
    rest = [{"GPU": 1.0, **kind} for _ in range(spec.engine.devices - 1)]
    return [{"CPU": spec.cpus_per_replica, "GPU": 1.0, **kind}, *rest]


def placement_strategy(spec: ServeSpec) -> str:
    """STRICT_PACK: one node or none. PACK: as few nodes as may be, for stages that span them."""
    return "PACK" if spec.engine.span_nodes else "STRICT_PACK"


def replica_options(spec: ServeSpec, device: Device) -> Options:
    """Ray Serve's options of the deployment that holds the engines."""
    return {
        "name": REPLICA,
        "ray_actor_options": {
            "num_cpus": spec.cpus_per_replica,
            "runtime_env": {"env_vars": environment(spec, device)},
        },
        "placement_group_bundles": replica_bundles(spec, device),
        "placement_group_strategy": placement_strategy(spec),
        "num_replicas": max(1, spec.scale.min_replicas),
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
        "graceful_shutdown_timeout_s": spec.notice_s + spec.drain_s + _STOP_S,
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
