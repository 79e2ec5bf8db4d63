"""A real search on Ray Tune: every way a trial can end, recorded, and the best one written out."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import ray

from rayline.errors import PlacementError, SpecError
from rayline.models.tiny import write_tiny_model
from rayline.spec import JobSpec, ModelRef, TuneSpec
from rayline.tracking import list_runs, read_run, resolve_model
from rayline.tuning import SearchOutcome, TrialReport, search

MakeSearch = Callable[..., TuneSpec]
pytestmark = pytest.mark.ray


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
    """Seed 40 draws: a good rate; one that learns nothing; a missing file; a tensor size that the
    model's heads do not divide into."""
    good, missing = [str(tmp_path / "text.jsonl")], [str(tmp_path / "none.jsonl")]
    return make_search(
        trials=4,
        seed=40,
        search="random",
        space={
            "optim.lr": {"choices": [1e-2, 1e-12]},
            "data.files": {"choices": [good, missing]},
            "plan.tensor": {"choices": [1, 3]},
        },
        asha={"grace_steps": 3, "reduction_factor": 3},
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
    assert [ends[number].status for number in range(4)] == [
        "finished",
        "stopped_early",
        "failed",
        "infeasible",
    ]
    assert outcome.best.number == 0
    assert [report.step for report in reports if report.trial == 0] == list(range(1, 10))
    assert 3 <= ends[1].steps < 9
    assert "none.jsonl" in ends[2].problem
    assert "plan.tensor" in ends[3].problem

    tracking = spec.job.tracking
    children = {run.run_id: run for run in list_runs(tracking, parent_run_id=outcome.run_id)}
    assert set(children) == {trial.run_id for trial in outcome.trials}
    assert len(list_runs(tracking)) == 5
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


def test_a_search_without_any_result_says_why(
    make_search: MakeSearch, tmp_path: Path, material: None
) -> None:
    spec = make_search(trials=2, space={"plan.tensor": {"choices": [3, 5]}})
    with pytest.raises(SpecError, match=r"none of 2 trials finished.*plan\.tensor"):
        search(spec)
    runs = list_runs(spec.job.tracking)
    assert len(runs) == 3
    assert {run.status for run in runs} == {"failed"}


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
