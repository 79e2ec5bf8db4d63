"""What a ServeSpec becomes for vLLM and Ray Serve, without either."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayline.serving.settings import (
    engine_arguments,
    environment,
    gateway_options,
    llm_config_fields,
    replica_bundles,
    replica_options,
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
def test_no_weights_that_run_code(device):
    arguments = engine_arguments(spec(), device)
    assert arguments["load_format"] == "safetensors"
    assert arguments["trust_remote_code"] is False


@given(
    cpus=st.floats(min_value=0.25, max_value=64),
    tensor=st.integers(min_value=1, max_value=8),
)
def test_a_replica_on_gpus_takes_one_bundle_a_gpu_and_its_cpus_once(cpus, tensor):
    wanted = spec(cpus_per_replica=cpus, engine={"tensor_parallel_size": tensor})
    bundles = replica_bundles(wanted, "gpu")
    assert [bundle["GPU"] for bundle in bundles] == [1.0] * tensor
    assert sum(bundle.get("CPU", 0) for bundle in bundles) == cpus
    assert replica_bundles(wanted, "cpu") == [{"CPU": cpus}]


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
