"""A cluster of several nodes on this machine: made under Ray's real autoscaler, asked, ended.

The head is `ray start --block` in a session of its own. Every process of the cluster inherits a
mark in its environment, whoever starts it: the autoscaler's nodes lose their parent when the head
goes, and by the mark they are found. `ray stop` would end every Ray of the machine.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from rayline.errors import PlacementError, needing
from rayline.launch.clusters.made_up import HEAD_NODE_ID, made_up_sections
from rayline.launch.clusters.state import ClusterFolder, HeadRecord
from rayline.launch.clusters.writing import document
from rayline.spec import ClusterSpec

if TYPE_CHECKING:
    import psutil

MARK = "RAYLINE_CLUSTER"
_HOST = "127.0.0.1"
_START_TIMEOUT_S = 120.0
_END_TIMEOUT_S = 15.0
_POLL_S = 0.2
_SAME_S = 1.0
"""Two readings of one process's birth differ by less."""


@dataclass(frozen=True, slots=True)
class MadeUpNode:
    """One node, as Ray has it."""

    node_id: str
    head: bool
    resources: dict[str, float]


@dataclass(frozen=True, slots=True)
class MadeUpStatus:
    """How such a cluster is doing."""

    running: bool
    address: str
    dashboard: str
    nodes: tuple[MadeUpNode, ...] = ()


def bring_up(spec: ClusterSpec, folder: ClusterFolder, say: Callable[[str], None]) -> HeadRecord:
    """Start the cluster and wait until its head answers; one that runs already is left as it is.

    Raises PlacementError where it runs under another spec, or does not come up; nothing is left.
    """
    running = _running(folder)
    if running is not None:
        if running.fingerprint != spec.fingerprint():
            raise PlacementError(
                spec.name,
                "runs already, under another spec",
                fix="rayline cluster down the one that runs, then up again",
            )
        say(f"{spec.name} runs already at {running.address}")
        return running
    end(folder)
    record = _start(spec, folder)
    say(f"head started (process {record.pid}); waiting until it answers")
    try:
        _wait_until_it_answers(record, folder)
    except BaseException:
        end(folder)
        raise
    say(f"{spec.name} is up at {record.address}, its dashboard at {record.dashboard}")
    return record


