"""Deployments that cannot come up: each says why, and leaves nothing running."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import ray
from ray import serve

from rayline.errors import ServingError
from rayline.models.tiny import write_tiny_model
from rayline.serving import deploy
from rayline.serving.versions import front
from rayline.spec import ServeSpec

pytestmark = [pytest.mark.serve, pytest.mark.timeout(150)]


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    yield
    ray.shutdown()


@pytest.fixture
def spec(tmp_path: Path) -> ServeSpec:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder = write_tiny_model(tmp_path / "model", layers=1)
    return ServeSpec.parse(
        {
            "name": "tiny",
            "model": {"directory": str(folder)},
            "gateway": {"port": port, "store": f"sqlite:///{tmp_path}/serving.db"},
            "drain_s": 1,
        }
    )


def test_a_port_that_another_program_holds_is_named_before_anything_starts(spec):
    with socket.socket() as other:
        other.bind(("127.0.0.1", spec.gateway.port))
        other.listen()
        began_s = time.monotonic()
        with pytest.raises(ServingError, match="another program listens there") as refused:
            deploy(spec)
    assert str(spec.gateway.port) in str(refused.value)
    assert time.monotonic() - began_s < 10
    assert front() is None


def test_an_engine_that_cannot_start_says_why_and_is_cleaned_up(spec):
    # More than any machine has, and vLLM finds that out in a process three below this one.
    with pytest.raises(ServingError) as refused:
        deploy(spec.changed({"engine.kv_cache_gib": 1_000_000}))
    said = str(refused.value)
    assert said.startswith(
        "tiny: version 1 did not come up. engine: vLLM did not start: ValueError: "
    )
    assert "less than requested memory for kv (1000000.0 GiB)" in said
    assert len(said.splitlines()) == 1
    assert front() is None
    names = [child.name() for child in psutil.Process().children(recursive=True)]
    assert not [name for name in names if name.startswith("VLLM")]
    assert not serve.status().applications
