"""What replicas and gateways tell the director, and the picture it gives back: plain values.

Everything is soft: a replica says every second where it is, a gateway asks every half second what
there is. Whoever falls silent is forgotten, and a director that was started anew knows all of it
within a second.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from rayline.serving.wire import Load
from rayline.spec import RequestLimits

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


@dataclass(frozen=True, slots=True)
class ReplicaReport:
    """What a replica says of itself."""

    served: Served
    address: ReplicaAddress
    load: Load


@dataclass(frozen=True, slots=True)
class Variant:
    """One version of a model with the replicas that answer for it."""

    served: Served
    weight: float
    """Share of the model's requests, 0 to 1."""
    replicas: tuple[ReplicaAddress, ...]


@dataclass(frozen=True, slots=True)
class Fleet:
    """All that is served, by model id."""

    models: dict[str, tuple[Variant, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class GatewayReport:
    """What a gateway says when it asks."""

    gateway: str
    held: dict[str, int] = field(default_factory=dict)
    """By model: requests that wait because no replica takes them."""


def picture(reports: dict[str, tuple[float, ReplicaReport]], now_s: float) -> Fleet:
    """The fleet as the newest reports have it. `reports`: by replica, with the time of each."""
    found: dict[str, dict[int, list[ReplicaReport]]] = {}
    for heard_s, report in reports.values():
        if now_s - heard_s <= FORGET_S:
            served = report.served
            found.setdefault(served.model, {}).setdefault(served.version, []).append(report)
    return Fleet(
        {
            model: tuple(
                Variant(
                    served=same[0].served,
                    weight=1.0 if version == max(versions) else 0.0,
                    replicas=tuple(report.address for report in same),
                )
                for version, same in sorted(versions.items())
            )
            for model, versions in found.items()
        }
    )
