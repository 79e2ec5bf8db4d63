"""Runs as the driver records them, read back from a real MLflow."""

from __future__ import annotations

import logging
import math
import sqlite3
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from rayline.errors import InterruptedByUser, SpecError
from rayline.spec import EvalReport, RoutingReport, StepParts, StepReport, TrackingSpec
from rayline.tracking import (
    amend_run,
    list_children,
    list_files,
    list_runs,
    open_run,
    read_curves,
    read_run,
)

Reports = Callable[[int], StepReport]


def test_everything_given_is_read_back(tracking: TrackingSpec, report: Reports) -> None:
    params = {f"optim.field_{number}": number for number in range(230)}
    params |= {"name": "a run", "flag": True, "none": None, "files": '["a"]', "long": "x" * 9000}
    with open_run(
        tracking, name="first", params=params, tags={"rayline.plan": "data 2 x tensor 2"}
    ) as run:
        for step in (1, 2, 3):
            run.observe(report(step))
        run.event("restarted", "worker 1 was killed")
        run.event("resumed", "from step 2")
        run.log_text("steps: 3\n", "best.yaml")
    record = read_run(tracking, run.run_id)
    assert record.summary.status == "finished"
    assert (record.summary.name, record.summary.step) == ("first", 3)
    assert record.summary.loss == pytest.approx(8 / 3)
    assert record.summary.plan == "data 2 x tensor 2"
    assert record.params["optim.field_229"] == "229"
    assert (record.params["flag"], record.params["none"]) == ("true", "null")
    assert len(record.params["long"]) == 6000
    assert [(point.step, point.value) for point in record.metrics["loss"]] == [
        (1, 8.0),
        (2, 4.0),
        (3, pytest.approx(8 / 3)),
    ]
    assert record.metrics["tokens_per_s"][0].value == 200.0
    assert record.metrics["memory_gib"][0].value == 1.0
    assert {"grad_norm", "lr", "system/cpu_utilization_percentage"} <= set(record.metrics)
    assert [(event.kind, event.text) for event in record.events] == [
        ("restarted", "worker 1 was killed"),
        ("resumed", "from step 2"),
    ]
    assert record.tags["rayline.version"]
    assert record.tags["rayline.host"]
    database = Path(tracking.uri.removeprefix("sqlite:///"))
    kept = database.parent / "mlartifacts" / run.run_id / "artifacts" / "best.yaml"
    assert kept.read_text() == "steps: 3\n"


def test_measures_of_a_run_reach_the_store(tracking: TrackingSpec, report: Reports) -> None:
    def evaluated(step: int, loss: float) -> EvalReport:
        return EvalReport(step=step, loss=loss, tokens=90, sequences=4, seconds=0.1)

    parts = StepParts(data_s=0.1, engine_s=0.3, communication_s=0.05, checkpoint_s=0.1)
    with open_run(tracking, name="measured", params={}, tags={}) as run:
        run.observe(
            replace(
                report(1), workers=4, mfu=0.4, evaluations=(evaluated(0, 2.0), evaluated(1, 1.0))
            )
        )
        run.observe(replace(report(2), parts=parts, routing=RoutingReport(1.5, 2.25, 800, 20)))
        run.observe(replace(report(3), evaluations=(evaluated(3, 800.0),)))
        run.summarize(3, {"rank 0 pp0-dp0-cp0-tp0": 2**30, "rank 1 pp0-dp1-cp0-tp0": 3 * 2**30})

    metrics = {
        key: [(point.step, point.value) for point in points]
        for key, points in read_run(tracking, run.run_id).metrics.items()
    }
    assert metrics["val_loss"] == [(0, 2.0), (1, 1.0), (3, 800.0)]
    assert metrics["val_perplexity"][:2] == [(0, math.exp(2.0)), (1, math.e)]
    assert metrics["val_perplexity"][2][1] > 1e300
    assert metrics["tokens_per_s_per_device"] == [(1, 50.0), (2, 250.0), (3, 200.0)]
    assert metrics["mfu"] == [(1, 0.4)]
    assert metrics["routing/max_load"] == [(2, 1.5)]
    assert metrics["routing/balance_loss"] == [(2, 2.25)]
    assert metrics["routing/dropped"] == [(2, 20.0)]
    assert metrics["routing/dropped_fraction"] == [(2, 0.025)]
    assert metrics["time/communication_s"] == [(2, 0.05)]
    assert metrics["time/compute_s"] == [(2, pytest.approx(0.25))]
    assert metrics["time/checkpoint_s"] == [(2, 0.1)]
    assert "time/evaluation_s" not in metrics
    assert metrics["peak_memory_gib"] == [(3, 3.0)]
    database = Path(tracking.uri.removeprefix("sqlite:///"))
    kept = database.parent / "mlartifacts" / run.run_id / "artifacts" / "memory.json"
    assert '"rank 1 pp0-dp1-cp0-tp0": 3221225472' in kept.read_text()


