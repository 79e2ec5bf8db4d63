"""From a command line to an exit code: usage, errors of the tree, the unexpected, interruption."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rayline.cli import run
from rayline.cli.app import app

VERBS = (
    "attach",
    "batch",
    "canary",
    "chaos",
    "chat",
    "cluster",
    "console",
    "demo",
    "deploy",
    "diff",
    "doctor",
    "export",
    "import",
    "init",
    "keys",
    "lineage",
    "list",
    "logs",
    "models",
    "plan",
    "promote",
    "publish",
    "resume",
    "rollback",
    "runs",
    "specs",
    "status",
    "stop",
    "submit",
    "sync",
    "train",
    "tune",
    "undeploy",
    "usage",
    "verify",
    "withdraw",
)
ACTING = (
    "batch",
    "canary",
    "chaos",
    "console",
    "demo",
    "deploy",
    "export",
    "import",
    "init",
    "promote",
    "publish",
    "resume",
    "rollback",
    "stop",
    "submit",
    "sync",
    "train",
    "tune",
    "undeploy",
    "verify",
    "withdraw",
)


def output(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = run(words)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_verbs_are_these(capsys: pytest.CaptureFixture[str]) -> None:
    _, shown, _ = output(capsys, "--help")
    listed = shown.partition("Commands:\n")[2].partition("\n\n")[0]
    assert sorted(line.split()[0] for line in listed.splitlines()) == sorted(VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_teaches_with_an_example_and_speaks_json(
    verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, shown, _ = output(capsys, verb, "--help")
    assert code == 0
    assert f"Example: rayline {verb}" in shown
    assert "--json" in shown
    assert ("--dry-run" in shown) is (verb in ACTING)


def test_nothing_said_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    code, shown, _ = output(capsys)
    assert code == 0
    assert "Commands:" in shown


@pytest.mark.parametrize(
    ("words", "near"),
    [
        (["trian", "x.yaml"], "train"),
        (["modles"], "models"),
        (["train", "x.yaml", "--drun-run"], "--dry-run"),
        (["deploy", "x.yaml", "--jsno"], "--json"),
    ],
)
def test_a_typo_gets_the_nearest_word_and_exit_code_2(
    words: list[str], near: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, shown, said = output(capsys, *words)
    assert code == 2
    assert shown == ""
    assert f"did you mean {near!r}?" in said


def test_an_error_is_its_text_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    code, shown, said = output(capsys, "train", "nowhere.yaml")
    assert code == 2
    assert shown == ""
    assert said.startswith("nowhere.yaml: no such spec file")
    assert "Traceback" not in said


def test_with_json_an_error_is_the_document_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    code, shown, said = output(capsys, "train", "nowhere.yaml", "--json")
    document = json.loads(shown)
    assert (code, document["exit_code"], document["error"]) == (2, 2, "SpecError")
    assert document["subject"] == "nowhere.yaml"
    assert said == ""


def test_v_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    _, _, said = output(capsys, "train", "nowhere.yaml", "-v")
    assert "Traceback" in said


def _broken() -> None:
    """A verb that falls over."""
    raise ZeroDivisionError("a bug")


def test_the_unexpected_is_one_line_and_a_file_with_the_traceback(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    app.command("broken-for-a-test", hidden=True)(_broken)
    try:
        code, shown, said = output(capsys, "broken-for-a-test")
    finally:
        app.registered_commands.pop()
    assert code == 1
    assert shown == ""
    assert said.startswith("ZeroDivisionError: a bug")
    assert "Traceback" not in said
    (log,) = tmp_path.glob("rayline-error-*.log")
    assert str(log) in said
    assert "Traceback" in log.read_text()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_means_130_without_a_traceback(number: signal.Signals, tmp_path: Path) -> None:
    script = tmp_path / "waits.py"
    script.write_text(
        "import sys, time\n"
        "from rayline.cli import run\n"
        "from rayline.cli.app import app\n"
        "@app.command()\n"
        "def wait():\n"
        "    print('waiting', flush=True)\n"
        "    time.sleep(60)\n"
        "sys.exit(run(['wait']))\n"
    )
    waiting = subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert waiting.stdout is not None
        assert waiting.stdout.readline() == "waiting\n"
        os.kill(waiting.pid, number)
        _, said = waiting.communicate(timeout=20)
    finally:
        waiting.kill()
        waiting.wait()
    assert waiting.returncode == 130
    assert said.startswith("interrupted: ")
    assert "Traceback" not in said


def test_help_answers_at_once_and_imports_no_heavy_room() -> None:
    script = (
        "import sys\n"
        "from rayline.cli import run\n"
        "run(['--help'])\n"
        "wanted = {'torch', 'ray', 'mlflow', 'transformers', 'numpy', 'psutil', 'pydantic'}\n"
        "heavy = wanted & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 0, ended.stderr
