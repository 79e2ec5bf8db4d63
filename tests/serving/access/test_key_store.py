"""Keys in SQLite and in PostgreSQL: made, renewed, ended; what gateways hear of it, and when."""

from __future__ import annotations

import os
import random
import statistics
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
import sqlalchemy as sql

from rayline.errors import ServingError, SpecError
from rayline.serving.access.key_store import SCHEMA, KeyStore, open_keys
from rayline.serving.access.keys import new_secret
from rayline.serving.access.pepper import Pepper, pepper_file, read_pepper
from rayline.serving.access.ring import POLL_S, KeyRing
from rayline.serving.access.store import Schema, Store, anchored, parse_address
from rayline.spec import KeySpec, Limits

SPEC = KeySpec(
    name="one",
    team="research",
    scopes=("inference",),
    models=("tiny", "smol"),
    limits=Limits(requests_per_min=60, budget_tokens=2**40, budget_period="month"),
    priority="high",
    weight=3,
    expires_in_s=3_600.0,
)


def test_a_key_comes_back_as_it_was_made(address: str) -> None:
    keys = open_keys(address)
    issued = keys.create(SPEC)
    (key,) = open_keys(address).keys()
    assert key == issued.key
    assert (key.name, key.team, key.models, key.weight) == ("one", "research", ("tiny", "smol"), 3)
    assert key.limits == SPEC.limits
    assert key.expires_at_s == pytest.approx(time.time() + 3_600, abs=60)
    assert KeyRing(keys).find(issued.secret) == key


def test_a_name_is_in_use_once(address: str) -> None:
    keys = open_keys(address)
    keys.create(SPEC)
    with pytest.raises(SpecError, match="a key of this name is in use"):
        keys.create(SPEC)
    keys.revoke("one")
    assert keys.create(SPEC).key.name == "one"
    with pytest.raises(SpecError, match="no key in use has this name"):
        keys.revoke("two")


def test_a_ring_hears_of_every_change(address: str) -> None:
    keys = open_keys(address)
    ring = KeyRing(keys)
    assert ring.refresh() is False
    issued = open_keys(address).create(SPEC)
    assert ring.find(issued.secret) is None
    assert ring.refresh() is True
    assert ring.find(issued.secret) == issued.key
    keys.limit_team("research", Limits(tokens_per_min=5))
    assert ring.refresh() is True
    found = ring.find(issued.secret)
    assert found is not None
    assert found.team_limits == Limits(tokens_per_min=5)
    keys.limit_team("research", Limits())
    keys.revoke(issued.key.id)
    assert ring.refresh() is True
    found = ring.find(issued.secret)
    assert found is not None
    assert found.revoked_at_s is not None
    assert found.team_limits == Limits()
    assert ring.refresh() is False


def test_a_new_secret_takes_the_place_of_the_old_one(address: str) -> None:
    keys = open_keys(address)
    first = keys.create(SPEC)
    second = keys.rotate("one")
    assert second.key == first.key
    ring = KeyRing(keys)
    assert ring.find(first.secret) is None
    assert ring.find(second.secret) == first.key
    third = keys.rotate("one", overlap_s=60)
    now_s = time.time()
    for later_s, holds in ((0, True), (59, True), (61, False)):
        ring = KeyRing(keys, clock=lambda later_s=later_s: now_s + later_s)  # type: ignore[misc]
        assert (ring.find(second.secret) is not None) is holds
        assert ring.find(third.secret) == first.key


def test_many_may_open_an_empty_store_and_make_keys_at_once(address: str) -> None:
    def make(number: int) -> str:
        return open_keys(address).create(KeySpec(name=f"key {number}")).secret

    with ThreadPoolExecutor(8) as threads:
        made = list(threads.map(make, range(16)))
    ring = KeyRing(open_keys(address))
    found = [ring.find(secret) for secret in made]
    assert {key.name for key in found if key is not None} == {f"key {n}" for n in range(16)}
    assert open_keys(address).changes() == 16


def test_a_key_that_is_revoked_is_refused_within_a_second(address: str) -> None:
    """The median of three, so that one stall of the machine is no failure."""
    keys = open_keys(address)
    ring = KeyRing(keys)
    stop = threading.Event()

    def poll() -> None:
        while not stop.wait(POLL_S):
            ring.refresh()

    polling = threading.Thread(target=poll)
    polling.start()
    took_s = []
    try:
        for number in range(3):
            secret = keys.create(KeySpec(name=f"key {number}")).secret
            until(partial(known, ring, secret))
            keys.revoke(f"key {number}")
            began_s = time.monotonic()
            until(partial(revoked, ring, secret))
            took_s.append(time.monotonic() - began_s)
    finally:
        stop.set()
        polling.join()
    assert statistics.median(took_s) < 1.0


def known(ring: KeyRing, secret: str) -> bool:
    return ring.find(secret) is not None


def revoked(ring: KeyRing, secret: str) -> bool:
    key = ring.find(secret)
    return key is not None and key.revoked_at_s is not None


