"""Door: what the gateway asks at the beginning and the end of each request.

    door = Door.open(spec.gateway, gateway="node-1/2", lease=ask_the_director)
    pass_ = await door.enter(secret, address, "inference", model, tokens)   # or TurnedAway
    ...
    door.leave(pass_, Usage(...))

Beside it runs `door.run()`, which looks at the store for changes twice a second.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from rayline.errors import ServingError
from rayline.serving.access import refusals
from rayline.serving.access.allowances import Allowances
from rayline.serving.access.attempts import BadKeys
from rayline.serving.access.key_store import open_keys
from rayline.serving.access.keys import ANONYMOUS, ApiKey, judge
from rayline.serving.access.ledger import Ledger
from rayline.serving.access.quota import Admission, Denial, Lease, Quota, lease_from
from rayline.serving.access.refusals import TurnedAway
from rayline.serving.access.ring import POLL_S, KeyRing
from rayline.serving.access.spool import Spool
from rayline.serving.access.store import Store
from rayline.serving.access.usage import LedgerPast, Outcome, UsageRow
from rayline.spec.access import Scope
from rayline.spec.gateway import GatewaySpec

logger = logging.getLogger(__name__)

_METERED: frozenset[Scope] = frozenset({"inference", "tokenize"})
"""What limits and budgets count; the list of models and the metrics are free."""


_FREE = Admission(0, {})
_LOOK_TIMEOUT_S = 1.0
"""Longest wait for a store that does not answer, before a key counts as unknown."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What a request has used, as the gateway knows it at its end."""

    request_id: str
    """Unique; stands in the log and the answer's header too."""
    model: str
    route: str
    status: int
    outcome: Outcome
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    variant: str | None = None
    ttft_ms: float | None = None


@dataclass(slots=True)
class Pass:
    """One request that was let in, until it leaves."""

    key: ApiKey
    headers: Mapping[str, str]
    """For the answer: the rate limits and what is left of them."""
    at_s: float
    """When it was let in, Unix time."""
    began_s: float
    """The same moment on the monotonic clock."""
    admission: Admission = field(repr=False)
    left: bool = False


