"""API keys and usage of served models, as their operator sees them through the gateway's store."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rayline.errors import needing
from rayline.sdk.notebook import tables
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

        >>> issued = client.create_key(KeySpec(name="mine", limits=Limits(tokens_per_min=60_000)))
        >>> issued.secret.startswith("rl-")
        True
        """
        return self._key_store().create(key)

    def keys(self) -> list[ApiKey]:
        """All keys, revoked ones too, oldest first; never a secret.

        >>> [key.name for key in client.keys()]
        ['mine']
        """
        with needing("serve"):
            from rayline.serving.access.store import Store

        return tables.keys(self._key_store().keys() if Store(self.store).exists else [])

    def key(self, name: str) -> ApiKey:
        """The key in use of this name or id.

        >>> client.key("mine").limits.tokens_per_min
        60000
        """
        return self._key_store().find(name)

    def rotate_key(self, name: str, *, overlap_s: float = 0.0) -> IssuedKey:
        """Give a key (by name or id) a new secret; the old one holds for `overlap_s` more.

        >>> client.rotate_key("mine", overlap_s=60.0).secret != issued.secret
        True
        """
        return self._key_store().rotate(name, overlap_s)

    def revoke_key(self, name: str) -> ApiKey:
        """End a key (by name or id) for good.

        >>> client.revoke_key("mine").revoked_at_s is not None
        True
        """
        return self._key_store().revoke(name)

    def limit_team(self, team: str, limits: Limits) -> None:
        """Limit all keys of a team together; limits that are all None lift it.

        >>> client.limit_team("research", Limits(requests_per_min=600))
        """
        self._key_store().limit_team(team, limits)

    def usage(self, asked: UsageQuery | None = None) -> list[UsageSum]:
        """Requests and tokens of each key, or of each team, model, variant or day.

        >>> client.usage(UsageQuery(by="day"))
        []
        """
        with needing("serve"):
            from rayline.serving.access.store import Store
            from rayline.serving.access.usage import SCHEMA, sum_usage

        store, query = Store(self.store), asked or UsageQuery()
        if not store.exists:
            return tables.usage([], query.by)
        store.ensure(SCHEMA)
        return tables.usage(sum_usage(store, query), query.by)

    def _key_store(self) -> KeyStore:
        with needing("serve"):
            from rayline.serving.access.key_store import open_keys

        return open_keys(self.store)
