"""Clusters that others' programs bring up: `ray up` for clouds and one's own machines, kubectl for
KubeRay. The commands are values; one function runs them and passes on every line as it comes.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rayline.errors import InterruptedByUser, PlacementError, needing
from rayline.spec import ClusterSpec

_KINDS = {"run": "rayjob", "serve": "rayservice"}
_LAST_LINES = 15
_STOP_TIMEOUT_S = 20.0


def up_command(spec: ClusterSpec, file: Path) -> list[str]:
    """What makes the machines or pods."""
    if spec.kubernetes is not None:
        return ["kubectl", "apply", "-f", str(file)]
    return [_ray(), "up", "--yes", "--no-config-cache", "--log-style=record", str(file)]


def down_command(spec: ClusterSpec, file: Path) -> list[str]:
    """What ends them."""
    if spec.kubernetes is not None:
        return ["kubectl", "delete", "--ignore-not-found", "-f", str(file)]
    return [_ray(), "down", "--yes", "--log-style=record", str(file)]


def status_command(spec: ClusterSpec, file: Path) -> list[str]:
    """What tells how they are doing."""
    if spec.kubernetes is not None:
        purpose = next((each for each in _KINDS if getattr(spec.kubernetes, each)), None)
        kind = _KINDS.get(purpose or "", "raycluster")
        space = spec.kubernetes.namespace
        where = [] if space is None else ["--namespace", space]
        return ["kubectl", "get", f"{kind}.ray.io/{spec.name}", *where, "-o", "wide"]
    return [_ray(), "exec", "--log-style=record", str(file), "ray status"]


def doctor_command(spec: ClusterSpec, file: Path) -> list[str] | None:
    """What has the head look at itself; None where it has no shell to do so."""
    if spec.kubernetes is not None:
        return None
    look = "rayline doctor --address http://127.0.0.1:8265"
    return [_ray(), "exec", "--log-style=record", str(file), look]


def environment(spec: ClusterSpec) -> dict[str, str]:
    """What the commands run under: the autoscaler that the head gets is chosen by it."""
    return {
        **os.environ,
        "PATH": f"{os.environ.get('PATH', '')}:{Path(sys.executable).parent}",
        "RAY_UP_enable_autoscaler_v2": "1" if spec.autoscaler == "v2" else "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "PYTHONUNBUFFERED": "1",
    }


def make_token(environment: Mapping[str, str]) -> Path:
    """The token that the nodes are opened with, made where there is none; its owner's alone."""
    from rayline.launch.addresses import token_file

    file = token_file(environment)
    if not file.exists():
        with needing("train"):
            import ray  # noqa: F401  whose command makes it
        subprocess.run(
            [_ray(), "get-auth-token", "--generate"],
            env=dict(environment),
            check=True,
            stdout=subprocess.DEVNULL,
        )
    file.chmod(0o600)
    return file


def run(
    command: Sequence[str],
    environment: Mapping[str, str],
    say: Callable[[str], None],
    undo: str,
) -> None:
    """Run a command to its end, saying each line. `undo` is what a person does about a part that
    was made. Raises PlacementError with its last lines where it fails."""
    if shutil.which(command[0], path=environment.get("PATH")) is None:
        raise PlacementError(
            command[0], "no such program on this machine", fix=f"install {command[0]}"
        )
    process = subprocess.Popen(
        command,
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    last: deque[str] = deque(maxlen=_LAST_LINES)
    try:
        for line in process.stdout or ():
            last.append(line.rstrip())
            say(last[-1])
        code = process.wait()
    except KeyboardInterrupt:
        _stop(process)
        raise InterruptedByUser(
            " ".join(command[:2]), "stopped; what it had made so far may stand", fix=undo
        ) from None
    if code:
        raise PlacementError(
            " ".join(command[:2]),
            f"failed with exit code {code}: " + "\n".join(line for line in last if line),
            fix=undo,
        )


def _stop(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(_STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _ray() -> str:
    """Ray's command: of this environment where it has one."""
    beside = Path(sys.executable).parent / "ray"
    return str(beside) if beside.exists() else "ray"
