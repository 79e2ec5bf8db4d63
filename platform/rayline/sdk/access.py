"""API keys and usage of served models, as their operator sees them through the gateway's store."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rayline.errors import needing
from rayline.spec import GatewaySpec, KeySpec, Limits, UsageQuery

if TYPE_CHECKING:
    from rayline.serving.access.key_store import KeyStore
    from rayline.serving.access.keys import ApiKey, IssuedKey
    from rayline.serving.access.usage import UsageSum


class ServingAccess:
    """Makes and ends keys and adds up usage in `store`, an address as GatewaySpec.store is; None
    takes the spec's default. Gateways hear of a change within a second."""

    def __init__(self, store: str | None) -> None:
        self.store = store if store is not None else GatewaySpec().store

    def create_key(self, key: KeySpec) -> IssuedKey:
        """Make a key; the secret in what comes back is nowhere else, and cannot be had again.
        Raises SpecError, ServingError, as all below.

        issued = client.create_key(KeySpec(name="notebook", limits=Limits(tokens_per_min=60_000)))
        OpenAI(base_url=endpoint.url, api_key=issued.secret)
        """
        return self._key_store().create(key)

    def keys(self) -> list[ApiKey]:
        """All keys, revoked ones too, oldest first; never a secret."""
        with needing("serve"):
            from rayline.serving.access.store import Store

        return self._key_store().keys() if Store(self.store).exists else []

    def key(self, name: str) -> ApiKey:
        """The key in use of this name or id."""
        return self._key_store().find(name)

    def rotate_key(self, name: str, *, overlap_s: float = 0.0) -> IssuedKey:
        """Give a key (by name or id) a new secret; the old one holds for `overlap_s` more."""
        return self._key_store().rotate(name, overlap_s)

    def revoke_key(self, name: str) -> ApiKey:
        """End a key (by name or id) for good."""
        return self._key_store().revoke(name)

    def limit_team(self, team: str, limits: Limits) -> None:
        """Limit all keys of a team together; limits that are all None lift it."""
        self._key_store().limit_team(team, limits)

    def usage(self, asked: UsageQuery | None = None) -> list[UsageSum]:
        """Requests and tokens of each key, or of each team, model, variant or day.

        client.usage(UsageQuery(by="day", key="notebook"))
        """
        with needing("serve"):
            from rayline.serving.access.store import Store
            from rayline.serving.access.usage import SCHEMA, sum_usage

        store = Store(self.store)
        if not store.exists:
            return []
        store.ensure(SCHEMA)
        return sum_usage(store, asked or UsageQuery())

    def _key_store(self) -> KeyStore:
        with needing("serve"):
            from rayline.serving.access.key_store import open_keys

        return open_keys(self.store)
