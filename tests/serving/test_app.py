"""Which deployments have the same replicas."""

from __future__ import annotations

from pathlib import Path

import pytest

from rayline.serving.app import revision
from rayline.spec import ServeSpec


@pytest.fixture
def spec(tmp_path: Path) -> ServeSpec:
    (tmp_path / "config.json").write_text("{}")
    few = {"max_ongoing_requests": 8, "scale": {"target_ongoing_requests": 8}}
    return ServeSpec.parse({"name": "bot", "model": {"directory": str(tmp_path)}, **few})


def test_what_is_around_replicas_makes_no_others(spec):
    around = {"scale.max_replicas": 3, "gateway.port": 9000, "rollout.bake_s": 9}
    assert revision(spec) == revision(spec.changed(around))
    adapter = {"name": "a", "source": {"directory": "b"}}
    room = spec.changed({"engine.max_adapters": 1})
    assert revision(room) == revision(room.changed({"engine.adapters": [adapter]}))


@pytest.mark.parametrize(
    "change", [{"engine.seed": 1}, {"max_ongoing_requests": 9}, {"drain_s": 9}, {"name": "other"}]
)
def test_what_replicas_are_made_of_makes_others(spec, change):
    assert revision(spec) != revision(spec.changed(change))


def test_a_file_that_changes_makes_others(spec):
    before = revision(spec)
    Path(spec.model.directory, "config.json").write_text('{"a": 1}')
    assert revision(spec) != before
