"""`pip install rayline` alone: what it can do without any extra, and what it says where it cannot.
Jobs on a real cluster from the thin core are in test_job_verbs.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.echo import echo_endpoint
from support.thin import REPOSITORY, core_modules, run_thin

VERBS = ["submit", "status", "logs", "stop", "list", "chat", "batch", "plan", "specs", "init"]
NOBODY = "http://127.0.0.1:9"


def test_the_core_is_thin() -> None:
    heavy = {"ray", "torch", "mlflow", "vllm", "transformers", "deepspeed", "psutil", "requests"}
    assert not heavy & core_modules()
    assert {"httpx", "websockets", "pathspec", "pydantic", "typer"} <= core_modules()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    body = {"model": "echo", "messages": [{"role": "user", "content": "Hi"}]}
    line = {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": body}
    (tmp_path / "in.jsonl").write_text(json.dumps(line) + "\n")
    return tmp_path


def codes(ended: subprocess.CompletedProcess[str]) -> list[int]:
    assert ended.stdout.strip(), ended.stderr
    word, *numbers = ended.stdout.strip().splitlines()[-1].split()
    assert word == "codes", ended.stdout + ended.stderr
    return [int(number) for number in numbers]


def test_it_explains_itself_writes_specs_and_plans(folder: Path) -> None:
    lines = [
        *([verb, "--help"] for verb in VERBS),
        ["init", "mine.yaml"],
        ["init", "told.yaml", "--plan", "now"],
        ["specs", "list"],
        ["specs", "copy", "jobs/tiny-3d"],
        ["specs", "validate", "tiny-3d.yaml"],
        ["plan", "tiny-3d.yaml"],
        ["plan", "meta-llama/Llama-3-8B", "--gpus", "8", "--gpu-type", "H100", "--top", "1"],
        ["submit", "mine.yaml", "--dry-run"],
        ["doctor"],
    ]
    ended = run_thin(lines, folder)
    assert codes(ended)[:-1] == [0] * (len(lines) - 1), ended.stderr
    assert "658" in ended.stdout


def test_it_talks_with_a_served_model(folder: Path) -> None:
    with echo_endpoint() as url:
        ended = run_thin(
            [
                ["chat", "who are you", "--url", url],
                ["batch", "in.jsonl", "out.jsonl", "--url", url],
            ],
            folder,
        )
    assert codes(ended) == [0, 0], ended.stderr
    assert "echo who are you" in ended.stdout
    assert json.loads((folder / "out.jsonl").read_text())["custom_id"] == "1"


def test_a_cluster_that_is_not_there_is_told_by_every_verb(folder: Path) -> None:
    verbs = (["list"], ["status"], ["logs", "a-12345678"], ["stop", "a-12345678"])
    ended = run_thin([[*words, "--address", NOBODY] for words in verbs], folder)
    assert codes(ended) == [3] * len(verbs), ended.stderr
    assert ended.stderr.count("its dashboard cannot be reached") == len(verbs)
    assert "Traceback" not in ended.stderr


def test_what_needs_more_names_the_extra(folder: Path) -> None:
    ended = run_thin(
        [
            ["specs", "copy", "jobs/quickstart"],
            ["train", "quickstart.yaml"],
            ["runs"],
            ["deploy", str(REPOSITORY / "serve" / "tiny.yaml")],
            ["status", "chat"],
        ],
        folder,
    )
    # Where no store is yet, there are no runs: that needs no MLflow to say.
    assert codes(ended) == [0, 1, 0, 1, 1], ended.stderr
    assert "pip install 'rayline[train]'" in ended.stderr
    assert ended.stderr.count("pip install 'rayline[serve]'") == 2
    assert "Traceback" not in ended.stderr


def test_help_costs_less_than_a_third_of_a_second() -> None:
    """Of processor time, which other work on the machine does not change."""
    spent_s = []
    for _ in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", "from rayline.cli import main; main()", "--help"],
            env={**os.environ, "PYTHONPATH": str(REPOSITORY / "platform")},
            stdout=subprocess.DEVNULL,
        )
        _, code, used = os.wait4(process.pid, 0)
        assert code == 0
        process.returncode = 0
        spent_s.append(used.ru_utime + used.ru_stime)
    assert min(spent_s) < 0.3, spent_s
