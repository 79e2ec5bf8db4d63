"""Every request's row, once, whatever happens to the store meanwhile; and the sums."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from rayline.serving.access import ledger as ledger_module
from rayline.serving.access.allowances import Account
from rayline.serving.access.ledger import Ledger
from rayline.serving.access.spool import Spool
from rayline.serving.access.store import Store
from rayline.serving.access.usage import (
    SCHEMA,
    LedgerPast,
    UsageRow,
    UsageSum,
    sum_usage,
    write_rows,
)
from rayline.spec import UsageQuery
from support.postgres import PostgresServer

NOON_S = 1_795_003_200.0
"""2026-11-18 12:00 UTC."""
SPOOL_BYTES = 2**20


def row(number: int = 0, **changed: object) -> UsageRow:
    made = UsageRow(
        request_id=f"request-{number}",
        at_s=NOON_S + number,
        key_id=f"key_{number % 3}",
        key_name=f"name {number % 3}",
        team="research" if number % 2 else None,
        model="tiny",
        variant="v1",
        route="chat",
        prompt_tokens=10 + number,
        cached_tokens=number % 5,
        completion_tokens=number % 7,
        status=200,
        outcome="complete",
        ttft_ms=5.0,
        seconds=0.25,
    )
    return replace(made, **changed)  # type: ignore[arg-type]


def total(store: Store) -> UsageSum:
    (found,) = sum_usage(store, UsageQuery(by="model"))
    return found


def until(done: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 60
    while not done():
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


def test_sums_are_exact_over_2000_requests_of_which_200_were_cut(
    address: str, tmp_path: Path
) -> None:
    chance = random.Random(7)
    rows = [
        row(
            number,
            prompt_tokens=chance.randint(1, 4_000),
            completion_tokens=chance.randint(0, 2_000),
            outcome="cut" if number % 10 == 0 else "complete",
            ttft_ms=None if number % 20 == 0 else 3.5,
        )
        for number in range(2_000)
    ]
    store = Store(address)
    ledger = Ledger(store, Spool(tmp_path / "spool", SPOOL_BYTES))
    for one in rows:
        ledger.add(one)
    ledger.close()
    found = total(store)
    assert (found.requests, found.complete, found.cut, found.failed) == (2_000, 1_800, 200, 0)
    assert found.prompt_tokens == sum(one.prompt_tokens for one in rows)
    assert found.completion_tokens == sum(one.completion_tokens for one in rows)
    assert found.cached_tokens == sum(one.cached_tokens for one in rows)
    assert ledger.lost == 0
    assert list((tmp_path / "spool").iterdir()) == []


def test_sums_by_whatever_is_asked(address: str) -> None:
    store = Store(address)
    store.ensure(SCHEMA)
    rows = [row(number) for number in range(60)]
    rows += [row(60, at_s=NOON_S + 86_400, variant="v2", model="smol", outcome="failed")]
    write_rows(store, rows)

    def groups(**asked: object) -> dict[str, int]:
        query = UsageQuery.parse(asked)
        return {one.group: one.requests for one in sum_usage(store, query)}

    assert groups() == {"key_0": 21, "key_1": 20, "key_2": 20}
    assert groups(by="day") == {"2026-11-18": 60, "2026-11-19": 1}
    assert groups(by="model") == {"smol": 1, "tiny": 60}
    assert groups(by="variant") == {"v1": 60, "v2": 1}
    assert groups(by="team") == {"": 31, "research": 30}
    assert groups(by="day", key="name 0") == {"2026-11-18": 20, "2026-11-19": 1}
    assert groups(by="key", key="key_1") == {"key_1": 20}
    assert groups(by="model", team="research") == {"tiny": 30}
    assert groups(by="model", since_s=NOON_S + 50, until_s=NOON_S + 55) == {"tiny": 5}
    (first, *_) = sum_usage(store, UsageQuery(by="key"))
    assert (first.name, first.failed, first.complete) == ("name 0", 1, 20)


def test_a_row_is_written_once_however_often_it_is_tried(address: str) -> None:
    store = Store(address)
    store.ensure(SCHEMA)
    write_rows(store, [row(1), row(2)])
    write_rows(store, [row(2), row(3), row(3)])
    assert total(store).requests == 3


def test_an_authority_reads_the_past_from_it(address: str) -> None:
    store = Store(address)
    past = LedgerPast(store)
    write_rows(store, [row(number) for number in range(60)])
    key = Account("key", "key_1", "requests")
    assert past.minute(key, NOON_S + 10, NOON_S + 20) == [
        (NOON_S + 10, 1),
        (NOON_S + 13, 1),
        (NOON_S + 16, 1),
        (NOON_S + 19, 1),
    ]
    team = Account("team", "research", "tokens", "month")
    expected = sum(10 + n + n % 7 for n in range(60) if n % 2)
    assert past.total(team, 0.0, NOON_S + 60) == expected
    assert past.total(Account("key", "nobody", "tokens", "day"), 0.0, NOON_S) == 0


def test_a_store_that_is_away_loses_nothing_and_doubles_nothing(
    postgres: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_module, "_AGAIN_S", (0.1,))
    store = Store(postgres.address)
    spool = Spool(tmp_path / "spool", SPOOL_BYTES)
    ledger = Ledger(store, spool)
    for number in range(100):
        ledger.add(row(number))
    until(lambda: total_or_none(store) == 100)
    postgres.stop()
    try:
        for number in range(100, 300):
            ledger.add(row(number))
            time.sleep(0.01)
        until(lambda: spooled(tmp_path / "spool") == 200)
    finally:
        postgres.start()
    for number in range(300, 400):
        ledger.add(row(number))
    until(lambda: total_or_none(store) == 400)
    ledger.close()
    found = total(store)
    assert found.requests == 400
    assert found.prompt_tokens == sum(10 + number for number in range(400))
    assert ledger.lost == 0
    assert spooled(tmp_path / "spool") == 0


def total_or_none(store: Store) -> int | None:
    found = sum_usage(store, UsageQuery(by="model"))
    return found[0].requests if found else None


def spooled(folder: Path) -> int:
    return sum(len(path.read_bytes().splitlines()) for path in folder.glob("*.jsonl"))


def test_adding_never_waits_for_a_locked_store(tmp_path: Path) -> None:
    store = Store(f"sqlite:///{tmp_path}/serving.db")
    ledger = Ledger(store, Spool(tmp_path / "spool", SPOOL_BYTES))
    with store.writing():
        began_s = time.monotonic()
        for number in range(1_000):
            ledger.add(row(number))
        assert time.monotonic() - began_s < 1.0
        time.sleep(0.6)
    ledger.close()
    assert total(store).requests == 1_000


def test_what_a_gateway_that_was_killed_has_left_is_taken_over(tmp_path: Path) -> None:
    script = f"""