def test_a_thousand_reports_wait_for_no_store_and_all_arrive(
    tracking: TrackingSpec, report: Reports
) -> None:
    run = open_run(tracking, name="long", params={}, tags={})
    database = sqlite3.connect(tracking.uri.removeprefix("sqlite:///"), isolation_level=None)
    database.execute("BEGIN EXCLUSIVE")
    try:
        for step in range(1, 1001):
            run.observe(report(step))
        # The store takes nothing while it is locked, and yet every report was handed over.
        assert run.unsent_rows >= 1000
    finally:
        database.execute("ROLLBACK")
        database.close()
    run.finish("finished")
    assert run.unsent_rows == 0
    assert [point.step for point in read_run(tracking, run.run_id).metrics["loss"]] == list(
        range(1, 1001)
    )


def test_what_the_store_will_never_take_holds_nothing_else_up(
    tracking: TrackingSpec, report: Reports, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with open_run(tracking, name="bad", params={}, tags={}, directory=tmp_path) as run:
        run.observe(report(1))
        run.tag("a key with ? and !", "which MLflow refuses")
        run.log_artifact(tmp_path / "never written")
        run.observe(report(2))
    assert run.unsent_rows == 0
    assert run.failures == 2
    record = read_run(tracking, run.run_id)
    assert [point.step for point in record.metrics["loss"]] == [1, 2]
    assert record.summary.status == "finished"
    assert "a key with ? and ! was not recorded" in caplog.text


def test_a_skipped_step_is_an_event(tracking: TrackingSpec, report: Reports) -> None:
    with open_run(tracking, name="skips", params={}, tags={}) as run:
        run.observe(report(1))
        run.observe(replace(report(2), skipped="the loss is nan (rank 3: loss)"))
    (event,) = read_run(tracking, run.run_id).events
    assert event.kind == "skipped"
    assert event.text == "step 2: the loss is nan (rank 3: loss)"


def test_a_loss_that_is_no_number_is_recorded(tracking: TrackingSpec, report: Reports) -> None:
    with open_run(tracking, name="nan", params={}, tags={}) as run:
        run.observe(replace(report(1), loss=math.nan, grad_norm=math.inf))
        run.observe(report(2))
    losses = read_run(tracking, run.run_id).metrics["loss"]
    assert math.isnan(losses[0].value)
    assert losses[1].value == 4.0


def test_children_name_their_parent_and_lists_are_newest_first(tracking: TrackingSpec) -> None:
    with open_run(tracking, name="search", params={}, tags={}) as parent:
        for number in (1, 2):
            with open_run(
                tracking, name=f"trial-{number}", params={}, tags={}, parent_run_id=parent.run_id
            ):
                pass
    runs = list_runs(tracking, limit=10)
    assert [run.name for run in runs] == ["trial-2", "trial-1", "search"]
    assert [run.parent_run_id for run in runs] == [parent.run_id, parent.run_id, None]
    assert len(list_runs(tracking, limit=2)) == 2
    children = list_runs(tracking, parent_run_id=parent.run_id)
    assert [run.name for run in children] == ["trial-2", "trial-1"]


def test_children_curves_and_files_are_read_by_themselves(
    tracking: TrackingSpec, report: Reports
) -> None:
    with open_run(tracking, name="search", params={}, tags={}) as search:
        search.log_text("x", "report.html")
        for number in range(2):
            with open_run(
                tracking,
                name=f"trial-{number}",
                params={"lr": number},
                tags={"rayline.trial": "finished"},
                parent_run_id=search.run_id,
            ) as trial:
                trial.observe(report(1))
                trial.observe(report(2))
                trial.event("straggler", "rank 1")
    children = list_children(tracking, search.run_id)
    assert [one.summary.name for one in children] == ["trial-0", "trial-1"]
    assert [one.params["lr"] for one in children] == ["0", "1"]
    assert children[0].tags["rayline.trial"] == "finished"
    assert not [key for key in children[0].tags if key.startswith("rayline.event.")]
    assert children[0].events[0].text == "rank 1"
    curves = read_curves(tracking, children[1].summary.run_id, ["loss", "none"])
    assert [(point.step, point.value) for point in curves["loss"]] == [(1, 8.0), (2, 4.0)]
    assert curves["none"] == []
    assert list_files(tracking, search.run_id) == ["report.html"]


@pytest.mark.parametrize(
    ("raised", "status"),
    [
        (ValueError("boom"), "failed"),
        (InterruptedByUser("job", "Ctrl-C"), "interrupted"),
        (KeyboardInterrupt(), "interrupted"),
    ],
)
def test_an_error_closes_the_run_as_what_it_was(
    tracking: TrackingSpec, raised: BaseException, status: str
) -> None:
    with (
        pytest.raises(type(raised)),
        open_run(tracking, name="ends", params={}, tags={}) as run,
    ):
        raise raised
    assert read_run(tracking, run.run_id).summary.status == status


def test_a_run_goes_on_under_its_id(tracking: TrackingSpec, report: Reports) -> None:
    with open_run(tracking, name="job", params={"steps": 4, "seed": 0}, tags={}) as run:
        run.observe(report(1))
        run.event("stopped", "after step 1")
    with open_run(
        tracking, name="job", params={"steps": 9, "seed": 0}, tags={}, run_id=run.run_id
    ) as again:
        again.observe(report(2))
        again.event("resumed", "at step 2")
        assert read_run(tracking, run.run_id).summary.status == "running"
    record = read_run(tracking, run.run_id)
    assert again.run_id == run.run_id
    assert record.params == {"steps": "4", "seed": "0"}
    assert record.tags["rayline.resumed_with.steps"] == "9"
    assert [point.step for point in record.metrics["loss"]] == [1, 2]
    assert [event.kind for event in record.events] == ["stopped", "resumed"]


def test_no_thread_outlives_its_run(tracking: TrackingSpec) -> None:
    with open_run(tracking, name="threads", params={}, tags={}):
        assert any(thread.name == "tracking-recorder" for thread in threading.enumerate())
    assert not any(thread.name == "tracking-recorder" for thread in threading.enumerate())


def test_a_store_that_goes_away_is_said_at_the_end_and_never_raised(
    tracking: TrackingSpec, report: Reports, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = open_run(tracking, name="cut off", params={}, tags={}, directory=tmp_path / "job")
    database = Path(tracking.uri.removeprefix("sqlite:///"))
    database.rename(database.with_suffix(".away"))
    database.mkdir()
    with caplog.at_level(logging.WARNING, logger="rayline"):
        for step in range(1, 301):
            run.observe(report(step))
        run.log_text("x", "note.txt")
        run.finish("finished")
        run.finish("failed")
    assert run.unsent_rows >= 300 * 6
    said = [record.getMessage() for record in caplog.records if "tracking" in record.name]
    assert sum("training goes on" in text for text in said) == 1
    assert sum("does not have" in text and run.run_id in text for text in said) == 1


def test_a_store_that_comes_back_gets_everything(
    tracking: TrackingSpec, report: Reports, tmp_path: Path
) -> None:
    run = open_run(tracking, name="back", params={}, tags={}, directory=tmp_path / "job")
    database = Path(tracking.uri.removeprefix("sqlite:///"))
    away = database.rename(database.with_suffix(".away"))
    database.mkdir()
    for step in range(1, 61):
        run.observe(report(step))
    deadline = time.monotonic() + 10
    while run._recorder.last_error is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert run._recorder.last_error is not None
    database.rmdir()
    away.rename(database)
    run.finish("finished")
    assert run.unsent_rows == 0
    record = read_run(tracking, run.run_id)
    assert [point.step for point in record.metrics["loss"]] == list(range(1, 61))
    assert record.summary.status == "finished"


@pytest.mark.parametrize(
    "uri",
    [
        "http://127.0.0.1:1",
        "postgresql://user:secret@127.0.0.1:1/mlflow",
        "sqlite:////proc/nowhere/mlflow.db",
        "nonsense://x",
    ],
)
def test_a_store_out_of_reach_is_refused_at_once(uri: str) -> None:
    began = time.monotonic()
    with pytest.raises(SpecError) as refused:
        open_run(TrackingSpec(uri=uri, when_away="refuse"), name="x", params={}, tags={})
    assert time.monotonic() - began < 10
    assert refused.value.subject == "tracking.uri"
    assert refused.value.fix
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    "uri", ["sqlite:////proc/nowhere/mlflow.db", "nonsense://x", "htp://tracking:5000", "http://"]
)
def test_an_address_that_cannot_be_right_is_refused_whatever_is_kept(
    uri: str, tmp_path: Path
) -> None:
    with pytest.raises(SpecError) as refused:
        open_run(TrackingSpec(uri=uri), name="x", params={}, tags={}, directory=tmp_path)
    assert refused.value.subject == "tracking.uri"
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_run_is_named(tracking: TrackingSpec) -> None:
    for ask in (
        lambda: read_run(tracking, "0a1b2c"),
        lambda: open_run(tracking, name="x", params={}, tags={}, run_id="0a1b2c"),
    ):
        with pytest.raises(SpecError, match="0a1b2c"):
            ask()


def test_reading_makes_no_store(tmp_path: Path) -> None:
    nowhere = TrackingSpec(uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert list_runs(nowhere) == []
    with pytest.raises(SpecError, match="does not exist"):
        read_run(nowhere, "0a1b2c")
    assert list(tmp_path.iterdir()) == []


def test_a_closed_run_can_be_amended(tracking: TrackingSpec) -> None:
    with open_run(tracking, name="trial", params={}, tags={}) as run:
        pass
    amend_run(tracking, run.run_id, {"rayline.trial": "stopped_early"}, "interrupted")
    record = read_run(tracking, run.run_id)
    assert record.tags["rayline.trial"] == "stopped_early"
    assert record.summary.status == "interrupted"
    with pytest.raises(SpecError, match="0a1b2c"):
        amend_run(tracking, "0a1b2c", {})
