"""Releases survive the process that keeps them."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import func, update

from rayline.serving.access.store import Store
from rayline.serving.director.blueprint import Blueprint, Event
from rayline.serving.director.release_store import SCHEMA, ReleaseStore
from rayline.serving.rollout import transitions
from rayline.serving.rollout.release import Release
from rayline.serving.rollout.version import Asked, Registered
from rayline.spec import ModelRef, ServeSpec

specs = SCHEMA.tables.tables["version_specs"]
blueprint_column = specs.c.blueprint


def blueprint(port: int = 8000) -> Blueprint:
    spec = ServeSpec(name="chat", model=ModelRef(directory="models/a"))
    environment = {"env_vars": {"A": "1"}}
    return Blueprint(spec.changed({"gateway.port": port}), "cpu", "1234", 5, environment)


@pytest.fixture
def address(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/serving.db"


def with_canary() -> Release:
    release = Release("chat")
    for number in (1, 2):
        registered = Registered("bot", number, "champion", "run-7")
        release = transitions.begin(
            release, Asked(str(number), "registry:bot@champion", registered), 10.5, keep=5
        ).release
        release = transitions.ready(release, number, 11.0).release
    return transitions.share(release, 12.5, 12.0).release


def test_a_release_comes_back_as_it_was(address: str) -> None:
    release = with_canary()
    ReleaseStore(Store(address)).keep(release, Event(12.0, "x"), {1: blueprint(), 2: blueprint(2)})
    other = ReleaseStore(Store(address))
    assert other.releases() == [release]
    assert other.blueprints(release) == {1: blueprint(), 2: blueprint(2)}
    assert other.events("chat", 5) == (Event(12.0, "x"),)


def test_what_is_written_again_is_replaced(address: str) -> None:
    store, release = ReleaseStore(Store(address)), with_canary()
    store.keep(release, None, {1: blueprint(1), 2: blueprint(2)})
    finished = transitions.finish(release, 13.0).release
    store.keep(finished, Event(13.0, "done"), {2: blueprint(3)})
    store.keep(Release("other"), Event(14.0, "of another"))
    assert finished in store.releases()
    assert len(store.releases()) == 2
    assert store.blueprints(finished) == {1: blueprint(1), 2: blueprint(3)}


def test_only_the_newest_events_are_read_oldest_first(address: str) -> None:
    store = ReleaseStore(Store(address))
    for second in range(6):
        store.keep(Release("chat"), Event(second, f"event {second}"))
    assert [event.at_s for event in store.events("chat", 3)] == [3, 4, 5]


def test_blueprints_of_forgotten_versions_go(address: str) -> None:
    store, release = ReleaseStore(Store(address)), with_canary()
    store.keep(release, None, {1: blueprint(), 2: blueprint()})
    store.keep(Release("chat", release.versions[1:]), None)
    assert list(store.blueprints(release)) == [2]


def test_a_blueprint_of_another_release_is_missing_and_harms_nothing(address: str) -> None:
    store, release = ReleaseStore(Store(address)), with_canary()
    store.keep(release, None, {1: blueprint(), 2: blueprint()})
    with Store(address).writing() as connection:
        strange = blueprint_column.like('%"name":"chat"%')
        text = func.replace(blueprint_column, '"name":"chat"', '"called":"chat"')
        number_is_one = specs.c.number == 1
        changed = update(specs).where(strange & number_is_one).values(blueprint=text)
        assert connection.execute(changed).rowcount == 1
    assert list(store.blueprints(release)) == [2]
