"""From data to usage, on a real MLflow: each hop is there, and its address leads to it."""

from __future__ import annotations

import json
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import pytest

from rayline.cli import run as rayline
from rayline.errors import SpecError
from rayline.sdk import Client
from rayline.spec import ExportReport, ModelRef, StepReport, TrackingSpec
from rayline.tracking import (
    Origins,
    Served,
    open_run,
    record_checkpoint,
    record_deployment,
    register_model,
)
from rayline.tracking.lineage import UsageFigures, as_svg, lineage
from rayline.tracking.store import connect
from support.lineage import resolves

Export = tuple[Path, ExportReport]
HOPS = ["data", "run", "checkpoint", "model", "deployment", "usage"]


@pytest.fixture
def run_id(
    tracking: TrackingSpec, report: Callable[[int], StepReport], export: Export, tmp_path: Path
) -> str:
    """A job as the driver runs it: trained, saved, registered as bot@champion, served twice."""
    data = tmp_path / "chats.jsonl"
    data.write_text('{"text": "Otto the heron"}\n')
    origins = Origins(tmp_path, ModelRef(hub="org/base"), training=[str(data)])
    tags = {"rayline.fingerprint": "f00d", "rayline.plan": "data 2"}
    with open_run(tracking, name="demo", params={}, tags=tags, directory=tmp_path) as run:
        run.in_background(*origins.parts)
        for step in (1, 2, 3):
            run.observe(report(step))
        record_checkpoint(run, "runs/demo/checkpoints/step-00000003", "data 2")
        register_model(tracking, run, export[0], "bot", "champion", export[1])
    for number in (1, 2):
        served = Served("bot", 1, "chat", number, f"print-{number}", "champion", stable=True)
        record_deployment(tracking, served)
    return run.run_id


def ledger(folder: Path) -> str:
    """Two requests to version 2 of chat, one to a model that is not of this lineage."""
    from rayline.serving.access.store import Store
    from rayline.serving.access.usage import SCHEMA, UsageRow, write_rows

    store = Store(f"sqlite:///{folder}/serving.db")
    store.ensure(SCHEMA)
    rows = [
        UsageRow(
            request_id=f"{number}",
            at_s=time.time(),
            key_id="k",
            key_name="notebook",
            team=None,
            model="chat" if number < 2 else "other",
            variant="2",
            route="chat",
            prompt_tokens=10,
            cached_tokens=0,
            completion_tokens=5,
            status=200,
            outcome="complete",
            ttft_ms=1.0,
            seconds=0.1,
        )
        for number in range(3)
    ]
    write_rows(store, rows)
    return f"sqlite:///{folder}/serving.db"


def test_every_hop_is_there_and_resolves(
    tracking: TrackingSpec, run_id: str, tmp_path: Path
) -> None:
    client = Client(tracking=tracking, store=ledger(tmp_path))
    found = client.lineage("bot@champion")
    assert [kind for kind in HOPS if found.of_kind(kind)] == HOPS  # type: ignore[arg-type]
    addresses = [node.address for node in found.nodes if node.kind != "usage"]
    assert all(resolves(connect(tracking), address) for address in addresses)
    chain = {(edge.source.partition(":")[0], edge.target.partition(":")[0]) for edge in found.edges}
    assert chain == {
        ("data", "run"),
        ("base", "run"),
        ("run", "checkpoint"),
        ("checkpoint", "model"),
        ("model", "deployment"),
        ("deployment", "usage"),
    }
    (used,) = found.of_kind("usage")
    assert used.name == "2 requests"
    assert used.facts == {"prompt tokens": "20", "completion tokens": "10"}
    first, second = found.of_kind("deployment")
    assert "until" in first.facts
    assert "until" not in second.facts
    # Asked from the run, the same is found.
    around = client.lineage(run_id)
    assert {node.id for node in around.nodes} == {node.id for node in found.nodes}
    assert around.asked == f"run:{run_id}"
    for other in ("bot/1", "bot@1", "models:/bot/1", "registry:bot@latest"):
        assert client.lineage(other) == found
    assert client.lineage(f"run:{run_id}") == around


def test_the_text_is_a_tree_and_the_picture_holds_every_node(
    tracking: TrackingSpec, run_id: str
) -> None:
    found = lineage(tracking, "bot@champion").with_usage([UsageFigures("chat", 1, 7, 100, 50)])
    lines = found.as_text().splitlines()
    kinds = [line.lstrip("└├─│ *").split()[0] for line in lines]
    assert kinds[:6] == ["data", "run", "checkpoint", "model", "deployment", "usage"]
    assert sum("*model" in line for line in lines) == 1
    assert sum("(above)" in line for line in lines) == 1
    tree = found.as_json()
    assert json.loads(json.dumps(tree)) == tree
    drawn = ET.fromstring(as_svg(found))
    space = "{http://www.w3.org/2000/svg}"
    groups = drawn.findall(f"{space}g")
    assert {group.get("id") for group in groups} == {node.id for node in found.nodes}
    assert len(drawn.findall(f"{space}path")) == len(found.edges)
    boxes = [group.find(f"{space}rect") for group in groups]
    corners = {(box.get("x"), box.get("y")) for box in boxes if box is not None}
    assert len(corners) == len(found.nodes)
    assert "prefers-color-scheme" in as_svg(found)
    # What a notebook shows.
    assert found._repr_svg_() == as_svg(found)


def test_a_model_that_began_from_another_leads_back_to_its_data(
    tracking: TrackingSpec, run_id: str, export: Export, tmp_path: Path
) -> None:
    origins = Origins(tmp_path, ModelRef(registry="bot@champion"), training=[])
    with open_run(tracking, name="tuned", params={}, tags={}, directory=tmp_path) as run:
        run.in_background(*origins.parts)
        register_model(tracking, run, export[0], "better", "latest", export[1])
    found = lineage(tracking, "better@latest")
    assert [node.id for node in found.of_kind("model")] == ["model:better/1", "model:bot/1"]
    assert [node.name for node in found.of_kind("data")] == ["chats.jsonl", "hub:org/base"]
    assert not found.of_kind("deployment")


def test_the_verb_says_it_and_draws_it(
    tracking: TrackingSpec, run_id: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["lineage", "bot@champion", "--tracking-uri", tracking.uri, "--json"]
    words += ["--store", ledger(tmp_path), "--svg", str(tmp_path / "out" / "lineage.svg")]
    assert rayline(words) == 0
    tree = json.loads(capsys.readouterr().out)
    assert {node["kind"] for node in tree["nodes"]} == set(HOPS)
    assert (tmp_path / "out" / "lineage.svg").read_text().startswith("<svg")


@pytest.mark.parametrize(
    ("of", "named"), [("bott@champion", "did you mean 'bot'"), ("bot/9", "'9'"), ("0a1b", "0a1b")]
)
def test_what_is_not_there_is_named(
    tracking: TrackingSpec, run_id: str, of: str, named: str
) -> None:
    with pytest.raises(SpecError, match=named):
        lineage(tracking, of)
