"""publish and withdraw on the command line."""

from __future__ import annotations

import json

import pytest

from rayline.cli.entry import run


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["publish", "chat", "legal", "run:9f2c61d0"], "is to answer to legal, from run:9f2c61d0"),
        (["withdraw", "chat", "legal"], "is to answer to legal no more"),
    ],
)
def test_a_dry_run_says_what_would_happen_and_needs_no_cluster(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*words, "--dry-run"]) == 0
    assert said in capsys.readouterr().out
    assert run([*words, "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["done"] is False


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["legal", "9f2c61d0"], "not an adapter's address"),
        (["legal", "run:../../etc"], "run is written ID or ID/FOLDER"),
        (["../legal", "run:9f2c61d0"], "name"),
        (["legal", "run:9f2c61d0", "--sha256", "abc"], "sha256"),
    ],
)
def test_what_is_no_adapter_is_refused_before_a_cluster_is_joined(
    words: list[str], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["publish", "chat", *words]) != 0
    assert why in capsys.readouterr().err