def until(done: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 30
    while not done():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def test_another_pepper_is_told_apart(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    open_keys(address).create(SPEC)
    monkeypatch.setenv("RAYLINE_PEPPER", "77" * 32)
    with pytest.raises(SpecError, match="under another pepper"):
        open_keys(address)


def test_tables_of_another_release_are_told_apart(address: str) -> None:
    store = Store(address)
    store.ensure(SCHEMA)
    with pytest.raises(SpecError, match="are of version 1, this release reads 2"):
        store.ensure(Schema(SCHEMA.name, 2, SCHEMA.tables))
    tables = sql.MetaData()
    sql.Table("more", tables, sql.Column("id", sql.Integer, primary_key=True))
    store.ensure(Schema("more", 7, tables))
    store.ensure(Schema("more", 7, tables))


def test_a_pepper_is_made_once_and_for_its_owner_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAYLINE_PEPPER", raising=False)
    store = Store(f"sqlite:///{tmp_path}/serving.db")
    with ThreadPoolExecutor(8) as threads:
        peppers = list(threads.map(lambda _: read_pepper(store), range(8)))
    assert len({pepper.digest("x") for pepper in peppers}) == 1
    file = pepper_file(store)
    assert file is not None
    assert file.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [file]
    file.chmod(0o640)
    with pytest.raises(SpecError, match="others can read the pepper"):
        read_pepper(store)


def test_a_pepper_that_is_none_is_refused_without_repeating_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for wrong in ("", "abc", "zz" * 32, "5a" * 31):
        monkeypatch.setenv("RAYLINE_PEPPER", wrong)
        with pytest.raises(SpecError, match="is no pepper") as caught:
            read_pepper(Store(f"sqlite:///{tmp_path}/x.db"))
        assert not wrong or wrong not in str(caught.value)
    monkeypatch.delenv("RAYLINE_PEPPER")
    with pytest.raises(SpecError, match="RAYLINE_PEPPER: is not set"):
        read_pepper(Store("postgresql://host/name"))


def test_the_store_file_is_its_owners_alone(tmp_path: Path) -> None:
    open_keys(f"sqlite:///{tmp_path}/serving.db").create(SPEC)
    modes = {path.name: oct(path.stat().st_mode & 0o777) for path in tmp_path.iterdir()}
    assert set(modes.values()) == {"0o600"}, modes


def test_addresses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert anchored("sqlite:///serving.db") == f"sqlite:///{tmp_path}/serving.db"
    assert anchored("postgresql://u:p@h/n") == "postgresql+psycopg://u:p@h/n"
    assert Store("postgresql://u:p@h/n").shown == "postgresql+psycopg://u:***@h/n"
    for wrong in ("sqlite://", "sqlite:///:memory:", "mysql://u:hunter2@h/n", "u:hunter2@h/n", ""):
        with pytest.raises(SpecError, match=r"gateway\.store: keys and usage cannot") as caught:
            parse_address(wrong)
        assert "hunter2" not in str(caught.value)


def test_a_store_that_does_not_answer_is_named_without_its_password(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RAYLINE_PEPPER", "5a" * 32)
    with pytest.raises(ServingError, match="the database does not answer") as caught:
        open_keys("postgresql://u:hunter2@127.0.0.1:9/n")
    assert "hunter2" not in str(caught.value)


def test_finding_takes_as_long_for_a_near_miss_as_for_a_guess(tmp_path: Path) -> None:
    """Welch's t of 5,000 lookups of each kind: of three tries one below 3 in absolute value, so
    that the machine's noise is no failure, and a real difference is one."""
    keys = open_keys(f"sqlite:///{tmp_path}/serving.db")
    secrets = [keys.create(KeySpec(name=f"key {number}")).secret for number in range(20)]
    ring = KeyRing(keys)

    def t_of(count: int) -> float:
        kinds = [kind for _ in range(count) for kind in (0, 1)]
        random.Random(0).shuffle(kinds)
        # Both are put together alike, so that they lie in memory alike.
        heads = [secrets[n % 20] if kind else new_secret() for n, kind in enumerate(kinds)]
        tries = [
            (kind, head[:24] + new_secret()[24:]) for kind, head in zip(kinds, heads, strict=True)
        ]
        took: tuple[list[int], list[int]] = ([], [])
        for kind, secret in tries:
            began = time.perf_counter_ns()
            ring.find(secret)
            took[kind].append(time.perf_counter_ns() - began)
        # What the scheduler took is in neither.
        kept = [sorted(times)[: int(0.9 * count)] for times in took]
        spread = sum(statistics.variance(times) / len(times) for times in kept)
        return abs(statistics.mean(kept[0]) - statistics.mean(kept[1])) / max(spread, 1e-9) ** 0.5

    assert min(t_of(5_000) for _ in range(3)) < 3


def test_a_pepper_hides_itself() -> None:
    assert repr(Pepper(b"secret")) == "Pepper(...)"
    assert os.environ.get("RAYLINE_PEPPER") is None


def test_a_key_store_needs_its_store(tmp_path: Path) -> None:
    (tmp_path / "folder.db").mkdir()
    with pytest.raises((ServingError, OSError)):
        KeyStore(Store(f"sqlite:///{tmp_path}/folder.db"), Pepper(b"x"))
