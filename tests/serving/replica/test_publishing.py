"""A replica follows what is published; the engine only notes what it is told."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import pytest

from rayline.errors import SpecError
from rayline.models.tiny import write_tiny_model
from rayline.planner import read_model_shape
from rayline.serving.replica import publishing
from rayline.serving.replica.publishing import Publishing
from rayline.serving.wire import Engine
from rayline.spec import AdapterSpec, ServeSpec
from support.adapters import write_adapter


@dataclass
class Noting:
    """The part of an engine that adapters are told to."""

    said: list[str] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)
    refuses: str = ""

    async def add_adapter(self, name: str, folder: Path) -> None:
        if name == self.refuses:
            raise SpecError(f"adapter {name}", "vLLM does not load it")
        self.said.append(f"+{name}")
        self.folders.append(folder)

    async def remove_adapter(self, name: str) -> None:
        self.said.append(f"-{name}")


def adapter(name: str, folder: Path | str = "adapters/x") -> AdapterSpec:
    return AdapterSpec.parse({"name": name, "source": {"directory": str(folder)}})


def follower(noting: Noting, **fields: object) -> Publishing:
    tree = {"name": "bot", "model": {"directory": "m"}, "rehearsal": {}, **fields}
    tree = {key: value for key, value in tree.items() if value is not None}
    return Publishing(cast("Engine", noting), ServeSpec.parse(tree))


def test_what_is_not_wanted_goes_before_what_is_comes():
    engine = Noting()
    following = follower(engine)
    legal, medical, newer = adapter("legal"), adapter("medical"), adapter("legal", "adapters/new")
    asyncio.run(following.follow((legal, medical)))
    asyncio.run(following.follow((legal, medical)))
    assert engine.said == ["+legal", "+medical"]
    asyncio.run(following.follow((newer, adapter("art"))))
    # The one that is replaced answers until the new one can.
    assert engine.said[2:] == ["-medical", "+legal", "+art"]
    assert following.names == ("legal", "art")


def test_one_that_does_not_load_holds_up_nothing_and_is_tried_again(monkeypatch):
    engine = Noting(refuses="legal")
    following = follower(engine)
    wanted = (adapter("legal"), adapter("art"))
    asyncio.run(following.follow(wanted))
    assert following.names == ("art",)
    assert "vLLM does not load it" in following.failures["legal"]
    engine.refuses = ""
    asyncio.run(following.follow(wanted))
    assert following.names == ("art",)
    monkeypatch.setattr(publishing, "_RETRY_S", 0.0)
    asyncio.run(following.follow(wanted))
    assert following.names == ("art", "legal")
    assert following.failures == {}


def test_a_failure_is_forgotten_with_its_adapter():
    following = follower(Noting(refuses="legal"))
    asyncio.run(following.follow((adapter("legal"),)))
    asyncio.run(following.follow(()))
    assert following.failures == {}


@pytest.mark.parametrize("pickled", [False, True])
def test_the_engine_gets_a_checked_folder_or_none(tmp_path, monkeypatch, pickled):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    model = write_tiny_model(tmp_path / "model", layers=1)
    folder = write_adapter(tmp_path / "legal", read_model_shape(model))
    if pickled:
        (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    engine = Noting()
    fields = {"model": {"directory": str(model)}, "rehearsal": None, "engine": {"max_adapters": 1}}
    following = follower(engine, **fields)
    asyncio.run(following.follow((adapter("legal", folder),)))
    if pickled:
        assert "adapter_model.bin" in following.failures["legal"]
        assert engine.folders == []
        return
    (given,) = engine.folders
    assert given.parent == tmp_path / "home" / ".cache" / "rayline" / "adapters"
