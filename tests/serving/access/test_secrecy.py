"""A key's secret is shown once: it stands in no file, log, error, repr or dump of a spec."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import logging
import traceback
from pathlib import Path

import pytest

from rayline.cli import run
from rayline.errors import RaylineError
from rayline.serving.access.door import Door, Usage
from rayline.serving.access.key_store import open_keys
from rayline.serving.access.refusals import TurnedAway
from rayline.spec import GatewaySpec, KeySpec, Limits
from support.postgres import PostgresServer

CANARY_MODEL = "canary-model"


def everything_said(address: str, folder: Path) -> tuple[str, list[str]]:
    """A life with keys in which much goes wrong: all that it printed, and the secrets in it."""
    said = io.StringIO()
    log = logging.StreamHandler(said)
    root = logging.getLogger()
    root.addHandler(log)
    level, root.level = root.level, logging.DEBUG
    spec = GatewaySpec(store=address, spool=str(folder / "spool"))
    try:
        keys = open_keys(address)
        issued = [
            keys.create(KeySpec(name=f"key {n}", limits=Limits(requests_per_min=2)))
            for n in range(3)
        ]
        issued.append(keys.rotate("key 0", overlap_s=60))
        keys.revoke("key 1")
        secrets = [one.secret for one in issued]
        said.write(repr(issued) + repr(keys.keys()) + repr(keys.chain()) + repr(keys.pepper))
        said.write(json.dumps(spec.model_dump()) + spec.to_yaml() + repr(vars(keys)))
        asyncio.run(knock(spec, secrets, said))
        for secret in secrets:
            try:
                keys.revoke(secret)
            except RaylineError as wrong:
                said.write("".join(traceback.format_exception(wrong)))
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            run(["keys", "list", "--store", address])
            run(["keys", "list", "--store", address, "--json"])
            run(["keys", "revoke", "nobody", "--store", address, "-v"])
            run(["usage", "--store", address, "--json"])
    finally:
        root.removeHandler(log)
        root.level = level
    assert "a secret stands where a name belongs" in said.getvalue()
    return said.getvalue(), secrets


async def knock(spec: GatewaySpec, secrets: list[str], said: io.StringIO) -> None:
    door = Door.open(spec, gateway="one")
    for number, secret in enumerate([*secrets, *secrets, secrets[2] + "x", secrets[2][:-1]]):
        try:
            pass_ = await door.enter(secret, "10.0.0.1", "inference", CANARY_MODEL, 5)
        except TurnedAway as away:
            said.write(f"{away!r} {away} {away.refusal.body()} {away.headers}")
            said.write("".join(traceback.format_exception(away)))
        else:
            said.write(repr(pass_))
            door.leave(pass_, Usage(f"r{number}", CANARY_MODEL, "chat", 200, "complete", 1))
    said.write(repr(vars(door)))
    await door.close()


def holds(text: str | bytes, secret: str) -> bool:
    """Whether a secret stands in it, whole or but for its prefix."""
    bare = secret.removeprefix("rl-")
    return (bare.encode() if isinstance(text, bytes) else bare) in text  # type: ignore[operator]


def test_no_secret_stands_anywhere_sqlite(tmp_path: Path) -> None:
    said, secrets = everything_said(f"sqlite:///{tmp_path}/serving.db", tmp_path)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"serving.db", "serving.db.pepper"} <= {path.name for path in files}
    assert CANARY_MODEL.encode() in b"".join(path.read_bytes() for path in files)
    for secret in secrets:
        assert not holds(said, secret)
        assert not any(holds(path.read_bytes(), secret) for path in files)
    pepper = (tmp_path / "serving.db.pepper").read_text().strip()
    assert pepper not in said
    assert pepper.encode() not in (tmp_path / "serving.db").read_bytes()


def test_no_secret_stands_anywhere_postgresql(postgres: PostgresServer, tmp_path: Path) -> None:
    said, secrets = everything_said(postgres.address, tmp_path)
    dumped = postgres.dump()
    assert CANARY_MODEL in dumped
    for secret in secrets:
        assert not holds(said, secret)
        assert not holds(dumped, secret)
        assert secret.encode().hex() not in dumped


def test_the_search_would_find_one(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    address = f"sqlite:///{tmp_path}/serving.db"
    assert run(["keys", "create", "one", "--store", address, "--json"]) == 0
    shown = capsys.readouterr().out
    assert holds(shown, json.loads(shown)["secret"])
