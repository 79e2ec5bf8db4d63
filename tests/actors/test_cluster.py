"""What is read of a cluster's state, from Ray itself."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rayline.actors import cluster
from rayline.errors import SpecError

pytestmark = pytest.mark.ray

AUTOSCALING = """
cluster_name: growing
max_workers: 1
upscaling_speed: 1.0
idle_timeout_minutes: 5
provider:
  type: external
  module: ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider
available_node_types:
  head: {resources: {CPU: 1}, node_config: {}, min_workers: 0, max_workers: 0}
  large: {resources: {CPU: 8, GPU: 4}, node_config: {}, min_workers: 0, max_workers: 1}
head_node_type: head
docker: {}
auth: {}
file_mounts: {}
cluster_synced_files: []
file_mounts_sync_continuously: false
rsync_exclude: []
rsync_filter: []
initialization_commands: []
setup_commands: []
head_setup_commands: []
worker_setup_commands: []
head_start_ray_commands: []
worker_start_ray_commands: []
"""


def test_a_simulated_cluster_shows_its_nodes_and_does_not_grow(three_nodes: None) -> None:
    import ray

    found = cluster.nodes()
    assert [node.total["GPU"] for node in found] == [3, 3, 3]
    assert all(node.available == node.total for node in found)
    assert not cluster.cluster_autoscales()
    held = ray.util.placement_group([{"GPU": 2}])
    assert held.wait(20)
    deadline = time.monotonic() + 10
    while sorted(node.available["GPU"] for node in cluster.nodes()) != [1, 3, 3]:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    ray.util.remove_placement_group(held)
    # Joined already: an address is not looked at.
    cluster.ensure_ray("192.0.2.255:1")


def test_a_ray_client_address_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(SpecError, match="rayline submit"):
        cluster.ensure_ray("ray://head:10001")


@pytest.fixture(params=["0", "1"], ids=["autoscaler-v1", "autoscaler-v2"])
def growing_cluster(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    """Address of a head whose autoscaler could launch a node of 4 GPUs, but has not."""
    (tmp_path / "growing.yaml").write_text(AUTOSCALING)
    with socket.socket() as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    environment = {
        **os.environ,
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": request.param,
    }
    # Sockets lie below it, and their paths may have 107 characters.
    session_dir = tempfile.mkdtemp(prefix="ray-")
    command = [str(Path(sys.executable).parent / "ray"), "start", "--head", "--block"]
    command += ["--port", str(port), "--num-cpus", "1", "--include-dashboard", "false"]
    command += ["--temp-dir", session_dir, "--autoscaling-config", "growing.yaml"]
    head = subprocess.Popen(
        command, cwd=tmp_path, env=environment, start_new_session=True, stdout=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 60
        while not listens(port):
            assert head.poll() is None, "the head did not start"
            assert time.monotonic() < deadline, "the head does not answer"
            time.sleep(0.2)
        yield f"127.0.0.1:{port}"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(head.pid, signal.SIGKILL)
        head.wait()
        shutil.rmtree(session_dir, ignore_errors=True)


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


GROWS = """
import sys, time
from rayline.actors import cluster, placement
from rayline.errors import PlacementError
from rayline.launch.cluster_state import look_at_cluster
from rayline.launch.pending import Wanted, why_pending
cluster.ensure_ray(sys.argv[1])
deadline = time.monotonic() + 30
while not cluster.cluster_autoscales():
    assert time.monotonic() < deadline, "never seen to grow"
    time.sleep(0.2)
placement.refuse_impossible([{"GPU": 4.0}])
try:
    placement.refuse_impossible([{"GPU": 5.0}])
except PlacementError as refused:
    print(refused.problem)
began = time.monotonic()
print(why_pending(Wanted([{"GPU": 4.0}] * 2), look_at_cluster()))
print(why_pending(Wanted([{"GPU": 4.0}]), look_at_cluster()).kind)
print(time.monotonic() - began < 5)
"""


def test_a_cluster_that_grows_is_waited_for(growing_cluster: str) -> None:
    told = subprocess.run(
        [sys.executable, "-c", GROWS, growing_cluster],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert told.returncode == 0, told.stderr
    refused, limit, one, in_time = told.stdout.splitlines()
    assert refused.startswith("needs 5 GPUs on one node; the largest node has 0, and no node that")
    assert limit.startswith(
        "the autoscaler is at its limit (0 of at most 1 large, 1 more would not"
    )
    assert "raise max_workers of large" in limit
    assert (one, in_time) == ("scaling", "True")


def test_an_address_where_nothing_listens_is_told() -> None:
    script = (
        "from rayline.actors import ensure_ray\n"
        "from rayline.errors import PlacementError\n"
        "try:\n"
        "    ensure_ray('127.0.0.1:1')\n"
        "except PlacementError as wrong:\n"
        "    print(wrong)\n"
    )
    told = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert told.stdout.startswith("address: the Ray cluster cannot be joined"), told.stderr
    assert "'127.0.0.1:1'" in told.stdout


def test_the_token_of_a_cluster_that_is_started_here_is_its_owners_alone(tmp_path: Path) -> None:
    script = (
        "import ray\n"
        "from rayline.actors import ensure_ray\n"
        "ensure_ray('local')\n"
        "print(ray.cluster_resources()['CPU'] > 0)\n"
    )
    own = {"HOME": str(tmp_path), "RAY_AUTH_MODE": "token"}
    told = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, **own},
    )
    assert told.stdout == "True\n", told.stderr
    assert (tmp_path / ".ray" / "auth_token").stat().st_mode & 0o777 == 0o600
