"""What a notebook shows: tables of lists, cards of values, charts. And: specs can be pickled."""

from __future__ import annotations

import inspect
import pickle
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output

import rayline.spec
from rayline import Client, JobSpec
from rayline.actors import JobOutcome
from rayline.errors import SpecError
from rayline.launch import JobStatus
from rayline.launch.finding import Finding
from rayline.sdk.notebook import display, tables
from rayline.sdk.notebook.live_loss import LiveLoss
from rayline.sdk.notebook.loss_chart import loss_chart, thinned
from rayline.sdk.notebook.plan_picture import plan_picture
from rayline.serving import Endpoint
from rayline.serving.access.keys import ApiKey, IssuedKey
from rayline.spec import Document, EvalReport, ExportReport, ModelRef, StepReport, TrainResult
from rayline.tracking import MetricPoint, ModelSummary, RunEvent, RunRecord, RunSummary
from rayline.tuning.outcome import SearchOutcome, TrialOutcome

REPOSITORY = Path(__file__).resolve().parents[2]
NOW = datetime(2026, 11, 27, tzinfo=UTC)
RUN = RunSummary("0a1b", "<b>run</b>", "finished", NOW, NOW, None, 6, 2.5, "data 2")
EXPORT = ExportReport("runs/x", 6, 100, 1e-6, 1e-3, 64, {})
RESULT = TrainResult(1, 6, True, "runs/x/checkpoints/step-6", EXPORT, (2**30,))


@pytest.fixture(scope="module")
def shell() -> Iterator[InteractiveShell]:
    yield InteractiveShell.instance()
    InteractiveShell.clear_instance()


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> JobSpec:
    monkeypatch.chdir(REPOSITORY)
    return JobSpec.load("jobs/specs/tiny-3d.yaml")


def html_of(shell: InteractiveShell, value: object) -> str:
    formatted, _ = shell.display_formatter.format(value)
    assert "text/html" in formatted, type(value)
    html: str = formatted["text/html"]
    ET.fromstring(f"<page>{html}</page>")
    return html


def test_lists_are_tables_and_stay_lists() -> None:
    shown = tables.runs([RUN])
    assert shown == [RUN]
    assert pickle.loads(pickle.dumps(shown)) == [RUN]
    html = shown._repr_html_()
    assert "&lt;b&gt;run&lt;/b&gt;" in html
    assert "2.5000" in html
    model = ModelSummary("bot", 2, {"champion": 1}, NOW, "0a1b")
    assert "champion -&gt; 1" in tables.models([model])._repr_html_()
    assert "60000" in tables.keys([ApiKey("k1", "mine", limits=limits(60_000))])._repr_html_()
    assert "chmod" in tables.findings([Finding("token", "warning", "open", "chmod")])._repr_html_()
    assert tables.usage([], "day")._repr_html_().startswith("<table>")


def limits(tokens: int) -> rayline.spec.Limits:
    return rayline.spec.Limits(tokens_per_min=tokens)


def values(job: JobSpec) -> dict[str, tuple[object, str]]:
    """A value of each kind that draws itself, and words that stand in its card."""
    trial = TrialOutcome(0, {"optim.lr": 0.1}, "finished", {"loss": 2.0}, 9, "0a1b")
    points = [MetricPoint(step, 4.0 / step, 0) for step in range(1, 7)]
    record = RunRecord(RUN, {}, {}, {"loss": points}, [RunEvent(NOW, "fault", "a rank died")])
    issued = IssuedKey(ApiKey("k1", "mine"), "rl-the-secret")
    return {
        "plan": (Client().plan(job), "<svg"),
        "outcome": (
            JobOutcome("0a1b", RESULT, ModelRef(registry="a@1"), Path("x")),
            "registry:a@1",
        ),
        "search": (
            SearchOutcome("9f", [trial], "best.yaml", [], "report.html", "all trials are done"),
            "rayline train best.yaml",
        ),
        "run": (record, "a rank died"),
        "status": (JobStatus("j-1", "failed", "python", "", 3, None, None), "exited with 3"),
        "endpoint": (Endpoint("bot", "http://h/v1", "bot", 1), "rayline chat"),
        "key": (issued, "k1"),
        "spec": (job, "sequence_tokens: 128"),
    }


def test_every_kind_of_value_has_a_card_that_can_be_drawn(
    shell: InteractiveShell, job: JobSpec
) -> None:
    Client()
    for value, words in values(job).values():
        assert words in html_of(shell, value)


