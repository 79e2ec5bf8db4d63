"""`rayline batch` against a scripted endpoint: what is told, how it ends, and after Ctrl-C."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from rayline.cli import run
from support.scripted_endpoint import KEY, ScriptedEndpoint, scripted_endpoint

if TYPE_CHECKING:
    from conftest import RunningCommand


@pytest.fixture
def endpoint() -> Iterator[ScriptedEndpoint]:
    with scripted_endpoint() as running:
        yield running


def written(folder: Path, prompts: list[str]) -> Path:
    file = folder / "in.jsonl"
    file.write_text(
        "".join(
            json.dumps(
                {
                    "custom_id": f"{number}",
                    "method": "POST",
                    "url": "/v1/completions",
                    "body": {"model": "bot", "prompt": prompt},
                }
            )
            + "\n"
            for number, prompt in enumerate(prompts)
        )
    )
    return file


def test_a_batch_is_answered_and_summed_up(
    endpoint: ScriptedEndpoint,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    endpoint.needs_key = True
    monkeypatch.setenv("OPENAI_API_KEY", "rk-other")
    monkeypatch.setenv("RAYLINE_API_KEY", KEY)
    file, out = written(tmp_path, ["ok", "ok"]), tmp_path / "out.jsonl"
    words = ["batch", str(file), str(out), "--url", endpoint.url]
    assert run([*words, "--dry-run"]) == 0
    assert f"2 requests in {file}" in capsys.readouterr().out
    assert not out.exists()
    assert run(words) == 0
    assert "2 of 2 requests answered; answers in" in capsys.readouterr().out
    assert run([*words, "--json"]) == 0
    shown = capsys.readouterr().out
    assert json.loads(shown) == {"requests": 2, "resumed": 2, "answered": 0, "failed": 0}


def test_an_error_in_a_line_is_told_and_ends_with_6(
    endpoint: ScriptedEndpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = written(tmp_path, ["ok", "refuse"]), tmp_path / "out.jsonl"
    words = ["batch", str(file), str(out), "--url", endpoint.url]
    assert run(words) == 6
    shown = capsys.readouterr().out
    assert "2 of 2 requests answered" in shown
    assert "1 with an error; --retry-failed asks them again" in shown
    assert run([*words, "--retry-failed"]) == 6
    assert "2 of 2 requests answered, 1 of them earlier" in capsys.readouterr().out


@pytest.mark.parametrize("ways", [[], ["--url", "http://127.0.0.1:1/v1", "--spec", "x.yaml"]])
def test_one_of_an_endpoint_and_engines_is_given(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], ways: list[str]
) -> None:
    file = written(tmp_path, ["ok"])
    assert run(["batch", str(file), str(tmp_path / "out.jsonl"), *ways]) == 2
    assert "give one of --url URL and --spec SPEC" in capsys.readouterr().err


def test_a_wrong_line_is_refused_before_anything_is_asked(
    endpoint: ScriptedEndpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = written(tmp_path, ["ok", "ok"])
    file.write_text(file.read_text() + "{\n")
    assert run(["batch", str(file), str(tmp_path / "out.jsonl"), "--url", endpoint.url]) == 2
    assert f"{file}, line 3: The line is not valid JSON" in capsys.readouterr().err
    assert not endpoint.asked


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_batch_keeps_what_it_has_and_goes_on(
    endpoint: ScriptedEndpoint,
    tmp_path: Path,
    start_command: Callable[[list[str], Path], RunningCommand],
    stop: signal.Signals,
) -> None:
    prompts = [f"slow {300 + number}" for number in range(40)]
    file, out = written(tmp_path, prompts), tmp_path / "out.jsonl"
    words = ["batch", str(file), str(out), "--url", endpoint.url, "--concurrency", "4"]
    running = start_command(words, tmp_path)
    deadline_s = time.monotonic() + 60
    while not out.exists() or out.read_bytes().count(b"\n") < 8:
        assert time.monotonic() < deadline_s, running.process.communicate()
        time.sleep(0.05)
    running.process.send_signal(stop)
    code, _, said = running.finish()
    assert code == 130, said
    assert "Traceback" not in said
    kept = out.read_bytes().splitlines(keepends=True)
    assert 8 <= len(kept) < 40
    assert all(line.endswith(b"\n") for line in kept)

    code, shown, said = start_command([*words, "--json"], tmp_path).finish()
    assert code == 0, said
    summary = json.loads(shown)
    assert (summary["resumed"], summary["answered"]) == (len(kept), 40 - len(kept))
    lines = out.read_bytes().splitlines(keepends=True)
    assert lines[: len(kept)] == kept
    assert sorted(int(json.loads(line)["custom_id"]) for line in lines) == list(range(40))
    # Those that were under way when it was stopped were asked twice, and no other.
    assert sum(endpoint.asked.values()) <= 40 + 4
