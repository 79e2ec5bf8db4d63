"""What is heard, what is told to gateways, and what the cluster has room for."""

from __future__ import annotations

import pytest

from rayline.serving.director import fleet, hearsay
from rayline.serving.director.blueprint import Blueprint
from rayline.serving.director.fleet import (
    Felt,
    GatewayReport,
    Known,
    ReplicaAddress,
    ReplicaReport,
    Served,
    picture,
)
from rayline.serving.director.hearsay import Hearsay
from rayline.serving.director.served_model import ServedModel
from rayline.serving.director.surroundings import Surroundings
from rayline.serving.rollout.choosing import Weights
from rayline.serving.rollout.measured import Measured
from rayline.serving.rollout.release import Release
from rayline.serving.wire import Load
from rayline.spec import RequestLimits, ServeSpec


def served(version: int, model: str = "chat") -> Served:
    return Served(model, version, 64, f"r{version}", RequestLimits(), 0)


def report(replica: str, version: int = 1, model: str = "chat", running: int = 0) -> ReplicaReport:
    address = ReplicaAddress(replica, "127.0.0.1", 1, "secret", 64)
    return ReplicaReport(served(version, model), address, Load(running=running))


def test_a_model_without_a_replica_is_offered_and_held_for() -> None:
    known = {"chat": Known(Weights("chat", 1), (served(1),), hold_s=90)}
    offer = picture(known, {}, 0).models["chat"]
    assert (offer.hold_s, offer.variants[0].replicas) == (90, ())
    assert offer.shown == served(1)


def test_only_versions_that_answer_are_offered_each_with_its_replicas() -> None:
    known = {"chat": Known(Weights("chat", 1, canary=2, percent=10), (served(1), served(2)), 9)}
    reports = {one: (0.0, report(one, version)) for one, version in [("a", 1), ("b", 2), ("c", 3)]}
    offer = picture(known, reports, 1.0).models["chat"]
    assert [[one.replica for one in variant.replicas] for variant in offer.variants] == [
        ["a"],
        ["b"],
    ]
    assert picture({"chat": Known(Weights("chat", None), (), 9)}, {}, 0).models == {}


def test_what_a_config_file_of_serves_deployed_is_offered_as_it_is() -> None:
    reports = {"a": (0.0, report("a", 1, "other")), "b": (0.0, report("b", 2, "other"))}
    offer = picture({}, reports, 1.0).models["other"]
    assert offer.weights == Weights("other", 2)
    assert len(offer.variants) == 2
    assert picture({}, reports, fleet.FORGET_S + 1).models == {}


def test_whoever_falls_silent_counts_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    clock_s = 100.0
    monkeypatch.setattr(hearsay.time, "monotonic", lambda: clock_s)
    said = Hearsay()
    said.hear_replica(report("a", running=3))
    said.hear_replica(report("b", 2))
    said.hear_gateway(GatewayReport("g", {"chat": 4}), {})
    assert said.loads("chat") == {1: [Load(running=3)], 2: [Load()]}
    assert said.held("chat") == 4
    assert not said.is_told("chat")
    said.answer("g", {"chat": Known(Weights("chat", 1), (served(1),), 9)})
    assert said.is_told("chat")
    assert not said.is_told("other")
    said.hear_leaving("b")
    assert list(said.loads("chat")) == [1]
    clock_s += fleet.FORGET_S + 1
    assert (said.loads("chat"), said.held("chat"), said.is_told("chat")) == ({}, 0, False)
    clock_s += 1000
    said.forget()
    assert said.address("chat", 1) is None


def test_what_a_gateway_felt_reaches_the_version_that_it_felt_it_of() -> None:
    model = ServedModel(Release("chat"), {})
    model.watch(1)
    felt = Felt("chat", 1, Measured(5, 1), (80.0,)), Felt("chat", 9, Measured(7))
    Hearsay().hear_gateway(GatewayReport("g", felt=felt), {"chat": model})
    assert model.watch(1).measured == Measured(5, 1)
    assert list(model.watches) == [1]


def blueprint(cpus: float) -> Blueprint:
    tree = {"name": "chat", "model": {"directory": "m"}, "cpus_per_replica": cpus}
    return Blueprint(ServeSpec.parse(tree), "cpu", "r1")


def test_room_is_what_nobody_holds_and_nobody_waits_for() -> None:
    around = Surroundings({"CPU": 9.0}, grows=False)
    room = around.room(blueprint(4), starting=1)
    assert room is not None
    assert room.replicas == 1
    assert "12 CPU wanted, 9 CPU free" in room.why
    full = Surroundings({}, grows=False).room(blueprint(4), starting=0)
    assert full is not None
    assert full.replicas == 0
    assert Surroundings({}, grows=True).room(blueprint(4), 0) is None
