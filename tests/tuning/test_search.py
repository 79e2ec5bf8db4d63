"""Real searches on Ray Tune: every way a trial can end, recorded, and the best one written out; a
driver that is killed; a population."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import ray

from rayline.errors import PlacementError, SpecError
from rayline.models.tiny import write_tiny_model
from rayline.spec import JobSpec, ModelRef, TuneSpec
from rayline.tracking import list_runs, read_run, resolve_model
from rayline.tuning import SearchOutcome, TrialReport, search
from rayline.tuning.figures import StepFigures
from rayline.tuning.journal import DrawRow, EndRow, ResumedRow, Row, StartRow, StopRow, read_rows

MakeSearch = Callable[..., TuneSpec]
pytestmark = pytest.mark.ray
PACKAGE = Path(__file__).parents[2] / "platform"


@pytest.fixture(scope="module", autouse=True)
def local_ray() -> Iterator[None]:
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture
def material(tmp_path: Path) -> None:
    """The model and the text that `make_search` names."""
    write_tiny_model(tmp_path / "model", layers=2, hidden=32, heads=4, kv_heads=2, ffn=32)
    lines = [json.dumps({"text": f"{word} {word} {word} {word}"}) for word in ("one", "two") * 20]
    (tmp_path / "text.jsonl").write_text("\n".join(lines))


def everything(make_search: MakeSearch, tmp_path: Path) -> TuneSpec:
    """Seed 21 draws: a good rate; one that learns nothing; a missing file; and, four times between
    these, a tensor size that the model's heads do not divide into."""
    good, missing = [str(tmp_path / "text.jsonl")], [str(tmp_path / "none.jsonl")]
    return make_search(
        trials=3,
        seed=21,
        search="grid",
        space={
            "optim.lr": {"choices": [1e-2, 1e-12]},
            "data.files": {"choices": [good, missing]},
            "plan.tensor": {"choices": [1, 3]},
        },
        asha={"grace_steps": 3, "reduction_factor": 3},
        objectives=["loss", "tokens_per_s"],
        metric_window_steps=2,
    )


def test_every_ending_of_a_trial_is_told_and_the_best_is_kept(
    make_search: MakeSearch, tmp_path: Path, material: None
) -> None:
    spec = everything(make_search, tmp_path)
    reports: list[TrialReport] = []
    outcome = search(spec, observers=[reports.append])
    assert isinstance(outcome, SearchOutcome)
    ends = {trial.number: trial for trial in outcome.trials}
    assert [ends[number].status for number in range(3)] == ["finished", "stopped_early", "failed"]
    assert outcome.best.number == 0
    assert outcome.front == [outcome.best]
    steps = [report.step for report in reports if report.trial == 0 and report.status is None]
    assert steps == list(range(1, 10))
    assert [report.status for report in reports if report.status] == [
        "finished",
        "stopped_early",
        "failed",
    ]
    assert 3 <= ends[1].steps < 9
    assert "none.jsonl" in ends[2].problem
    assert {draw.kind for draw in outcome.refused} == {"spec"}
    assert all("plan.tensor" in draw.reason for draw in outcome.refused)
    assert len(outcome.refused) == 4

    tracking = spec.job.tracking
    children = {run.run_id: run for run in list_runs(tracking, parent_run_id=outcome.run_id)}
    assert set(children) == {trial.run_id for trial in outcome.trials}
    assert len(list_runs(tracking)) == 4
    for trial in outcome.trials:
        assert trial.run_id
        record = read_run(tracking, trial.run_id)
        assert record.tags["rayline.trial"] == trial.status
        assert record.summary.status == (
            "finished" if trial.status in ("finished", "stopped_early") else "failed"
        )
    losses = [
        point.value for point in read_run(tracking, outcome.best.run_id or "").metrics["loss"]
    ]
    assert len(losses) == 9
    assert outcome.best.loss == pytest.approx(sum(losses[-2:]) / 2)
    assert read_run(tracking, outcome.run_id).summary.status == "finished"

    best = JobSpec.load(outcome.best_spec)
    assert best == spec.job.changed(outcome.best.params)
    folder = resolve_model(ModelRef(run=outcome.best.run_id), tracking)
    assert (folder / "model.safetensors").is_file()
    assert not list((tmp_path / "search").glob("*/*/checkpoints"))
    assert "none.jsonl" in Path(outcome.report).read_text()


def test_a_search_without_any_result_says_why(
    make_search: MakeSearch, tmp_path: Path, material: None
) -> None:
    spec = make_search(trials=2, space={"plan.tensor": {"choices": [3, 5]}})
    with pytest.raises(SpecError, match=r"none of 40 draws could run.*plan\.tensor"):
        search(spec)
    runs = list_runs(spec.job.tracking)
    assert [run.status for run in runs] == ["failed"]


def test_a_search_that_finds_no_room_ends_in_time(make_search: MakeSearch, material: None) -> None:
    @ray.remote(num_cpus=2)
    class Occupant:
        def here(self) -> bool:
            return True

    occupant = Occupant.remote()
    assert ray.get(occupant.here.remote())
    try:
        with pytest.raises(PlacementError, match="no room for trial 0 within 2 s"):
            search(make_search(**{"job.resources.placement_timeout_s": 2.0}))
    finally:
        ray.kill(occupant)


def journal_of(folder: Path) -> list[Row]:
    found = list(folder.glob("*/journal.jsonl"))
    return read_rows(found[0].read_text(), str(found[0])) if found else []