def test_a_secret_is_not_kept_in_the_notebook(shell: InteractiveShell) -> None:
    Client()
    assert "rl-the-secret" not in html_of(shell, IssuedKey(ApiKey("k1", "m"), "rl-the-secret"))


def test_all_that_is_told_to_ipython_exists() -> None:
    from importlib import import_module

    for module, name in display._SHOWN:
        assert inspect.isclass(getattr(import_module(module), name))


def test_the_fastest_plans_are_drawn(shell: InteractiveShell) -> None:
    found = Client().plans("meta-llama/Llama-3-8B", gpus=8, gpu_type="H100")
    html = html_of(shell, found)
    assert "8 x H100" in html
    assert html.count("<rect") > 8


def test_a_plan_picture_shows_every_worker_once(job: JobSpec) -> None:
    picture = plan_picture(Client().plan(job))
    root = ET.fromstring(picture)
    texts = [each.text or "" for each in root.iter() if each.tag.endswith("text")]
    assert [text for text in texts if text.startswith("rank ")] == [
        "rank 0-1",
        "rank 2-3",
        "rank 4-5",
        "rank 6-7",
    ]
    assert [text for text in texts if text.startswith("stage")][1:] == [
        "stage 0, 2 layers",
        "stage 1, 2 layers",
    ]


@given(
    st.lists(st.tuples(st.integers(1, 10**6), st.floats(allow_nan=True)), max_size=600),
    st.integers(1, 10**6),
)
def test_a_loss_chart_is_a_picture_whatever_the_losses(
    points: list[tuple[int, float]], last_step: int
) -> None:
    root = ET.fromstring(loss_chart(points, points[:3], title="<loss>", last_step=last_step))
    assert root.tag.endswith("svg")
    for line in (each for each in root.iter() if each.tag.endswith("polyline")):
        places = [place.split(",") for place in line.attrib["points"].split()]
        assert all(0 <= float(x) <= 640 and 0 <= float(y) <= 260 for x, y in places)


@given(st.integers(0, 3000), st.integers(2, 400))
def test_thinned_points_keep_both_ends(count: int, most: int) -> None:
    points = [(step, float(step)) for step in range(count)]
    kept = thinned(points, most)
    assert len(kept) == min(count, most)
    assert kept[:1] == points[:1]
    assert kept[-1:] == points[-1:]
    assert kept == sorted(set(kept))


def report(step: int, loss: float, evaluations: tuple[EvalReport, ...] = ()) -> StepReport:
    return StepReport(step, loss, 1.0, 1e-3, 64, 64, 0.1, 0, evaluations=evaluations)


def test_the_chart_is_drawn_anew_in_one_output(shell: InteractiveShell, job: JobSpec) -> None:
    live = LiveLoss(job)
    with capture_output() as captured:
        live(report(1, 4.0))
        live(report(2, 3.0))
        live(report(job.last_step, 2.0, (EvalReport(20, 2.5, 10, 1, 0.1),)))
    first, last = captured.outputs
    assert first.data["text/plain"].startswith("tiny-3d: step 1/20, loss 4.0000")
    assert "validation, step 20: 2.5000" in last.data["text/html"]
    assert last.data["text/html"].count(",", last.data["text/html"].index("points=")) >= 3


def test_outside_of_a_notebook_nothing_is_drawn(job: JobSpec) -> None:
    from rayline.sdk.notebook.live_loss import live_loss

    # IPython in a terminal has no output that could be changed.
    assert live_loss(job) == []


def documents() -> list[type[Document]]:
    return [
        kind
        for _, kind in inspect.getmembers(rayline.spec, inspect.isclass)
        if issubclass(kind, Document)
    ]


def shipped() -> list[Any]:
    found = []
    for file in sorted(REPOSITORY.glob("*/specs/*.yaml")) + sorted(REPOSITORY.glob("serve/*.yaml")):
        found.append(Client().validate(file))
    found += [Client().validate(file) for file in sorted(REPOSITORY.glob("tune/*.yaml"))]
    return found


@pytest.mark.parametrize("kind", documents(), ids=lambda kind: kind.__name__)
def test_every_spec_can_be_pickled(kind: type[Document]) -> None:
    try:
        value = kind.parse({})
    except SpecError:
        value = kind.model_construct()
    again = pickle.loads(pickle.dumps(value))
    assert type(again) is kind
    assert again == value


def test_shipped_specs_are_the_same_after_a_pickle() -> None:
    for spec in shipped():
        again = pickle.loads(pickle.dumps(spec))
        assert again == spec
        assert again.fingerprint() == spec.fingerprint()
