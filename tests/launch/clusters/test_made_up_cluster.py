"""`rayline cluster up` of several nodes on this machine, under Ray's real autoscaler: a gang placed
on nodes that were made for it, the nodes gone after it, the cluster ended, no process left."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from rayline.launch.clusters.made_up_cluster import MadeUpNode, marked, status
from rayline.launch.clusters.state import ClusterFolder, HeadRecord

pytestmark = pytest.mark.ray

ROOT = Path(__file__).resolve().parents[3]
SPEC = ROOT / "cluster" / "specs" / "fake.yaml"

# A driver as jobs/train.py is one: the gang's room is asked for by the platform's own code.
GANG = """
import json, sys, time
import ray
from rayline.actors.placement import Placement

ray.init(address=sys.argv[1], log_to_driver=False)
began_s = time.monotonic()
placement = Placement([{"CPU": 1, "GPU": 2}] * int(sys.argv[2]))
placement.reserve(90, lambda: False)
ready_s = time.monotonic() - began_s

@ray.remote(num_cpus=0, num_gpus=1)
class Worker:
    def where(self):
        context = ray.get_runtime_context()
        return context.get_node_id(), context.get_accelerator_ids()["GPU"]

workers = [
    Worker.options(scheduling_strategy=placement.strategy(bundle)).remote()
    for bundle in placement.bundle_order() for _ in range(2)
]
where = ray.get([worker.where.remote() for worker in workers])
placement.release()
print(json.dumps({"ready_s": ready_s, "where": where}))
"""


@dataclass(frozen=True)
class User:
    """Somebody at a command line, whose home is a folder of the test."""

    home: Path
    spec: Path

    def say(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", "from rayline.cli import main; main()", *words]
        return self._run(command, **environment)

    def drive(self, script: str, *words: str) -> Any:
        done = self._run([sys.executable, "-c", script, *words])
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    def nodes(self) -> list[Any]:
        told = self.say("cluster", "status", str(self.spec), "--json")
        assert told.returncode == 0, told.stderr
        found: list[Any] = json.loads(told.stdout)["nodes"]
        return found

    @property
    def folder(self) -> ClusterFolder:
        return ClusterFolder(self.home / ".rayline" / "clusters" / "fake")

    def record(self) -> HeadRecord:
        found = self.folder.read()
        assert found is not None
        return found

    def _run(self, command: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            cwd=self.home,
            env={
                **{name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"},
                "HOME": str(self.home),
                "PYTHONPATH": str(ROOT / "platform"),
                "RAY_AUTH_MODE": "disabled",
                **environment,
            },
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )


@pytest.fixture
def user(tmp_path: Path) -> Iterator[Callable[..., User]]:
    users = []

    def make(**changes: str) -> User:
        text = SPEC.read_text() + "".join(f"{key}: {value}\n" for key, value in changes.items())
        spec = tmp_path / "fake.yaml"
        spec.write_text(text)
        users.append(User(tmp_path, spec))
        return users[-1]

    yield make
    for each in users:
        each.say("cluster", "down", str(each.spec), "--yes")


def nodes_of(folder: ClusterFolder) -> tuple[MadeUpNode, ...]:
    found = status(folder)
    assert found is not None
    return found.nodes


def wait_until(true: Callable[[], bool], within_s: float) -> float:
    began_s = time.monotonic()
    while not true():
        assert time.monotonic() - began_s < within_s
        time.sleep(0.5)
    return time.monotonic() - began_s


def test_up_a_gang_on_new_nodes_scaled_down_and_ended(user: Callable[..., User]) -> None:
    someone = user()
    up = someone.say("cluster", "up", str(someone.spec), "--yes", "--json")
    assert up.returncode == 0, up.stderr
    told = json.loads(up.stdout)
    record = someone.record()
    assert told["cluster"]["address"] == record.address
    assert told["plan"]["gpus"] == {"kept": 0, "most": 6}
    assert [node["head"] for node in someone.nodes()] == [True]

    gang = someone.drive(GANG, record.address, "2")
    nodes = {node for node, _ in gang["where"]}
    assert len(nodes) == 2, "two bundles of all a node's GPUs lie on two nodes"
    for node in nodes:
        assert sorted(gpu for at, gpus in gang["where"] if at == node for gpu in gpus) == ["0", "1"]

    # Up again changes nothing: the same head, and no second one.
    again = someone.say("cluster", "up", str(someone.spec), "--yes")
    assert again.returncode == 0, again.stderr
    assert "runs already" in again.stdout
    assert someone.record() == record
    other = someone.say("cluster", "up", str(someone.spec), "--yes", "--set", "head.cpus=2")
    assert other.returncode == 3
    assert "under another spec" in other.stderr

    gone_s = wait_until(lambda: len(nodes_of(someone.folder)) == 1, 60)
    print(f"gang ready after {gang['ready_s']:.1f} s, its nodes gone {gone_s:.1f} s after it")

    down = someone.say("cluster", "down", str(someone.spec), "--yes")
    assert down.returncode == 0, down.stderr
    assert "processes ended" in down.stdout
    assert marked(record.mark) == []
    assert not Path(record.session_dir).exists()
    assert someone.say("cluster", "status", str(someone.spec)).returncode == 3


@pytest.mark.engines
def test_the_older_autoscaler_and_a_head_that_was_killed(user: Callable[..., User]) -> None:
    someone = user(autoscaler="v1")
    up = someone.say("cluster", "up", str(someone.spec), "--yes")
    assert up.returncode == 0, up.stderr
    record = someone.record()
    gang = someone.drive(GANG, record.address, "1")
    assert len(gang["where"]) == 2
    # The nodes that the autoscaler made lose their parent, and are found all the same.
    os.kill(record.pid, signal.SIGKILL)
    told = someone.say("cluster", "status", str(someone.spec))
    assert told.returncode == 3
    assert "its head has died" in told.stderr
    assert marked(record.mark)
    assert someone.say("cluster", "down", str(someone.spec), "--yes").returncode == 0
    assert marked(record.mark) == []


def test_a_head_that_does_not_come_up_leaves_nothing(user: Callable[..., User]) -> None:
    someone = user()
    with ThreadPoolExecutor(1) as pool:
        up = pool.submit(someone.say, "cluster", "up", str(someone.spec), "--yes")
        wait_until(lambda: someone.folder.read() is not None, 60)
        record = someone.record()
        os.kill(record.pid, signal.SIGKILL)
        failed = up.result()
    assert failed.returncode == 3
    assert "ended before it answered" in failed.stderr
    assert marked(record.mark) == []
    assert someone.folder.read() is None
