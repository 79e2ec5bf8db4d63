"""KeyRing: a gateway's copy of all keys, so that no request waits for the database."""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable

from rayline.serving.access.key_store import KeyChain, KeyStore
from rayline.serving.access.keys import ApiKey

POLL_S = 0.5
"""How often the store is asked whether anything changed: a key that is revoked is refused within a
second everywhere."""


class KeyRing:
    """Finds keys by their secrets. `refresh` belongs to one thread, `find` to any.

    Making one reads the store and raises what `KeyStore.chain` raises: without one look at it no
    gateway opens.
    """

    def __init__(self, keys: KeyStore, clock: Callable[[], float] = time.time) -> None:
        self._keys = keys
        self._clock = clock
        self._chain: KeyChain = keys.chain()

    def find(self, secret: str) -> ApiKey | None:
        """The key of a secret, revoked and expired ones too; None where nobody has it.

        Looked up by its keyed hash, so that how long it takes tells nothing: who does not know the
        pepper cannot choose hashes that are alike.
        """
        digest = self._keys.pepper.digest(secret)
        hooked = self._chain.by_digest.get(digest)
        if hooked is None or not hmac.compare_digest(hooked.digest, digest):
            return None
        replaced = hooked.expires_at_s is not None and hooked.expires_at_s <= self._clock()
        return None if replaced else hooked.key

    def refresh(self) -> bool:
        """Look at the store, and read all keys anew where anything has changed: True. Called each
        POLL_S, in a thread. Raises ServingError where the store does not answer; the copy stays."""
        if self._keys.changes() == self._chain.changes:
            return False
        self._chain = self._keys.chain()
        return True

    def __len__(self) -> int:
        """How many secrets there are."""
        return len(self._chain.by_digest)
