"""Hearsay: what replicas and gateways said last. All of it is said again within a second."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping

from rayline.serving.director.fleet import (
    FORGET_S,
    Fleet,
    GatewayReport,
    Known,
    ReplicaAddress,
    ReplicaReport,
    picture,
)
from rayline.serving.director.served_model import ServedModel
from rayline.serving.wire import Load

_DROP_S = 10 * FORGET_S


class Hearsay:
    """Kept by the director. Clocks are monotonic seconds."""

    def __init__(self) -> None:
        self._replicas: dict[str, tuple[float, ReplicaReport]] = {}
        self._held: dict[str, tuple[float, Mapping[str, int]]] = {}
        self._told: dict[str, tuple[float, frozenset[str]]] = {}

    def hear_replica(self, report: ReplicaReport) -> None:
        """A replica is up, and so busy."""
        self._replicas[report.address.replica] = (time.monotonic(), report)

    def hear_leaving(self, replica: str) -> None:
        """A replica takes no more requests."""
        self._replicas.pop(replica, None)

    def hear_gateway(self, report: GatewayReport, models: Mapping[str, ServedModel]) -> None:
        """What a gateway holds, and what it has measured."""
        now_s = time.monotonic()
        self._held[report.gateway] = (now_s, report.held)
        for felt in report.felt:
            served = models.get(felt.model)
            if served is not None and felt.version in served.watches:
                watch = served.watches[felt.version]
                watch.hear(report.gateway, felt.measured, felt.unanswered_ms, now_s)

    def answer(self, gateway: str, known: Mapping[str, Known]) -> Fleet:
        """What a gateway is told."""
        now_s = time.monotonic()
        fleet = picture(known, self._replicas, now_s)
        self._told[gateway] = (now_s, frozenset(fleet.models))
        return fleet

    def is_told(self, model: str) -> bool:
        """Whether every gateway knows the model; False while none has asked."""
        now_s = time.monotonic()
        fresh = [told for at_s, told in self._told.values() if now_s - at_s <= FORGET_S]
        return bool(fresh) and all(model in told for told in fresh)

    def reports(self, model: str) -> dict[int, list[ReplicaReport]]:
        """What the replicas of a model that write answers said last, by version."""
        found: dict[int, list[ReplicaReport]] = {}
        for report in self._of(model):
            if report.address.role != "prefill":
                found.setdefault(report.served.version, []).append(report)
        return found

    def prefill(self, model: str) -> Mapping[int, int]:
        """How many replicas of a model compute prompts for them, by version."""
        of = [one for one in self._of(model) if one.address.role == "prefill"]
        return Counter(one.served.version for one in of)

    def _of(self, model: str) -> list[ReplicaReport]:
        now_s = time.monotonic()
        heard = self._replicas.values()
        fresh = [report for heard_s, report in heard if now_s - heard_s <= FORGET_S]
        return [report for report in fresh if report.served.model == model]

    def loads(self, model: str) -> dict[int, list[Load]]:
        """How busy each replica of a model is, by version."""
        found = self.reports(model)
        return {number: [one.load for one in reports] for number, reports in found.items()}

    def held(self, model: str) -> int:
        """Requests for a model that gateways hold."""
        now_s = time.monotonic()
        heard = self._held.values()
        return sum(held.get(model, 0) for at_s, held in heard if now_s - at_s <= FORGET_S)

    def address(self, model: str, version: int | None) -> ReplicaAddress | None:
        """A replica of a version that writes answers; None where none is up."""
        reports = [] if version is None else self.reports(model).get(version, [])
        return reports[0].address if reports else None

    def forget(self) -> None:
        """Drop whoever has been silent for long."""
        now_s = time.monotonic()
        for heard in (self._replicas, self._held, self._told):
            for name in [one for one, (at_s, _) in heard.items() if now_s - at_s > _DROP_S]:
                del heard[name]