import json, os, pathlib, signal, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_ledger import row
from rayline.serving.access.spool import Spool
spool = Spool(pathlib.Path({str(tmp_path / "spool")!r}), 2**20)
spool.keep([row(1), row(2)])
os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", script], check=False, env=_with_tests())
    assert killed.returncode == -9
    (left,) = (tmp_path / "spool").glob("*.jsonl")
    with left.open("ab") as file:
        file.write(b'{"request_id": "torn')
    store = Store(f"sqlite:///{tmp_path}/serving.db")
    store.ensure(SCHEMA)
    write_rows(store, [row(1)])
    ledger = Ledger(store, Spool(tmp_path / "spool", SPOOL_BYTES))
    until(lambda: total(store).requests == 2)
    ledger.close()
    assert list((tmp_path / "spool").iterdir()) == []


def _with_tests() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def test_a_living_gateways_spool_is_left_alone(tmp_path: Path) -> None:
    mine = Spool(tmp_path, SPOOL_BYTES)
    mine.keep([row(1)])
    other = Spool(tmp_path, SPOOL_BYTES)
    assert not other.waiting
    assert list(mine.batches()) == [[row(1)]]
    assert not mine.waiting


def test_a_spool_is_bounded_and_gives_a_batch_again_until_it_was_written(tmp_path: Path) -> None:
    rows = [row(number) for number in range(1_200)]
    size_bytes = len(json.dumps(rows[-1].as_dict()).encode()) + 1
    spool = Spool(tmp_path, 1_000 * size_bytes)
    lost = spool.keep(rows)
    assert 180 <= lost <= 200
    first = next(iter(spool.batches()))
    assert next(iter(spool.batches())) == first
    found = [one for batch in spool.batches() for one in batch]
    assert found == rows[: 1_200 - lost]
    assert not spool.waiting
    assert spool.keep(rows[:10]) == 0
    assert [one for batch in spool.batches() for one in batch] == rows[:10]


def test_what_has_no_place_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(ledger_module, "MAX_ROWS", 10)
    store = Store(f"sqlite:///{tmp_path}/serving.db")
    ledger = Ledger(store, Spool(tmp_path / "spool", SPOOL_BYTES))
    with store.writing():
        for number in range(100):
            ledger.add(row(number))
        assert ledger.lost >= 80
    ledger.close()
    assert total(store).requests == 100 - ledger.lost
    assert "rows are lost" in caplog.text


def test_a_row_that_no_store_takes_does_not_hold_up_others(
    postgres: PostgresServer, tmp_path: Path
) -> None:
    store = Store(postgres.address)
    ledger = Ledger(store, Spool(tmp_path / "spool", SPOOL_BYTES))
    for one in (row(1), row(2, model="nul \0 inside"), row(3)):
        ledger.add(one)
    ledger.close()
    assert total(store).requests == 2
    assert ledger.lost == 1
