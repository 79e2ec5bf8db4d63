"""What replicas and gateways tell the director, and the picture it gives back: plain values.

Everything is soft: a replica says every second where it is, a gateway asks every half second what
there is. Whoever falls silent is forgotten, and a director that was started anew knows all of it
within a second.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from rayline.serving.rollout.choosing import Weights
from rayline.serving.rollout.measured import Measured
from rayline.serving.wire import Load
from rayline.spec import RequestLimits, Role

REPORT_PERIOD_S = 1.0
"""How often a replica says where it is and how busy."""
SYNC_PERIOD_S = 0.5
"""How often a gateway asks: a rollback or a new replica is everywhere after that."""
FORGET_S = 5.0
"""A replica that has been silent for so long is no longer handed out. Gateways that are connected
to it keep it as long as it answers."""


@dataclass(frozen=True, slots=True)
class ReplicaAddress:
    """Where one replica listens, and what a gateway has to know to use it."""

    replica: str
    """Unique for each life of a replica."""
    host: str
    port: int
    secret: str
    """What a caller says first."""
    max_ongoing_requests: int
    """Requests that it accepts at once, of all gateways together."""
    role: Role | None = None
    """Which half of an answer it computes; None: all of it."""


@dataclass(frozen=True, slots=True)
class Served:
    """One version of a model, as a replica knows itself."""

    model: str
    """The id that clients send."""
    version: int
    max_model_len: int
    """Longest prompt and answer together, in tokens."""
    revision: str
    """Fingerprint of what is deployed."""
    limits: RequestLimits
    """Of one request."""
    created_s: int
    """Unix time at which the model was written; 0 where that is not known."""
    adapters: tuple[str, ...] = ()
    """Names of the adapters that are published with it."""
    split_from: int | None = None
    """Tokens of a prompt from which on another replica computes it; None: none does."""


@dataclass(frozen=True, slots=True)
class ReplicaReport:
    """What a replica says of itself."""

    served: Served
    address: ReplicaAddress
    load: Load
    adapters: tuple[str, ...] = ()
    """Names of those that it has loaded."""
    failures: Mapping[str, str] = field(default_factory=dict)
    """Why it has not loaded others, by name."""


@dataclass(frozen=True, slots=True)
class Variant:
    """One version of a model with the replicas that answer for it; there may be none just now."""

    served: Served
    replicas: tuple[ReplicaAddress, ...]
    prefill: tuple[ReplicaAddress, ...] = ()
    """Those that compute prompts for them."""


@dataclass(frozen=True, slots=True)
class Offer:
    """One model that is served."""

    weights: Weights
    """Who of its versions gets which share."""
    variants: tuple[Variant, ...]
    """Versions that answer, or did and will again; oldest first."""
    hold_s: float | None = None
    """How long a request is held while no replica takes it; None leaves it to the gateway."""
    adapter: str | None = None
    """Set where it is an adapter of the model: only these replicas have it, of a version's."""

    @property
    def shown(self) -> Served:
        """What is told of the model where no version was chosen yet: what its stable one is."""
        served = [one.served for one in self.variants]
        return next((one for one in served if one.version == self.weights.stable), served[-1])


@dataclass(frozen=True, slots=True)
class Fleet:
    """All that is served, by the id that clients send: models and their adapters."""

    models: dict[str, Offer] = field(default_factory=dict)
    leaving: frozenset[str] = frozenset()
    """Names of what is being taken away: nothing new is begun, and what is begun ends."""


@dataclass(frozen=True, slots=True)
class Felt:
    """What a gateway has measured of one version since it last said so."""

    model: str
    version: int
    measured: Measured
    unanswered_ms: tuple[float, ...] = ()
    """How long each request that has no token yet has waited, now."""


@dataclass(frozen=True, slots=True)
class GatewayReport:
    """What a gateway says when it asks."""

    gateway: str
    held: dict[str, int] = field(default_factory=dict)
    """By model: requests that wait because no replica takes them."""
    felt: tuple[Felt, ...] = ()


@dataclass(frozen=True, slots=True)
class Known:
    """What the director knows of a model itself, whichever replicas are up."""

    weights: Weights
    served: tuple[Served, ...]
    """Its versions that answer, oldest first."""
    hold_s: float
    leaving: frozenset[str] = frozenset()
    """Its name and those of its adapters, while its last answers end."""


def picture(
    known: Mapping[str, Known], reports: Mapping[str, tuple[float, ReplicaReport]], now_s: float
) -> Fleet:
    """The fleet as the newest reports have it. `reports`: by replica, with the time of each. Of a
    model that is not `known`, because it was deployed by a config file of Serve's, the newest
    version gets everything."""
    found: dict[str, dict[int, list[ReplicaReport]]] = {}
    for heard_s, report in reports.values():
        if now_s - heard_s <= FORGET_S:
            served = report.served
            found.setdefault(served.model, {}).setdefault(served.version, []).append(report)
    offers = {
        model: Offer(
            weights=one.weights,
            variants=tuple(_variant(served, found.get(model, {})) for served in one.served),
            hold_s=one.hold_s,
        )
        for model, one in known.items()
        if one.served
    }
    for model, versions in found.items():
        if model not in known:
            offers[model] = Offer(
                weights=Weights(model, stable=max(versions)),
                variants=tuple(
                    _variant(versions[number][0].served, versions) for number in sorted(versions)
                ),
            )
    having = {replica: report.adapters for replica, (_, report) in reports.items()}
    adapters = {
        name: offer
        for one in offers.values()
        for name, offer in _adapters(one, having)
        if name not in offers
    }
    leaving = frozenset[str]().union(*(one.leaving for one in known.values()))
    return Fleet(offers | adapters, leaving)


def _adapters(offer: Offer, having: Mapping[str, tuple[str, ...]]) -> Iterator[tuple[str, Offer]]:
    """Each adapter of a model as an offer of its own, with those of the versions that it is
    published with, and of their replicas those that have loaded it (`having`, by replica)."""
    for name in sorted({name for one in offer.variants for name in one.served.adapters}):
        variants = [one for one in offer.variants if name in one.served.adapters]
        weights = _only(offer.weights, {one.served.version for one in variants})
        if weights.stable is None and not weights.percent:
            continue
        yield (
            name,
            Offer(
                weights=weights,
                variants=tuple(
                    Variant(
                        one.served,
                        tuple(at for at in one.replicas if name in having.get(at.replica, ())),
                        tuple(at for at in one.prefill if name in having.get(at.replica, ())),
                    )
                    for one in variants
                ),
                hold_s=offer.hold_s,
                adapter=name,
            ),
        )


def _only(weights: Weights, versions: Collection[int]) -> Weights:
    """The shares of these versions alone."""
    if weights.canary not in versions:
        weights = replace(weights, canary=None, percent=0.0, shadow_percent=0.0)
    return weights if weights.stable in versions else replace(weights, stable=None)


def _variant(served: Served, reports: Mapping[int, Sequence[ReplicaReport]]) -> Variant:
    same = [report.address for report in reports.get(served.version, ())]
    return Variant(
        served,
        replicas=tuple(address for address in same if address.role != "prefill"),
        prefill=tuple(address for address in same if address.role == "prefill"),
    )
