"""keys and usage: what they print, keep and refuse."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from rayline.cli import run
from rayline.serving.access.key_store import open_keys
from rayline.serving.access.ring import KeyRing
from rayline.serving.access.store import Store
from rayline.serving.access.usage import SCHEMA, UsageRow, write_rows
from rayline.spec import Limits


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def shown(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> str:
    assert run(words) == code
    captured = capsys.readouterr()
    return captured.out if code == 0 else captured.err


def document(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, object]:
    found = json.loads(shown(capsys, *words, "--json"))
    assert isinstance(found, dict)
    return found


def test_a_key_from_its_making_to_its_end(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["keys", "create", "notebook", "--team", "research", "--model", "tiny"]
    words += ["--scope", "inference", "--rpm", "60", "--tpm", "60000", "--budget", "2000000"]
    words += ["--per", "month", "--priority", "high", "--expires", "30d"]
    text = shown(capsys, *words)
    assert "60 requests/min, 60,000 tokens/min, 2,000,000 tokens/month" in text
    assert "shown this once" in text
    (secret,) = [line.strip() for line in text.splitlines() if line.startswith("  rl-")]
    key = KeyRing(open_keys("sqlite:///serving.db")).find(secret)
    assert key is not None
    assert key.expires_at_s == pytest.approx(time.time() + 30 * 86_400, abs=60)
    assert (key.scopes, key.models, key.priority) == (("inference",), ("tiny",), "high")

    listed = shown(capsys, "keys")
    assert listed == shown(capsys, "keys", "list")
    assert "notebook" in listed
    assert "in use until" in listed
    assert secret not in listed

    renewed = document(capsys, "keys", "rotate", "notebook", "--overlap", "1h")["secret"]
    ring = KeyRing(open_keys("sqlite:///serving.db"))
    assert ring.find(secret) == ring.find(str(renewed)) == key

    assert document(capsys, "keys", "revoke", "notebook")["revoked_at_s"] is not None
    assert "revoked" in shown(capsys, "keys")
    assert "no key in use" in shown(capsys, "keys", "revoke", "notebook", code=2)


def test_a_dry_run_changes_nothing(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown(capsys, "keys", "create", "one", "--dry-run")
    assert not list(here.iterdir())
    shown(capsys, "keys", "create", "one")
    before = open_keys("sqlite:///serving.db").changes()
    for verb in ("rotate", "revoke"):
        assert "would" in shown(capsys, "keys", verb, "one", "--dry-run")
    assert "would" in shown(capsys, "keys", "team", "research", "--rpm", "5", "--dry-run")
    assert open_keys("sqlite:///serving.db").changes() == before


def test_a_team_gets_limits_and_loses_them(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown(capsys, "keys", "create", "one", "--team", "research")
    assert "500 tokens/min" in shown(capsys, "keys", "team", "research", "--tpm", "500")
    (key,) = open_keys("sqlite:///serving.db").keys()
    assert key.team_limits == Limits(tokens_per_min=500)
    assert "no limits" in shown(capsys, "keys", "team", "research")
    (key,) = open_keys("sqlite:///serving.db").keys()
    assert key.team_limits == Limits()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["keys", "create", "one", "--scope", "everything"], "scopes.0"),
        (["keys", "create", "one", "--rpm", "0"], "requests_per_min"),
        (["keys", "create", "one", "--per", "year", "--budget", "5"], "budget_period"),
        (["keys", "create", "one", "--expires", "soon"], "--expires"),
        (["keys", "create", "one", "--expires", "2001-01-01"], "expires_in_s"),
        (["keys", "create", "-one-"], "no such option (found '-o')"),
        (["keys", "create", "*"], "name"),
        (["keys", "rotate", "nobody"], "no key in use has this name"),
        (["keys", "list", "--store", "mysql://x/y"], "gateway.store"),
        (["usage", "--by", "hour"], "by"),
        (["usage", "--since", "yesterday"], "--since"),
    ],
)
def test_what_is_wrong_is_named(
    words: list[str], told: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert told in shown(capsys, *words, code=2)


def test_reading_makes_no_store(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no keys in sqlite:///serving.db" in shown(capsys, "keys")
    assert "no usage in sqlite:///serving.db" in shown(capsys, "usage")
    assert not list(here.iterdir())


def test_usage_is_added_up(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = Store("sqlite:///serving.db")
    store.ensure(SCHEMA)
    now_s = time.time()
    write_rows(
        store,
        [
            UsageRow(
                request_id=f"r{number}",
                at_s=now_s - 86_400 * number,
                key_id=f"key_{number % 2}",
                key_name="odd" if number % 2 else "even",
                team=None,
                model="tiny",
                variant=None,
                route="chat",
                prompt_tokens=1_000,
                cached_tokens=100,
                completion_tokens=number,
                status=200,
                outcome="cut" if number == 3 else "complete",
                ttft_ms=None,
                seconds=1.0,
            )
            for number in range(10)
        ],
    )
    text = shown(capsys, "usage")
    assert "even (key_0)" in text
    assert "5,025" in text
    assert len(shown(capsys, "usage", "--by", "day").splitlines()) == 11
    (line,) = json.loads(shown(capsys, "usage", "--key", "odd", "--since", "60h", "--json"))
    assert (line["group"], line["requests"], line["completion_tokens"]) == ("key_1", 1, 1)
    (line,) = json.loads(shown(capsys, "usage", "--by", "model", "--model", "tiny", "--json"))
    assert (line["requests"], line["cut"], line["prompt_tokens"]) == (10, 1, 10_000)
    assert json.loads(shown(capsys, "usage", "--team", "nobody", "--json")) == []
