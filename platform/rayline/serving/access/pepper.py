"""The pepper: a secret of the server under which key secrets are hashed.

It lies beside a SQLite store, readable by its owner alone, or comes in the environment variable
RAYLINE_PEPPER; all gateways of a cluster need the same one. Who has the database but not the pepper
cannot tell whether a guess is a key.
"""

from __future__ import annotations

import hmac
import os
import secrets
from pathlib import Path

from rayline.errors import SpecError
from rayline.serving.access.store import Store

VARIABLE = "RAYLINE_PEPPER"
_BYTES = 32
_LONGEST_SECRET = 256
"""Longer than any key is; what is longer is not hashed whole."""


class Pepper:
    """Hashes secrets. Its repr tells nothing, and it is never pickled with a spec."""

    __slots__ = ("_value",)

    def __init__(self, value: bytes) -> None:
        self._value = value

    def digest(self, secret: str) -> bytes:
        """HMAC-SHA-256 of a key's secret: what is kept of it, and looked up."""
        text = secret[:_LONGEST_SECRET].encode("utf-8", "replace")
        return hmac.digest(self._value, text, "sha256")

    def __repr__(self) -> str:
        return "Pepper(...)"


def pepper_file(store: Store) -> Path | None:
    """Where the pepper of a SQLite store lies."""
    return None if store.file is None else store.file.with_name(store.file.name + ".pepper")


def read_pepper(store: Store) -> Pepper:
    """The pepper of a store, which is made on first use where a file can hold it. Raises SpecError.

    Called by gateways and by whoever makes keys.
    """
    given = os.environ.get(VARIABLE)
    if given is not None:
        return Pepper(_decoded(given, VARIABLE))
    file = pepper_file(store)
    if file is None:
        raise SpecError(
            VARIABLE,
            "is not set: beside a PostgreSQL store there is no file that the pepper could lie in",
            fix=f"export {VARIABLE}=$(openssl rand -hex 32), the same for the gateways and for "
            "whoever makes keys",
        )
    if not file.exists():
        _make(file)
    _refuse_readable(file)
    return Pepper(_decoded(file.read_text(encoding="ascii").strip(), str(file)))


def _make(file: Path) -> None:
    """Whoever is first makes it whole; of several at once one wins, and all read that one's."""
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_name(f"{file.name}.{secrets.token_hex(4)}")
    with open(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as opened:
        opened.write(secrets.token_hex(_BYTES) + "\n")
    try:
        os.link(draft, file)
    except FileExistsError:
        return
    finally:
        draft.unlink()


def _refuse_readable(file: Path) -> None:
    mode = file.stat().st_mode & 0o777
    if mode & 0o077:
        raise SpecError(
            str(file),
            "others can read the pepper",
            value=f"{mode:04o}",
            allowed="0600",
            fix=f"chmod 600 {file}",
        )


def _decoded(text: str, where: str) -> bytes:
    """The bytes that hexadecimal digits stand for. What was found is not repeated."""
    try:
        value = bytes.fromhex(text)
    except ValueError:
        value = b""
    if len(value) < _BYTES:
        raise SpecError(
            where,
            "is no pepper",
            allowed=f"at least {2 * _BYTES} hexadecimal digits",
            fix="openssl rand -hex 32",
        )
    return value