def _start(spec: ClusterSpec, folder: ClusterFolder) -> HeadRecord:
    with needing("train"):
        import psutil
        import ray  # noqa: F401  what the command line below is part of
    ports = free_ports(4)
    address = f"{_HOST}:{ports[0]}"
    file = folder.write_file(document([], made_up_sections(spec, address)))
    # Sockets lie below it, and their paths may have 107 characters.
    session_dir = tempfile.mkdtemp(prefix="ray-")
    mark = str(uuid.uuid4())
    command = [
        *(str(Path(sys.executable).parent / "ray"), "start", "--head", "--block"),
        *(f"--node-ip-address={_HOST}", f"--port={ports[0]}", f"--num-cpus={spec.head.cpus}"),
        *(f"--dashboard-host={_HOST}", f"--dashboard-port={ports[1]}"),
        *(f"--dashboard-agent-listen-port={ports[2]}", f"--ray-client-server-port={ports[3]}"),
        *(f"--temp-dir={session_dir}", f"--autoscaling-config={file}", "--num-gpus=0"),
    ]
    with folder.log.open("ab") as log:
        process = subprocess.Popen(
            command,
            env=_environment(spec, mark),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    record = HeadRecord(
        pid=process.pid,
        created_s=psutil.Process(process.pid).create_time(),
        mark=mark,
        address=address,
        dashboard=f"http://{_HOST}:{ports[1]}",
        session_dir=session_dir,
        fingerprint=spec.fingerprint(),
    )
    folder.write(record)
    return record


def _environment(spec: ClusterSpec, mark: str) -> dict[str, str]:
    others = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    made = {
        MARK: mark,
        "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}",
        "RAY_FAKE_CLUSTER": "1",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_AUTH_MODE": "token" if spec.token else "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_enable_autoscaler_v2": "1" if spec.autoscaler == "v2" else "0",
    }
    if spec.autoscaler == "v2":
        made["RAY_CLOUD_INSTANCE_ID"] = made["RAY_OVERRIDE_NODE_ID_FOR_TESTING"] = HEAD_NODE_ID
    return {**others, **made}


def _wait_until_it_answers(record: HeadRecord, folder: ClusterFolder) -> None:
    deadline_s = time.monotonic() + _START_TIMEOUT_S
    while True:
        if _answers(record) and _nodes(record):
            return
        if not _alive(record) or time.monotonic() > deadline_s:
            lines = folder.log.read_text(encoding="utf-8", errors="replace").splitlines()
            raise PlacementError(
                "head",
                "ended before it answered"
                if not _alive(record)
                else f"did not answer within {_START_TIMEOUT_S:g} s",
                value=lines[-1] if lines else "no output",
                fix=f"read {folder.log}",
            )
        time.sleep(_POLL_S)


def _answers(record: HeadRecord) -> bool:
    try:
        return httpx.get(f"{record.dashboard}/api/version", timeout=2.0).status_code < 500
    except httpx.HTTPError:
        return False


def _nodes(record: HeadRecord) -> tuple[MadeUpNode, ...]:
    """The nodes that are alive; none where Ray does not know them yet."""
    from ray.util.state import list_nodes
    from ray.util.state.exception import RayStateApiException

    try:
        found = list_nodes(address=record.dashboard, timeout=10)
    except RayStateApiException:
        return ()
    return tuple(
        MadeUpNode(each.node_id, bool(each.is_head_node), dict(each.resources_total or {}))
        for each in found
        if each.state == "ALIVE"
    )


def end(folder: ClusterFolder) -> int:
    """End every process of the cluster and remove its files: how many there were. One that is down
    already is none."""
    record = folder.read()
    if record is None:
        return 0
    found = marked(record.mark)
    # The head first: it ends its autoscaler, which could start nodes anew.
    _end_all([process for process in found if process.pid == record.pid])
    _end_all(marked(record.mark))
    # What was about to start while the others ended.
    _end_all(marked(record.mark), _POLL_S)
    shutil.rmtree(record.session_dir, ignore_errors=True)
    folder.forget()
    return len(found)


def _end_all(processes: Sequence[psutil.Process], timeout_s: float = _END_TIMEOUT_S) -> None:
    import psutil

    for process in processes:
        _quietly(process.terminate)
    _, left = psutil.wait_procs(list(processes), timeout=timeout_s)
    for process in left:
        _quietly(process.kill)
    psutil.wait_procs(left, timeout=timeout_s)


def _quietly(act: Callable[[], Any]) -> None:
    import psutil

    try:
        act()
    except psutil.NoSuchProcess:
        return


def marked(mark: str) -> list[psutil.Process]:
    """Every process of this machine that bears the mark and has not ended."""
    import psutil

    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


def status(folder: ClusterFolder) -> MadeUpStatus | None:
    """How the cluster is doing; None where this machine remembers none."""
    record = folder.read()
    if record is None:
        return None
    if not _alive(record):
        return MadeUpStatus(False, record.address, record.dashboard)
    return MadeUpStatus(True, record.address, record.dashboard, _nodes(record))


def _running(folder: ClusterFolder) -> HeadRecord | None:
    record = folder.read()
    return record if record is not None and _alive(record) else None


def _alive(record: HeadRecord) -> bool:
    import psutil

    try:
        process = psutil.Process(record.pid)
        born_then = abs(process.create_time() - record.created_s) < _SAME_S
        return born_then and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def free_ports(count: int) -> list[int]:
    """Ports on which nothing listens now, all different."""
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind((_HOST, 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()
