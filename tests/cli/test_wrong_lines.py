"""Wrong command lines: each is answered by one error that says what is wrong and what to do, with
its exit code; no traceback, and one JSON document with --json."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from rayline.cli import run

REPOSITORY = Path(__file__).resolve().parents[2]
NOBODY = "http://127.0.0.1:9"


@dataclass(frozen=True)
class Wrong:
    """One mistake: the words behind `rayline`, the exit code, and what the answer has to say."""

    name: str
    words: list[str]
    code: int
    says: list[str]
    fix: str
    """Words of the line that says what to do."""


JOB, SERVE = "jobs/specs/quickstart.yaml", "serve/tiny.yaml"
CASES = [
    Wrong("an unknown verb", ["trian", JOB], 2, ["trian", "no such command"], "mean 'train'"),
    Wrong("no verb at all like it", ["zzz"], 2, ["zzz", "no such command"], "rayline --help"),
    Wrong(
        "an unknown verb of a group",
        ["cluster", "pln", "cluster/specs/aws.yaml"],
        2,
        ["rayline cluster", "pln", "no such command"],
        "mean 'plan'",
    ),
    Wrong(
        "an unknown option", ["train", JOB, "--dryrun"], 2, ["no such option"], "mean '--dry-run'"
    ),
    Wrong("a missing argument", ["train"], 2, ["SPEC is missing"], "rayline train jobs/specs/"),
    Wrong("one argument of two", ["canary", "chat"], 2, ["SHARE is missing"], "canary chat 10%"),
    Wrong("an option without its value", ["train", JOB, "--set"], 2, ["--set"], "--help"),
    Wrong("a missing file", ["train", "nowhere.yaml"], 2, ["nowhere.yaml", "no such"], "path"),
    Wrong(
        "a file that is almost there",
        ["train", "jobs/specs/quikstart.yaml"],
        2,
        ["no such spec file"],
        "mean 'jobs/specs/quickstart.yaml'",
    ),
    Wrong("a directory", ["train", "jobs/specs"], 2, ["jobs/specs", "is a folder"], "a file in it"),
    Wrong("torn YAML", ["train", "torn.yaml"], 2, ["torn.yaml, line 2", "YAML"], "line"),
    Wrong(
        "a misspelt field",
        ["train", JOB, "--set", "optim.lrr=1"],
        2,
        ["optim.lrr", "unknown key", "allowed"],
        "mean 'lr'",
    ),
    Wrong(
        "a misspelt section",
        ["train", JOB, "--set", "paln.data=2"],
        2,
        ["paln", "unknown key"],
        "mean 'plan'",
    ),
    Wrong(
        "a misspelt axis",
        ["train", JOB, "--set", "plan.tensr=2"],
        2,
        ["plan.tensr", "unknown key"],
        "mean 'tensor'",
    ),
    Wrong(
        "a choice that is none",
        ["train", JOB, "--set", "precision=fp33"],
        2,
        ["precision", "'fp33'", "fp32", "bf16"],
        "mean 'fp32'",
    ),
    Wrong("a wrong type", ["train", JOB, "--set", "steps=many"], 2, ["steps", "'many'"], "steps"),
    Wrong("negative steps", ["train", JOB, "--set", "steps=-5"], 2, ["steps", "-5"], "steps"),
    Wrong("--set without =", ["train", JOB, "--set", "optim.lr"], 2, ["optim.lr"], "--set a.b="),
    Wrong(
        "a plan that cannot be",
        ["plan", JOB, "--set", "plan.tensor=3"],
        2,
        ["plan.tensor", "3", "allowed: 1, 2, 4"],
        "one of the allowed sizes",
    ),
    Wrong("a run that does not exist", ["runs", "0a1b"], 2, ["run", "0a1b"], "rayline runs"),
    Wrong("a run to resume", ["resume", "0a1b"], 2, ["run", "0a1b"], "rayline runs"),
    Wrong(
        "an alias that does not exist",
        ["deploy", SERVE, "--set", "model={registry: bot@champion}", "--dry-run"],
        2,
        ["model.registry", "bot@champion"],
        "tracking.uri",
    ),
    Wrong("a share that is none", ["canary", "chat", "much"], 2, ["SHARE", "much"], "10%"),
    Wrong("a share above all", ["canary", "chat", "120%"], 2, ["SHARE", "120", "0 to 100"], "10%"),
    Wrong(
        "a port that is none",
        ["deploy", SERVE, "--set", "gateway.port=99999"],
        2,
        ["gateway.port", "99999"],
        "gateway.port",
    ),
    Wrong("nobody at the address", ["list", "--address", NOBODY], 3, ["cluster", NOBODY], "runs"),
    Wrong("no URL", ["list", "--address", "http://"], 3, ["cluster", "http://"], "dashboard"),
    Wrong("nobody at the endpoint", ["chat", "Hi", "--url", f"{NOBODY}/v1"], 6, [NOBODY], "deploy"),
    Wrong("an endpoint that is no URL", ["chat", "Hi", "--url", "nowhere"], 6, ["nowhere"], "http"),
    Wrong("a time that is none", ["usage", "--since", "soon"], 2, ["--since", "soon"], "7d"),
    Wrong("a unit that is none", ["keys", "rotate", "k", "--overlap", "1y"], 2, ["1y"], "1h"),
    Wrong(
        "a kind of GPU that is none",
        ["plan", "Llama-3-8B", "--gpus", "8", "--gpu-type", "H1000"],
        2,
        ["--gpu-type", "H1000"],
        "mean 'H100'",
    ),
    Wrong(
        "a model that is none",
        ["plan", "Llama-3-9B", "--gpus", "8", "--gpu-type", "H100"],
        2,
        ["Llama-3-9B"],
        "mean 'meta-llama/Llama-3",
    ),
    Wrong("a reference that is none", ["init", "a.yaml", "--model", "x"], 2, ["model"], "hub:"),
    Wrong("a job given to deploy", ["deploy", JOB], 2, ["a job's spec"], f"rayline train {JOB}"),
    Wrong("a deployment given to train", ["train", SERVE], 2, ["deployment's"], "rayline deploy"),
    Wrong("a search given to train", ["train", "tune/quickstart.yaml"], 2, ["search's"], "tune"),
    Wrong(
        "a cluster given to train",
        ["train", "cluster/specs/aws.yaml"],
        2,
        ["a cluster's spec"],
        "rayline cluster",
    ),
    Wrong("a binary", ["train", "binary.yaml"], 2, ["binary.yaml", "not UTF-8"], "text file"),
    Wrong("a wheel", ["train", "rayline.whl"], 2, ["rayline.whl", "not"], "text file"),
    Wrong("another encoding", ["train", "latin.yaml"], 2, ["latin.yaml", "UTF-8"], "iconv"),
    Wrong("an empty file", ["train", "empty.yaml"], 2, ["empty.yaml", "is empty"], "specs copy"),
    Wrong("an unreadable file", ["train", "closed.yaml"], 2, ["closed.yaml", "read"], "chmod"),
    Wrong("a folder that may not be written", ["init", "shut/a.yaml"], 2, ["shut/a.yaml"], "place"),
    Wrong("a file that is there", ["init", "empty.yaml"], 2, ["empty.yaml", "exists"], "--force"),
    Wrong(
        "a spec that does not come along",
        ["specs", "copy", "quikstart"],
        2,
        ["quikstart", "no such spec"],
        "mean 'quickstart'",
    ),
    Wrong(
        "a name that two specs have",
        ["specs", "copy", "quickstart"],
        2,
        ["jobs/quickstart", "tune/quickstart"],
        "jobs/quickstart",
    ),
    Wrong("a kind that is none", ["specs", "schema", "jbo"], 2, ["jbo", "job"], "mean 'job'"),
    Wrong("a limit that is none", ["runs", "--limit", "few"], 2, ["--limit", "few"], "--help"),
    Wrong("a limit out of range", ["runs", "--limit", "0"], 2, ["--limit", "0"], "--help"),
    Wrong(
        "an export's format",
        ["export", JOB, "--format", "hugginface"],
        2,
        ["--format", "hugginface"],
        "mean 'huggingface'",
    ),
    Wrong("two ways at once", ["batch", "a.jsonl", "b.jsonl"], 2, ["--url"], "--spec"),
    Wrong(
        "a fault that says nothing", ["chaos", JOB, "--kill", "now"], 2, ["now"], "rank=R@step=S"
    ),
    Wrong("an axis that is none", ["verify", JOB, "--axis", "daat"], 2, ["daat"], "mean 'data'"),
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with links to the checkout's own, and files that are no specs; entered."""
    for name in ("jobs", "serve", "tune", "cluster", "examples"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    (tmp_path / "torn.yaml").write_text("name: [a\nsteps: 3\n")
    (tmp_path / "binary.yaml").write_bytes(bytes(range(256)) * 8)
    (tmp_path / "rayline.whl").write_bytes(b"PK\x03\x04\xff\xfe" + os.urandom(64))
    (tmp_path / "latin.yaml").write_bytes("name: café\n".encode("latin-1"))
    (tmp_path / "empty.yaml").write_text("")
    (tmp_path / "closed.yaml").write_text("name: a\n")
    (tmp_path / "closed.yaml").chmod(0)
    (tmp_path / "shut").mkdir(mode=0o500)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_it_is_answered_by_one_error_with_the_way_out(
    case: Wrong, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if case.name.startswith(("an unreadable", "a folder that may")) and os.geteuid() == 0:
        pytest.skip("root may read and write everything")
    code = run(case.words)
    shown, said = capsys.readouterr()
    assert code == case.code, said
    assert "Traceback" not in shown + said
    for words in case.says:
        assert words in said, f"{words!r} is not in:\n{said}"
    to_do = next((line for line in said.splitlines() if line.startswith("  to do:")), "")
    assert case.fix in to_do, said
    first, *others = said.rstrip().splitlines()
    assert ": " in first
    assert all(line.startswith(("  allowed: ", "  to do:   ")) for line in others), said

    assert run([*case.words, "--json"]) == case.code
    document = json.loads(capsys.readouterr().out)
    assert document["exit_code"] == case.code
    assert document["problem"]
    assert document["fix"]


def test_there_are_thirty_and_more() -> None:
    assert len({case.name for case in CASES}) == len(CASES) >= 30
