"""Ports and room, before anything is started."""

from __future__ import annotations

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayline.errors import PlacementError, ServingError
from rayline.serving.preflight import check_port, check_room, missing_now


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
