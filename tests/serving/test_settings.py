"""What a ServeSpec becomes for vLLM and Ray Serve, without either."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayline.errors import SpecError
from rayline.planner import Quantization
from rayline.serving.settings import (
    engine_arguments,
    environment,
    frontend_arguments,
    gateway_options,
    llm_config_fields,
    placement_strategy,
    replica_bundles,
    replica_options,
    transfer_environment,
)
from rayline.spec import GatewaySpec, ServeSpec

FOLDER = Path("/models/tiny")


def spec(**changes: object) -> ServeSpec:
    return ServeSpec.parse({"name": "bot", "model": {"directory": str(FOLDER)}, **changes})


def test_clients_see_the_deployments_name_and_the_engine_sees_the_folder():
    loading = llm_config_fields(spec(), FOLDER, "cpu")["model_loading_config"]
    assert loading == {"model_id": "bot", "model_source": "/models/tiny"}


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_the_first_token_is_not_held_back(device):
    fields = llm_config_fields(spec(), FOLDER, device)
    assert fields["experimental_configs"] == {"stream_batching_interval_ms": 0}
    assert fields["accelerator_config"] == {"kind": device}


@pytest.mark.parametrize(
    ("asked", "device", "given_to_vllm"),
    [
        ("auto", "cpu", "float32"),
        ("bfloat16", "cpu", "bfloat16"),
        ("auto", "gpu", "auto"),
        ("float16", "gpu", "float16"),
    ],
)
def test_auto_dtype_is_float32_on_cpu_only(asked, device, given_to_vllm):
    assert engine_arguments(spec(engine={"dtype": asked}), device)["dtype"] == given_to_vllm


@pytest.mark.parametrize(
    ("asked", "device", "eager"),
    [(None, "cpu", True), (None, "gpu", False), (False, "cpu", False), (True, "gpu", True)],
)
def test_graphs_are_compiled_on_gpus_unless_said_otherwise(asked, device, eager):
    arguments = engine_arguments(spec(engine={"enforce_eager": asked}), device)
    assert arguments["enforce_eager"] is eager


def test_each_device_gets_its_own_bound_on_memory():
    half = spec(engine={"kv_cache_gib": 0.5, "gpu_memory_utilization": 0.7})
    on_cpu, on_gpu = engine_arguments(half, "cpu"), engine_arguments(half, "gpu")
    assert on_cpu["kv_cache_memory_bytes"] == 2**29
    assert "gpu_memory_utilization" not in on_cpu
    assert on_gpu["gpu_memory_utilization"] == 0.7
    assert "kv_cache_memory_bytes" not in on_gpu


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_no_weights_that_run_code_and_nothing_that_fetches_pictures(device):
    arguments = engine_arguments(spec(), device)
    assert arguments["load_format"] == "safetensors"
    assert arguments["trust_remote_code"] is False
    assert arguments["language_model_only"] is True


def test_what_the_spec_leaves_open_vllm_chooses():
    arguments = engine_arguments(spec(), "gpu")
    left_out = {"max_num_batched_tokens", "block_size", "quantization", "enable_lora"}
    left_out |= {"speculative_config", "kv_transfer_config", "reasoning_parser", "cpu_offload_gb"}
    assert left_out.isdisjoint(arguments)


def test_what_the_spec_says_reaches_vllm_under_its_name():
    arguments = engine_arguments(
        spec(
            engine={
                "max_num_batched_tokens": 4096,
                "block_size": 32,
                "kv_cache_dtype": "fp8",
                "enable_prefix_caching": False,
                "stream_interval": 4,
                "cpu_offload_gib": 2,
                "kv_offload_gib": 8,
                "pipeline_parallel_size": 2,
                "structured_outputs": "guidance",
                "reasoning_parser": "qwen3",
                "quantization": "fp8_per_tensor",
            }
        ),
        "gpu",
    )
    assert arguments["max_num_batched_tokens"] == 4096
    assert arguments["block_size"] == 32
    assert arguments["kv_cache_dtype"] == "fp8"
    assert arguments["enable_prefix_caching"] is False
    assert arguments["stream_interval"] == 4
    assert (arguments["cpu_offload_gb"], arguments["kv_offloading_size"]) == (2, 8)
    assert arguments["pipeline_parallel_size"] == 2
    assert arguments["structured_outputs_config"] == {"backend": "guidance"}
    assert arguments["reasoning_parser"] == "qwen3"
    assert arguments["quantization"] == "fp8_per_tensor"


@pytest.mark.parametrize(
    ("task", "given_to_vllm"),
    [
        ("generate", {"runner": "generate"}),
        ("embed", {"runner": "pooling", "convert": "embed"}),
        ("score", {"runner": "pooling"}),
    ],
)
def test_a_task_is_a_runner(task, given_to_vllm):
    arguments = engine_arguments(spec(engine={"task": task}), "cpu")
    assert given_to_vllm.items() <= arguments.items()
    assert ("structured_outputs_config" in arguments) is (task == "generate")


@pytest.mark.parametrize(
    ("speculation", "config"),
    [
        (
            {"method": "ngram", "tokens": 3},
            {"method": "ngram", "prompt_lookup_min": 2, "prompt_lookup_max": 4},
        ),
        ({"method": "draft", "model": {"hub": "a/b"}, "tokens": 3}, {"method": "draft_model"}),
        ({"method": "eagle", "model": {"hub": "a/b"}, "tokens": 3}, {"method": "eagle"}),
        ({"method": "medusa", "model": {"hub": "a/b"}, "tokens": 3}, {"method": "medusa"}),
    ],
)
def test_three_lines_speculate(speculation, config):
    draft = Path("/models/draft") if "model" in speculation else None
    arguments = engine_arguments(spec(engine={"speculation": speculation}), "gpu", draft=draft)
    expected = {**config, "num_speculative_tokens": 3}
    if draft is not None:
        expected["model"] = str(draft)
    assert arguments["speculative_config"] == expected


def test_adapters_get_places_when_some_are_listed_or_allowed():
    listed = {"adapters": [{"name": "a", "source": {"directory": "adapters/a"}}]}
    arguments = engine_arguments(spec(engine={**listed, "max_adapters": 5}), "cpu")
    assert arguments["enable_lora"] is True
    assert arguments["max_loras"] == arguments["max_cpu_loras"] == 5
    assert arguments["max_lora_rank"] == 16
    assert engine_arguments(spec(engine=listed), "cpu")["max_loras"] == 1
    assert "enable_lora" not in engine_arguments(spec(), "cpu")


@pytest.mark.parametrize(
    ("role", "kv_role"), [("prefill", "kv_producer"), ("decode", "kv_consumer")]
)
def test_each_half_of_a_split_knows_its_role(role, kv_role):
    split = spec(engine={"split": {}})
    for device, lie_in in (("gpu", "cuda"), ("cpu", "cpu")):
        transfer = engine_arguments(split, device, role=role)["kv_transfer_config"]
        assert (transfer["kv_role"], transfer["kv_buffer_device"]) == (kv_role, lie_in)
        assert transfer["kv_load_failure_policy"] == "recompute"
    assert "kv_transfer_config" not in engine_arguments(spec(), "gpu")


def test_pages_leave_a_machine_only_where_there_is_another():
    assert transfer_environment("127.0.0.1", 5)["UCX_NET_DEVICES"] == "lo"
    assert transfer_environment("10.0.0.7", 5) == {
        "VLLM_NIXL_SIDE_CHANNEL_HOST": "10.0.0.7",
        "VLLM_NIXL_SIDE_CHANNEL_PORT": "5",
    }


def test_tools_are_chosen_by_the_model_where_their_calls_can_be_read():
    assert frontend_arguments(spec().engine) == {}
    hermes = spec(engine={"tool_call_parser": "hermes"})
    assert frontend_arguments(hermes.engine) == {
        "enable_auto_tool_choice": True,
        "tool_call_parser": "hermes",
    }
    fields = llm_config_fields(hermes, FOLDER, "cpu")
    assert fields["engine_kwargs"]["tool_call_parser"] == "hermes"


@pytest.mark.parametrize(
    ("device", "asked", "dtype"),
    [("cpu", "auto", "bfloat16"), ("gpu", "float16", "float16"), ("gpu", "auto", "auto")],
)
def test_quantized_weights_are_not_computed_with_in_float32(device, asked, dtype):
    wanted = spec(engine={"dtype": asked})
    gptq = Quantization("gptq", 4.5)
    assert engine_arguments(wanted, device, quantization=gptq)["dtype"] == dtype


def test_a_quantization_that_is_not_the_checkpoints_is_refused():
    with pytest.raises(SpecError, match="quantized already, by gptq"):
        engine_arguments(
            spec(engine={"quantization": "awq"}), "gpu", quantization=Quantization("gptq", 4.5)
        )


def test_what_the_device_cannot_do_is_refused():
    with pytest.raises(SpecError, match="leave a GPU's cache"):
        engine_arguments(spec(engine={"kv_offload_gib": 1}), "cpu")


@given(
    cpus=st.floats(min_value=0.25, max_value=64),
    tensor=st.integers(min_value=1, max_value=8),
    pipeline=st.integers(min_value=1, max_value=4),
)
def test_a_replica_on_gpus_takes_one_bundle_a_gpu_and_its_cpus_once(cpus, tensor, pipeline):
    sizes = {"tensor_parallel_size": tensor, "pipeline_parallel_size": pipeline}
    wanted = spec(cpus_per_replica=cpus, engine=sizes)
    bundles = replica_bundles(wanted, "gpu")
    assert [bundle["GPU"] for bundle in bundles] == [1.0] * tensor * pipeline
    assert sum(bundle.get("CPU", 0) for bundle in bundles) == cpus
    assert replica_bundles(wanted, "cpu") == [{"CPU": cpus}]


def test_a_kind_of_gpu_is_asked_for_in_every_bundle():
    wanted = spec(engine={"gpu": "H100", "tensor_parallel_size": 2})
    assert [bundle["accelerator_type:H100"] for bundle in replica_bundles(wanted, "gpu")] == [
        0.001,
        0.001,
    ]


def test_stages_span_nodes_only_where_the_spec_says_so():
    assert placement_strategy(spec(engine={"pipeline_parallel_size": 2})) == "STRICT_PACK"
    spanning = spec(engine={"pipeline_parallel_size": 2, "span_nodes": True})
    assert placement_strategy(spanning) == "PACK"
    assert (
        llm_config_fields(spanning, FOLDER, "gpu")["placement_group_config"]["strategy"] == "PACK"
    )


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_the_actor_fits_into_the_first_bundle_of_its_group(device):
    options = replica_options(spec(cpus_per_replica=2.5), device)
    actor_cpus = options["ray_actor_options"]["num_cpus"]
    assert actor_cpus == options["placement_group_bundles"][0]["CPU"] == 2.5
    assert options["placement_group_strategy"] == "STRICT_PACK"


@pytest.mark.parametrize(
    ("cpus", "tensor", "threads"), [(0.5, 1, "1"), (2, 1, "1"), (4, 1, "3"), (7, 2, "2")]
)
def test_the_engine_leaves_a_cpu_to_its_scheduler(cpus, tensor, threads):
    variables = environment(
        spec(cpus_per_replica=cpus, engine={"tensor_parallel_size": tensor}), "cpu"
    )
    assert variables["OMP_NUM_THREADS"] == threads
    assert variables["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"
    assert "OMP_NUM_THREADS" not in environment(spec(), "gpu")


def test_nothing_reports_home_and_only_hub_models_may_reach_the_hub():
    local = environment(spec(), "cpu")
    assert local["VLLM_NO_USAGE_STATS"] == "1"
    assert local["HF_HUB_OFFLINE"] == "1"
    assert "HF_HUB_OFFLINE" not in environment(spec(model={"hub": "org/name"}), "cpu")
    drafted = {"speculation": {"method": "draft", "model": {"hub": "org/small"}}}
    assert "HF_HUB_OFFLINE" not in environment(spec(engine=drafted), "cpu")


def test_guidance_is_given_tools_in_words_that_it_knows():
    held = environment(spec(engine={"structured_outputs": "guidance"}), "cpu")
    assert held["VLLM_ENFORCE_STRICT_TOOL_CALLING"] == "0"
    assert "VLLM_ENFORCE_STRICT_TOOL_CALLING" not in environment(spec(), "cpu")


def test_serve_starts_drains_and_judges_as_the_spec_says():
    wanted = spec(scale={"min_replicas": 2, "max_replicas": 5}, drain_s=13, health_timeout_s=20)
    options = replica_options(wanted, "cpu")
    assert options["num_replicas"] == 2
    # Ending the engine's processes comes after the last answer.
    assert options["graceful_shutdown_timeout_s"] > 13
    assert options["max_surge_percent"] > 0
    # Serve must not give up on a health check before the replica has judged its engine.
    assert options["health_check_timeout_s"] > 20


def test_the_gateway_takes_no_cpu_from_the_engines_and_drains():
    options = gateway_options(GatewaySpec(replicas=3, drain_s=90))
    assert options["ray_actor_options"] == {"num_cpus": 0}
    assert options["num_replicas"] == 3
    assert options["graceful_shutdown_timeout_s"] > 90