class Door:
    """Keys, quotas and the ledger of one gateway, joined. Belongs to one event loop."""

    def __init__(
        self, spec: GatewaySpec, store: Store, ring: KeyRing, quota: Quota, ledger: Ledger
    ) -> None:
        self._keys = spec.keys
        self._local = _is_this_machine_alone(spec.host)
        self._store = store
        self._ring = ring
        self._quota = quota
        self._ledger = ledger
        self._bad_keys = BadKeys(spec.bad_keys_per_min)
        # One thread: whoever began to read later must not be overtaken.
        self._looker = ThreadPoolExecutor(1, "keys")
        self._next_look: Future[bool] | None = None

    @classmethod
    def open(cls, spec: GatewaySpec, *, gateway: str, lease: Lease | None = None) -> Door:
        """Open the store of `spec` and everything over it.

        `gateway` is a name that no other gateway has. `lease` reaches the cluster's one Allowances;
        without it this gateway is the only one. Raises ServingError where the store does not
        answer, SpecError.
        """
        keys = open_keys(spec.store)
        store = keys.store
        ledger = Ledger(store, Spool(spool_folder(spec, store), spec.spool_mib * 2**20))
        if lease is None:
            lease = lease_from(Allowances(LedgerPast(store)))
        return cls(spec, store, KeyRing(keys), Quota(lease, gateway=gateway), ledger)

    @property
    def open_to_all(self) -> bool:
        """Whether who brings no key is let in: where the spec says so, or where nobody but this
        machine can ask and no key was ever made."""
        if self._keys == "auto":
            return self._local and not len(self._ring)
        return self._keys == "open"

    async def look(self, secret: str | None, address: str, scope: Scope) -> None:
        """Raise TurnedAway for who would be turned away whatever is asked, before it is read.
        Nothing is awaited for a key that this gateway knows."""
        refusal = judge(await self._known(secret, address), scope, None, time.time())
        if refusal is not None:
            raise TurnedAway(refusal)

    async def enter(
        self, secret: str | None, address: str, scope: Scope, model: str | None, tokens: int
    ) -> Pass:
        """Let a request in, or raise TurnedAway: 401, 403, 429.

        `secret` is what came as bearer token; `address` the client's (attempts.client_address);
        `model` the one that is asked for, None where the route has none; `tokens` what the request
        may take at most, prompt and held answer together. Nothing is awaited unless the key is not
        known here, or this gateway has to ask for a slice of its allowance.
        """
        key = await self._known(secret, address)
        at_s = time.time()
        refusal = judge(key, scope, model, at_s)
        if refusal is not None:
            raise TurnedAway(refusal)
        admission = _FREE
        if scope in _METERED:
            answer = await self._quota.admit(key, tokens)
            if isinstance(answer, Denial):
                raise TurnedAway(answer.refusal, answer.headers)
            admission = answer
        return Pass(key, admission.headers, at_s, time.monotonic(), admission)

    def leave(self, pass_: Pass, usage: Usage) -> None:
        """Settle a request's allowance and write its row, however it ended; returns at once.

        Called once for each Pass of a metered scope; a second call does nothing.
        """
        if pass_.left:
            return
        pass_.left = True
        self._quota.settle(pass_.admission, usage.prompt_tokens + usage.completion_tokens)
        key = pass_.key
        self._ledger.add(
            UsageRow(
                request_id=usage.request_id,
                at_s=pass_.at_s,
                key_id=key.id,
                key_name=key.name,
                team=key.team,
                model=usage.model,
                variant=usage.variant,
                route=usage.route,
                prompt_tokens=usage.prompt_tokens,
                cached_tokens=usage.cached_tokens,
                completion_tokens=usage.completion_tokens,
                status=usage.status,
                outcome=usage.outcome,
                ttft_ms=usage.ttft_ms,
                seconds=time.monotonic() - pass_.began_s,
            )
        )

    async def run(self) -> None:
        """Keep the keys fresh and give back what is not used, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._keep_keys_fresh())
            group.create_task(self._keep_giving_back())

    async def close(self) -> None:
        """Give back what is in hand and write the last rows. Called after `run` was cancelled."""
        await self._quota.flush()
        self._looker.shutdown(wait=False, cancel_futures=True)
        await asyncio.to_thread(self._ledger.close)
        self._store.close()

    async def _known(self, secret: str | None, address: str) -> ApiKey:
        """Whose secret it is. Raises TurnedAway where it is nobody's."""
        key = self._ring.find(secret) if secret else None
        if key is not None:
            return key
        if self.open_to_all:
            return ANONYMOUS
        if not secret:
            raise TurnedAway(refusals.no_key())
        # Whoever tries many keys must not keep the store busy.
        if wait_s := self._bad_keys.wait_s(address, time.monotonic()):
            raise TurnedAway(refusals.too_many_bad_keys(wait_s))
        await self._look_again()
        if (key := self._ring.find(secret)) is not None:
            return key
        if one_too_many_s := self._bad_keys.count(address, time.monotonic()):
            raise TurnedAway(refusals.too_many_bad_keys(one_too_many_s))
        raise TurnedAway(refusals.wrong_key())

    async def _look_again(self) -> None:
        """Read the store for a key that was made a moment ago. All who come before the reading
        begins share it."""
        if self._next_look is None or self._next_look.running() or self._next_look.done():
            self._next_look = self._looker.submit(self._ring.refresh)
        looked = asyncio.wrap_future(self._next_look)
        await asyncio.wait({looked}, timeout=_LOOK_TIMEOUT_S)
        if looked.done() and isinstance(looked.exception(), ServingError):
            logger.debug("keys: %s", looked.exception())

    async def _keep_keys_fresh(self) -> None:
        away = False
        while True:
            await asyncio.sleep(POLL_S)
            try:
                await asyncio.wrap_future(self._looker.submit(self._ring.refresh))
            except ServingError as wrong:
                if not away:
                    logger.warning("keys: what was known of them holds on; %s", wrong.problem)
                away = True
            else:
                away = False

    async def _keep_giving_back(self) -> None:
        while True:
            await asyncio.sleep(POLL_S)
            await self._quota.flush()


def allowances_of(spec: GatewaySpec) -> Allowances:
    """The authority over quotas that knows what the ledger of `spec` knows. Called where the
    cluster has its one; raises ServingError, SpecError."""
    return Allowances(LedgerPast(Store(spec.store)))


def spool_folder(spec: GatewaySpec, store: Store) -> Path:
    """Where usage rows wait while the store is away."""
    if spec.spool is not None:
        return Path(spec.spool)
    if store.file is not None:
        return store.file.with_name(store.file.name + ".spool")
    return Path.home() / ".rayline" / "spool"


def _is_this_machine_alone(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
