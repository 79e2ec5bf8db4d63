"""What the demo would do, and where it refuses to begin. The demo itself is `make demo`."""

import json
import socket
from pathlib import Path

import pytest

from rayline.cli import run
from rayline.cli.demo import demo_specs
from rayline.spec import JobSpec, ServeSpec

REPOSITORY = Path(__file__).resolve().parents[2]


def test_it_says_each_stage_and_its_own_command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(REPOSITORY)
    assert run(["demo", "--dry-run", "--json", "--steps", "7"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert len(said["stages"]) == 5
    assert all(command.startswith("rayline ") for command in said["stages"].values())
    assert JobSpec.parse(said["job"]).steps == 7
    assert ServeSpec.parse(said["deployment"]).model.registry == "smollm2-otto@latest"


def test_a_port_that_is_taken_is_left_to_its_owner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    wanted = ServeSpec.load("serve/chat.yaml").gateway.port
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            other.bind(("127.0.0.1", wanted))
            other.listen()
        except OSError:
            pass  # somebody else's program holds it, which serves this test as well
        assert demo_specs(None)[1].gateway.port != wanted


def test_outside_a_checkout_it_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["demo", "--exit"]) == 2
    assert "cd into a checkout" in capsys.readouterr().err
