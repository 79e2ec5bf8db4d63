"""Others' programs that bring clusters up: what is run, what is passed on, what a failure says."""

import os
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from rayline.errors import InterruptedByUser, PlacementError
from rayline.launch.clusters import commands
from rayline.spec import ClusterSpec

ROOT = Path(__file__).resolve().parents[3]


def spec(name: str) -> ClusterSpec:
    return ClusterSpec.load(ROOT / "cluster" / "specs" / f"{name}.yaml")


def test_kubernetes_is_asked_for_the_kind_that_was_made() -> None:
    file = Path("a.yaml")
    kinds = {
        name: commands.status_command(spec(name), file)[2]
        for name in ("raycluster", "rayjob", "rayservice")
    }
    assert kinds == {
        "raycluster": "raycluster.ray.io/rayline",
        "rayjob": "rayjob.ray.io/rayline-quickstart",
        "rayservice": "rayservice.ray.io/rayline-chat",
    }
    assert commands.up_command(spec("rayjob"), file) == ["kubectl", "apply", "-f", "a.yaml"]


@pytest.mark.parametrize(("name", "newer"), [("aws", "1"), ("on-premises", "0")])
def test_the_autoscaler_is_the_specs(name: str, newer: str) -> None:
    assert commands.environment(spec(name))["RAY_UP_enable_autoscaler_v2"] == newer


def test_lines_come_as_they_are_printed() -> None:
    said: list[str] = []
    script = "import sys; print('one'); print('two', file=sys.stderr)"
    commands.run([sys.executable, "-u", "-c", script], os.environ, said.append, "")
    assert said == ["one", "two"]


def test_a_failure_says_the_last_lines_and_what_to_do() -> None:
    script = "print('quota exceeded'); raise SystemExit(7)"
    with pytest.raises(PlacementError) as wrong:
        commands.run([sys.executable, "-c", script], os.environ, lambda _: None, "run it again")
    assert "exit code 7" in str(wrong.value)
    assert "quota exceeded" in str(wrong.value)
    assert wrong.value.fix == "run it again"


def test_a_program_that_is_not_there_is_named() -> None:
    with pytest.raises(PlacementError, match="no such program"):
        commands.run(["kubectl-that-is-not"], os.environ, lambda _: None, "")


def test_ctrl_c_ends_what_was_started() -> None:
    said: list[str] = []

    def hear(line: str) -> None:
        said.append(line)
        threading.Timer(0.1, lambda: os.kill(os.getpid(), signal.SIGINT)).start()

    script = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    with pytest.raises(InterruptedByUser, match="may stand"):
        commands.run([sys.executable, "-c", script], os.environ, hear, "rayline cluster down")
    with pytest.raises(ProcessLookupError):
        os.kill(int(said[0]), 0)


def test_a_token_that_is_there_becomes_its_owners_alone(tmp_path: Path) -> None:
    token = tmp_path / "auth_token"
    token.write_text("a-token")
    token.chmod(0o644)
    made = commands.make_token({**os.environ, "RAY_AUTH_TOKEN_PATH": str(token)})
    assert made == token
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert token.read_text() == "a-token"


def test_rendering_checking_and_pricing_need_no_ray() -> None:
    script = """
import sys
import rayline.launch.clusters.check, rayline.launch.clusters.pricing
print(*sorted({"ray", "torch", "psutil"} & set(sys.modules)))
"""
    told = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert told.stdout.split() == []