def steps_of(folder: Path, number: int) -> list[int]:
    """Every step that a trial computed, those computed again included."""
    found = list(folder.glob(f"*/small-{number:03d}/steps.jsonl"))
    lines = found[0].read_text().split("\n")[:-1] if found else []
    return [StepFigures(**json.loads(line)).step for line in lines]


def killed_in_trial_1(spec: TuneSpec, tmp_path: Path) -> None:
    """A driver of its own on this module's cluster, killed in the middle of its second trial."""
    (tmp_path / "search.yaml").write_text(spec.to_yaml())
    code = (
        "from rayline.spec import TuneSpec; from rayline.tuning import search; "
        f"search(TuneSpec.load({str(tmp_path / 'search.yaml')!r}))"
    )
    address = ray.get_runtime_context().gcs_address
    environment = {**os.environ, "RAY_ADDRESS": address, "PYTHONPATH": str(PACKAGE)}
    with (tmp_path / "driver.log").open("w") as log:
        driver = subprocess.Popen(
            [sys.executable, "-c", code], env=environment, stdout=log, stderr=log
        )
    deadline_s = time.monotonic() + 100
    while len(steps_of(tmp_path / "search", 1)) < 9:
        assert driver.poll() is None, (tmp_path / "driver.log").read_text()[-3000:]
        assert time.monotonic() < deadline_s
        time.sleep(0.02)
    driver.send_signal(signal.SIGKILL)
    driver.wait()


def test_a_search_whose_driver_is_killed_goes_on(
    make_search: MakeSearch, tmp_path: Path, material: None
) -> None:
    spec = make_search(
        trials=3,
        search="random",
        space={
            "optim.lr": {"low": 1e-3, "high": 3e-2, "log": True},
            # 65536 sequences would hold GiBs of logits: refused before anything is placed.
            "batch.sequences": {"choices": [4, 65536]},
        },
        stopping={"kind": "asha", "grace_steps": 15, "reduction_factor": 2},
        prune={"device_memory_gib": 1.5},
        **{"job.steps": 24, "job.checkpoint.every_steps": 4},
    )
    folder = tmp_path / "search"
    killed_in_trial_1(spec, tmp_path)
    before = {number: steps_of(folder, number) for number in range(2)}
    outcome = search(spec, resume=True)

    rows = journal_of(folder)
    assert sum(isinstance(row, ResumedRow) for row in rows) == 1
    ends = [row.trial for row in rows if isinstance(row, EndRow | StopRow)]
    assert sorted(ends) == [0, 1, 2]
    starts = [row.trial for row in rows if isinstance(row, StartRow)]
    assert starts == [0, 1, 1, 2]
    assert all(trial.status in ("finished", "stopped_early") for trial in outcome.trials)
    # What was finished did not run again, and what was under way went on from its checkpoint.
    assert before[0] == list(range(1, 25)) == steps_of(folder, 0)
    steps = steps_of(folder, 1)
    assert len(before[1]) >= 9
    assert set(steps) == set(range(1, max(steps) + 1))
    # A checkpoint every 4 steps, and one that may have been on its way.
    assert [step for step in steps if steps.count(step) > 1 and step <= 4] == []
    assert len(steps) - len(set(steps)) <= 8
    # Stopped at the rung, where it waited for the verdict, or run to its end.
    assert max(steps) in (15, 24)
    # One run a trial, each step of it there once.
    children = list_runs(spec.job.tracking, parent_run_id=outcome.run_id)
    assert sorted(run.name for run in children) == ["small-000", "small-001", "small-002"]
    assert read_run(spec.job.tracking, outcome.run_id).summary.status == "finished"
    for trial in outcome.trials:
        points = read_run(spec.job.tracking, trial.run_id or "").metrics["loss"]
        assert len(points) == len({point.step for point in points})
    refused = [row for row in rows if isinstance(row, DrawRow) and row.refused == "memory"]
    assert [row.params["batch.sequences"] for row in refused] == [65536] * len(outcome.refused)
    with pytest.raises(SpecError, match="is over"):
        search(spec, resume=outcome.run_id)


def test_the_weaker_member_of_a_population_goes_on_from_the_better_one(
    make_search: MakeSearch, tmp_path: Path, material: None
) -> None:
    spec = make_search(
        trials=2,
        concurrent=2,
        search="grid",
        space={"optim.lr": {"choices": [1e-2, 1e-12]}},
        population={"every_steps": 4, "quantile": 0.5, "resample": 0.0},
        **{"job.steps": 8, "job.optim.schedule": "constant"},
    )
    outcome = search(spec)
    weak, good = sorted(outcome.trials, key=lambda trial: not trial.moved)
    assert [(move.after_step, move.source) for move in weak.moved] == [(4, good.number)]
    assert good.moved == ()
    assert {trial.status for trial in outcome.trials} == {"finished"}
    histories = {}
    for trial in outcome.trials:
        points = read_run(spec.job.tracking, trial.run_id or "").metrics["loss"]
        assert [point.step for point in points] == list(range(1, 9))
        histories[trial.number] = [point.value for point in points]
    # Step 5 of both begins with the weights of the better one.
    mine, theirs = histories[weak.number], histories[good.number]
    assert mine[3] != pytest.approx(theirs[3])
    assert mine[4] == pytest.approx(theirs[4], rel=1e-6)
    told = json.loads((tmp_path / "search" / "population.json").read_text())
    assert told[str(weak.number)]["moved"][0]["source"] == good.number
    assert not list((tmp_path / "search").glob("*/*/generation-*"))
