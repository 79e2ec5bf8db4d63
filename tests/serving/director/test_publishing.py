"""Adapters of a served model: who is told of them, and what gateways and status make of it."""

from __future__ import annotations

import pytest

from rayline.errors import SpecError
from rayline.serving.director.blueprint import Blueprint
from rayline.serving.director.fleet import (
    Fleet,
    Known,
    ReplicaAddress,
    ReplicaReport,
    Served,
    picture,
)
from rayline.serving.director.served_model import ServedModel, specs_beside
from rayline.serving.director.status import AdapterStatus, model_status
from rayline.serving.rollout import transitions
from rayline.serving.rollout.choosing import Weights, choose
from rayline.serving.rollout.release import Release
from rayline.serving.rollout.version import Asked
from rayline.serving.wire import Load
from rayline.spec import AdapterSpec, RequestLimits, ServeSpec


def adapter(name: str) -> AdapterSpec:
    return AdapterSpec.parse({"name": name, "source": {"run": "9f2c61d0"}})


LEGAL = adapter("legal")


def deploy(model: ServedModel, fingerprint: str, *adapters: AdapterSpec) -> int:
    engine = {"max_adapters": 1, "adapters": [one.model_dump(mode="json") for one in adapters]}
    tree = {"name": "chat", "model": {"directory": "models/a"}, "engine": engine}
    blueprint = Blueprint(ServeSpec.parse(tree), "cpu", fingerprint)
    return model.begin(Asked(fingerprint, "directory:models/a"), blueprint, 0.0)[1]


@pytest.fixture
def model() -> ServedModel:
    """One whose first version serves."""
    begun = ServedModel(Release("chat"), {})
    deploy(begun, "1")
    begun.apply(transitions.ready(begun.release, 1, 1.0))
    return begun


def published(model: ServedModel) -> dict[int, list[str]]:
    return {
        number: [one.name for one in blueprint.spec.engine.adapters]
        for number, blueprint in model.blueprints.items()
    }


def test_an_adapter_is_published_with_every_version_that_answers(model):
    deploy(model, "2")
    changed = model.with_adapter(LEGAL, ())
    assert published(model) == {1: [], 2: []}
    model.blueprints |= changed
    assert published(model) == {1: ["legal"], 2: ["legal"]}
    with pytest.raises(SpecError, match="every place is taken: legal"):
        model.with_adapter(adapter("art"), ())
    model.blueprints |= model.without_adapter("legal")
    assert published(model) == {1: [], 2: []}


def test_another_list_of_adapters_is_no_other_version(model):
    assert deploy(model, "1", LEGAL) == 1
    assert model.release.canary is None
    assert published(model) == {1: ["legal"]}


def test_an_adapter_has_no_name_that_is_anothers(model):
    other = ServeSpec.parse({"name": "legal", "model": {"directory": "models/b"}})
    with pytest.raises(SpecError, match="legal answers to it already"):
        model.with_adapter(LEGAL, [other])
    beside = {"chat": model}
    assert [one.name for one in specs_beside("legal", beside)] == ["chat"]
    assert specs_beside("chat", beside) == []


def report(replica: str, version: int, *adapters: str, **failures: str) -> ReplicaReport:
    return ReplicaReport(
        served(version, *adapters),
        ReplicaAddress(replica, "127.0.0.1", 1, "", 8),
        Load(),
        adapters,
        failures,
    )


def served(version: int, *adapters: str) -> Served:
    return Served("chat", version, 64, f"r{version}", RequestLimits(), 0, adapters)


def test_status_says_which_replicas_have_an_adapter_and_why_others_do_not(model):
    deploy(model, "1", LEGAL)
    reports = {1: [report("a", 1, "legal"), report("b", 1, legal="the bucket is away")]}
    (version,) = model_status(model, reports, {}, held=0, events=()).versions
    assert version.adapters == (AdapterStatus("legal", "run:9f2c61d0", 1, "the bucket is away"),)


def fleet(weights: Weights, *versions: Served, **reports: ReplicaReport) -> Fleet:
    heard = {name: (0.0, one) for name, one in reports.items()}
    return picture({"chat": Known(weights, versions, 5.0)}, heard, 1.0)


def test_an_adapter_is_an_offer_of_the_replicas_that_have_loaded_it():
    found = fleet(
        Weights("chat", stable=1),
        served(1, "legal", "art"),
        a=report("a", 1, "legal"),
        b=report("b", 1),
    )
    assert sorted(found.models) == ["art", "chat", "legal"]
    offer = found.models["legal"]
    assert (offer.adapter, offer.shown.model, offer.hold_s) == ("legal", "chat", 5.0)
    assert [at.replica for one in offer.variants for at in one.replicas] == ["a"]
    # Known before it is loaded: requests wait for it as they do for a replica.
    assert [one.replicas for one in found.models["art"].variants] == [()]
    assert [at.replica for at in found.models["chat"].variants[0].replicas] == ["a", "b"]


@pytest.mark.parametrize(
    ("percent", "first", "second", "chosen"),
    [
        (50, ("legal",), ("legal",), {1, 2}),
        (50, ("legal",), (), {1}),
        (50, (), ("legal",), {2}),
        (0, (), ("legal",), None),
        (0, ("legal",), (), {1}),
    ],
)
def test_versions_without_an_adapter_are_not_asked_for_it(percent, first, second, chosen):
    weights = Weights("chat", stable=1, canary=2, percent=percent)
    found = fleet(weights, served(1, *first), served(2, *second)).models.get("legal")
    if chosen is None:
        assert found is None
        return
    draws = [number / 100 for number in range(100)]
    assert {choose(found.weights, None, draw) for draw in draws} == chosen


def test_a_model_goes_before_an_adapter_of_its_name():
    found = fleet(Weights("chat", stable=1), served(1, "chat"))
    assert found.models["chat"].adapter is None
