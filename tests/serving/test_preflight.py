"""Ports, room and the KV cache, before anything is started."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayline.errors import PlacementError, ServingError, SpecError
from rayline.serving.preflight import check_cache, check_port, check_room, gpu_kind, missing_now
from rayline.spec import ServeSpec


@pytest.mark.parametrize("reuse", [False, True])
def test_a_port_that_somebody_holds_is_refused_with_a_free_one(reuse):
    with socket.socket() as other:
        # Ray's own proxies share ports: two clusters would each get half of the requests.
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, int(reuse))
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ServingError) as refused:
            check_port("127.0.0.1", port, None)
    assert f"127.0.0.1:{port}" in str(refused.value)
    assert "--set gateway.port=" in refused.value.fix
    assert refused.value.exit_code == 6


def test_a_free_port_passes():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    assert check_port("127.0.0.1", port, None) is None


def test_an_address_of_another_machine_is_refused():
    with pytest.raises(ServingError, match="not an address of the cluster's head node"):
        check_port("203.0.113.7", 8000, None)


@pytest.mark.parametrize(
    ("host", "port", "own", "passes"),
    [
        ("127.0.0.1", 8000, ("127.0.0.1", 8000), True),
        ("127.0.0.1", 8000, ("0.0.0.0", 8000), True),
        ("127.0.0.1", 8001, ("127.0.0.1", 8000), False),
        ("0.0.0.0", 8000, ("127.0.0.1", 8000), False),
    ],
)
def test_a_serve_that_runs_keeps_its_address(host, port, own, passes):
    if passes:
        assert check_port(host, port, own) is None
        return
    with pytest.raises(ServingError, match=f"listens on {own[0]}:{own[1]}"):
        check_port(host, port, own)


def test_what_no_node_holds_is_refused_with_both_figures():
    nodes = [{"CPU": 8, "GPU": 4}, {"CPU": 8, "GPU": 2}]
    with pytest.raises(PlacementError) as refused:
        check_room([{"CPU": 1, "GPU": 1}, *[{"GPU": 1}] * 7], 1, nodes)
    assert "8 GPU" in str(refused.value)
    assert "4 GPU" in str(refused.value)
    assert refused.value.exit_code == 3


def test_a_replica_is_not_spread_over_nodes():
    with pytest.raises(PlacementError, match="holds 2"):
        check_room([{"CPU": 3}], 3, [{"CPU": 4}, {"CPU": 5}])


@given(
    cpus=st.integers(min_value=1, max_value=8),
    replicas=st.integers(min_value=1, max_value=8),
    nodes=st.lists(st.integers(min_value=0, max_value=32), max_size=5),
)
def test_room_is_what_whole_replicas_take_on_each_node(cpus, replicas, nodes):
    fits = sum(node // cpus for node in nodes) >= replicas
    try:
        check_room([{"CPU": cpus}], replicas, [{"CPU": node} for node in nodes])
    except PlacementError:
        assert not fits
    else:
        assert fits


def test_what_is_taken_just_now_is_named():
    assert missing_now([{"CPU": 1}], 2, {"CPU": 2}) == ""
    assert missing_now([{"CPU": 1}], 2, {"CPU": 1}) == "2 CPU wanted, 1 CPU free"
    assert missing_now([{"CPU": 1, "GPU": 1}], 1, {"CPU": 4}) == "1 GPU wanted, 0 GPU free"


CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "num_hidden_layers": 32,
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "dtype": "bfloat16",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    return tmp_path


def serving(folder: Path, **engine: object) -> ServeSpec:
    return ServeSpec.parse({"name": "bot", "model": {"directory": str(folder)}, "engine": engine})


def test_a_cache_for_less_than_one_sequence_is_refused_with_both_figures_and_what_fits(folder):
    with pytest.raises(SpecError) as refused:
        check_cache(serving(folder, max_model_len=8192, kv_cache_gib=1), "cpu", [])
    told = str(refused.value)
    # 256 KiB a token in float32.
    assert "one sequence of it takes 2 GiB of KV cache, and a replica has 1 GiB" in told
    assert "up to 3968" in refused.value.allowed
    assert "--set engine.kv_cache_gib=2.25" in refused.value.fix
    assert refused.value.subject == "engine.max_model_len"
    check_cache(serving(folder, max_model_len=8192, kv_cache_gib=2.25), "cpu", [])


@pytest.mark.parametrize(
    ("nodes", "tokens", "refused"),
    [
        ([{"GPU": 8, "accelerator_type:L4": 1}], 65536, True),
        ([{"GPU": 8, "accelerator_type:L4": 1}], 4096, False),
        ([{"GPU": 8, "accelerator_type:H100": 1}], 65536, False),
        (
            [{"GPU": 1, "accelerator_type:H100": 1}, {"GPU": 1, "accelerator_type:L4": 1}],
            65536,
            True,
        ),
        ([{"GPU": 8, "accelerator_type:unheard-of": 1}], 131072, False),
        ([{"GPU": 8}], 131072, False),
    ],
)
def test_a_gpus_cache_is_refused_where_its_memory_is_known(folder, nodes, tokens, refused):
    spec = serving(folder, max_model_len=tokens)
    if not refused:
        check_cache(spec, "gpu", nodes)
        return
    with pytest.raises(SpecError, match="of KV cache"):
        check_cache(spec, "gpu", nodes)


def test_an_estimate_that_may_be_wrong_refuses_nothing(folder):
    # 1.6 GiB are estimated to be left of an L4; one sequence takes 2.
    check_cache(serving(folder, max_model_len=24576), "gpu", [{"GPU": 1, "accelerator_type:L4": 1}])


def test_what_no_device_could_do_with_the_model_is_refused(folder):
    with pytest.raises(SpecError, match="does not divide the model's 32 attention heads"):
        check_cache(serving(folder, tensor_parallel_size=3), "gpu", [{"GPU": 8}])


def test_a_model_that_is_elsewhere_or_no_transformer_is_left_to_vllm(tmp_path):
    check_cache(ServeSpec.parse({"name": "bot", "model": {"hub": "a/b"}}), "cpu", [])
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mamba"}))
    check_cache(serving(tmp_path, kv_cache_gib=0.001), "cpu", [])


def test_the_kind_of_gpu_is_the_smallest_that_is_known():
    h100, l4 = {"GPU": 1, "accelerator_type:H100": 1}, {"GPU": 1, "accelerator_type:L4": 1}
    assert gpu_kind([h100, l4, {"CPU": 4}]) == "L4"
    assert gpu_kind([h100, {"GPU": 1, "accelerator_type:unheard-of": 1}]) is None
    assert gpu_kind([{"CPU": 4, "accelerator_type:L4": 1}]) is None
