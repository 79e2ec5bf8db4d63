"""Who looks: a key in, a visitor out; a visitor's session is a cookie that no script can read.

Two kinds of keys open the console: the one that is minted when it starts, and API keys of the
gateway's store with the scope admin, whose holders may change things wherever the console may.
Neither is kept: of the first and of sessions only digests, of the second its id, which is looked up
again, so that a key that was revoked looks at nothing from the next second on.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from rayline.errors import RaylineError
from rayline.serving.access.key_store import KeyStore, open_keys
from rayline.serving.access.keys import ApiKey, judge
from rayline.serving.access.store import Store
from rayline.spec import GatewaySpec

KEY_PREFIX = "rlc-"
"""What every console's key begins with, so that scanners of code and people know it."""
_SECRET_BYTES = 32
SESSION_S = 12 * 3600.0
_MOST_SESSIONS = 256
_LOOK_AGAIN_S = 1.0
_LONGEST_KEY = 256


@dataclass(frozen=True, slots=True)
class Visitor:
    """Somebody who may look."""

    name: str
    may_change: bool
    key_id: str | None = None
    """Of an API key; None for the console's own."""


@dataclass(frozen=True, slots=True)
class Session:
    """A visitor in one browser."""

    visitor: Visitor
    csrf: str
    """What a page of the console's own has to send along when it changes something."""
    ends_s: float


class Reception:
    """Lets visitors in. Used from several threads."""

    def __init__(
        self,
        store: str | None,
        *,
        allow_changes: bool,
        key: str | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`store` holds the API keys (GatewaySpec.store); `key` is the console's own, minted where
        it is None."""
        self.key = key or KEY_PREFIX + secrets.token_urlsafe(_SECRET_BYTES)
        self._store = store or GatewaySpec().store
        self._allow_changes = allow_changes
        self._clock = clock
        self._sessions: dict[bytes, Session] = {}
        self._seen_s: dict[str, float] = {}
        self._lock = threading.Lock()
        self._keys: KeyStore | None = None

    def visitor(self, key: str) -> Visitor | None:
        """Whose key it is; None where it opens nothing."""
        given = key[:_LONGEST_KEY]
        if hmac.compare_digest(_digest(given), _digest(self.key)):
            return Visitor("console key", self._allow_changes)
        found = self._api_key(given)
        if found is None or judge(found, "admin", None, self._clock()) is not None:
            return None
        return Visitor(found.name, True, found.id)

    def begin(self, visitor: Visitor) -> tuple[str, Session]:
        """A new session: the cookie's value, which is kept nowhere, and what it stands for."""
        token = secrets.token_urlsafe(_SECRET_BYTES)
        session = Session(visitor, secrets.token_urlsafe(_SECRET_BYTES), self._clock() + SESSION_S)
        with self._lock:
            while len(self._sessions) >= _MOST_SESSIONS:
                del self._sessions[next(iter(self._sessions))]
            self._sessions[_digest(token)] = session
        return token, session

    def session(self, token: str) -> Session | None:
        """What a cookie stands for; None where it is over, or its key is."""
        session = self._sessions.get(_digest(token[:_LONGEST_KEY]))
        if session is None:
            return None
        if session.ends_s <= self._clock() or not self._holds(session.visitor):
            self.end(token)
            return None
        return session

    def end(self, token: str) -> None:
        """Sign out."""
        with self._lock:
            self._sessions.pop(_digest(token[:_LONGEST_KEY]), None)

    def _holds(self, visitor: Visitor) -> bool:
        """Whether an API key is still one; asked of the store once a second."""
        if visitor.key_id is None:
            return True
        now_s = self._clock()
        if now_s - self._seen_s.get(visitor.key_id, 0.0) < _LOOK_AGAIN_S:
            return True
        try:
            key = self._open().find(visitor.key_id)
        except RaylineError:
            return False
        if judge(key, "admin", None, now_s) is not None:
            return False
        self._seen_s[visitor.key_id] = now_s
        return True

    def _api_key(self, secret: str) -> ApiKey | None:
        if not Store(self._store).exists:
            return None
        try:
            keys = self._open()
            hooked = keys.chain().by_digest.get(keys.pepper.digest(secret))
        except RaylineError:
            return None
        if hooked is None:
            return None
        replaced = hooked.expires_at_s is not None and hooked.expires_at_s <= self._clock()
        return None if replaced else hooked.key

    def _open(self) -> KeyStore:
        if self._keys is None:
            self._keys = open_keys(self._store)
        return self._keys


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "replace")).digest()
