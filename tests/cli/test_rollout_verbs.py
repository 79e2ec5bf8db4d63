"""What `rayline status NAME` prints, and what the verbs take."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from rayline.cli import run
from rayline.cli.rollout import show_served
from rayline.cli.screen import Screen
from rayline.serving.director.blueprint import Event
from rayline.serving.director.status import Felt, ModelStatus, VersionStatus
from rayline.serving.rollout.gates import Verdict
from rayline.serving.scaling.deciding import Decision


def version(number: int, **more: object) -> VersionStatus:
    known: dict[str, object] = {
        "number": number,
        "state": "serving",
        "reason": "",
        "model": "registry:bot@champion",
        "registry_version": 6 + number,
        "run_id": "9f2c",
        "revision": f"r{number}",
        "app": f"chat--v{number}",
        "created_at_s": 0.0,
        "percent": 90.0,
        "up": 2,
        "wanted": 3,
        "decision": None,
        "felt": None,
    }
    return VersionStatus(**(known | more))  # type: ignore[arg-type]


STATUS = ModelStatus(
    model="chat",
    stable=1,
    canary=2,
    goal=None,
    verdict=Verdict("wait", "31 of min_requests 50 answered"),
    held=0,
    versions=(
        version(2, percent=10.0, up=1, wanted=1, felt=Felt(31, 1, 12.4, 40.1, 3.14)),
        version(
            1,
            decision=Decision(
                3,
                "requests per replica",
                20,
                8,
                "requests per replica 20 of 8 asks for 3",
                "4 asked for; max_replicas is 3",
            ),
        ),
        version(0, state="failed", reason="no kernel image", percent=0.0, up=0, wanted=0),
    ),
    events=(Event(0.0, "version 2 gets 10 % of the requests"),),
)


def test_status_tells_shares_times_decisions_and_what_happened(
    capsys: pytest.CaptureFixture[str],
) -> None:
    show_served(Screen(json_wanted=False), STATUS)
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].split() == [
        *("version", "model", "state", "share", "replicas", "requests", "errors"),
        *("TTFT", "ms", "TPOT", "ms"),
    ]
    assert " ".join(shown[1].split()) == (
        "2 registry:bot@champion (version 8) serving 10 % 1 31 1 12/40 3.1"
    )
    assert "2 of 3" in shown[2]
    assert (
        "version 1: 3 replicas: requests per replica 20 of 8 asks for 3; "
        "4 asked for; max_replicas is 3"
    ) in shown
    assert "version 0: no kernel image" in shown
    assert "gates: wait: 31 of min_requests 50 answered" in shown
    assert shown[-1].endswith("version 2 gets 10 % of the requests")


def test_status_as_json_holds_everything(capsys: pytest.CaptureFixture[str]) -> None:
    show_served(Screen(json_wanted=True), STATUS)
    shown = json.loads(capsys.readouterr().out)
    assert shown["verdict"]["action"] == "wait"
    assert shown["versions"][1]["decision"]["signal"] == "requests per replica"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["canary", "chat", "12.5%", "--dry-run"], "is to get 12.5 % of the requests"),
        (["promote", "chat", "--dry-run"], "is to get everything"),
        (["rollback", "chat", "--to", "3", "--dry-run"], "goes back to version 3"),
        (["rollback", "chat", "--dry-run"], "goes back to the version before"),
    ],
)
def test_a_dry_run_says_what_would_happen_and_needs_no_cluster(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(words) == 0
    assert said in capsys.readouterr().out


def test_a_share_that_is_no_number_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["canary", "chat", "much", "--dry-run"]) == 2
    assert "write it as 10%" in capsys.readouterr().err


@pytest.mark.ray
def test_nobody_serves_it(
    command: Callable[[list[str], Path], tuple[int, str, str]], tmp_path: Path
) -> None:
    code, _, said = command(["status", "chat", "--address", "127.0.0.1:1"], tmp_path)
    assert code in (3, 6)
    assert said
