"""deploy and chat with a real vLLM: ready means it answers, and stopping leaves nothing."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml

from rayline.cli import run
from rayline.cli.processes import free_port

if TYPE_CHECKING:
    from conftest import RunningCommand

pytestmark = pytest.mark.serve


def test_deploy_serves_until_it_is_told_to_end(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    start_command: Callable[[list[str], Path], RunningCommand],
) -> None:
    assert run(["models", "tiny", str(tmp_path / "model")]) == 0
    tree = {
        "name": "tiny",
        "model": {"directory": str(tmp_path / "model")},
        "device": "cpu",
        "gateway": {"port": free_port(8000)},
        "engine": {"max_model_len": 256, "kv_cache_gib": 0.1},
    }
    spec = tmp_path / "tiny.yaml"
    spec.write_text(yaml.safe_dump(tree))
    serving = start_command(["deploy", str(spec)], tmp_path)
    assert serving.process.stdout is not None
    told = []
    for line in serving.process.stdout:
        told.append(line)
        if line.startswith("serving until Ctrl-C"):
            break
    assert told[-1].startswith("serving until Ctrl-C"), serving.process.communicate()
    capsys.readouterr()

    url = f"http://127.0.0.1:{tree['gateway']['port']}/v1"
    words = ["chat", "Hello", "--url", url, "--max-tokens", "8", "--temperature", "0", "--json"]
    assert run(words) == 0
    first = json.loads(capsys.readouterr().out)
    assert first["question"] == "Hello"
    assert run(words) == 0
    assert json.loads(capsys.readouterr().out) == first
    assert run(["chat", "Hello", "--url", url, "--model", "other"]) == 6
    assert "other" in capsys.readouterr().err

    serving.process.send_signal(signal.SIGTERM)
    code, _, said = serving.finish()
    assert code == 130, said
    assert "Traceback" not in said
