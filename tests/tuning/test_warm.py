"""What a sampler learns from: real runs in a store, and those that it cannot learn from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rayline.errors import SpecError
from rayline.spec import StepReport, TuneSpec
from rayline.tracking import RunRecord, RunStatus, open_run, read_run
from rayline.tuning.space import trial_job
from rayline.tuning.warm import known_row, known_rows, read_param, run_values

MakeSearch = Callable[..., TuneSpec]


def report(step: int, loss: float) -> StepReport:
    return StepReport(
        step=step,
        loss=loss,
        grad_norm=1.0,
        lr=1e-3,
        tokens=64,
        processed_tokens=64 * step,
        seconds=1.0,
        memory_bytes=2**30 * step,
    )


def earlier_search(spec: TuneSpec) -> tuple[str, list[str]]:
    """A search of this spec whose trials were recorded: ids of its run and theirs."""
    tracking = spec.job.tracking
    children = []
    with open_run(tracking, name=spec.name, params=spec.flat(), tags={}) as parent:
        endings: list[tuple[float, RunStatus, str]] = [
            (1e-3, "finished", "finished"),
            (1e-2, "finished", "finished"),
            (3e-2, "finished", "stopped_early"),
            (5e-2, "failed", "failed"),
        ]
        for number, (lr, status, told) in enumerate(endings):
            job = trial_job(spec, number, {"optim.lr": lr}, "folder")
            run = open_run(
                tracking,
                name=job.name,
                params=job.flat(),
                tags={"rayline.trial": told},
                parent_run_id=parent.run_id,
            )
            for step in (1, 2, 3):
                run.observe(report(step, 10 * lr / step))
            run.finish(status)
            children.append(run.run_id)
    return parent.run_id, children


def test_finished_trials_of_an_earlier_search_are_learnt_from(make_search: MakeSearch) -> None:
    spec = make_search(metric_window_steps=2)
    search_id, trials = earlier_search(spec)
    for wanted in (spec.name, search_id):
        rows = known_rows(spec.changed({"warm_start": [wanted]}))
        assert {row.run_id for row in rows} == set(trials[:2])
        by_run = {row.run_id: row for row in rows}
        first = by_run[trials[0]]
        assert first.params == {"optim.lr": 1e-3}
        assert first.values["loss"] == pytest.approx((5e-3 + 1e-2 / 3) / 2)
        assert first.values["memory_gib"] == 3.0
        assert first.values["tokens_per_s"] == pytest.approx(160.0)
    # One run by itself.
    rows = known_rows(spec.changed({"warm_start": [trials[1]]}))
    assert [row.run_id for row in rows] == [trials[1]]

    longer = spec.changed({"warm_start": [spec.name], "job.steps": 50})
    with pytest.raises(SpecError, match=r"none of 4 runs.*another steps"):
        known_rows(longer)
    narrow = {"optim.lr": {"low": 0.5, "high": 0.6}}
    with pytest.raises(SpecError, match="outside its range"):
        known_rows(spec.changed({"warm_start": [spec.name], "space": narrow}))
    with pytest.raises(SpecError, match="no such run"):
        known_rows(spec.changed({"warm_start": ["absent"]}))

    priced = spec.changed({"price_per_worker_hour": 36.0})
    record: RunRecord = read_run(spec.job.tracking, trials[0])
    assert run_values(priced, record)["price"] == pytest.approx(0.03)
    four = replace(record, params={**record.params, "plan.data": "4"})
    assert run_values(priced, four)["price"] == pytest.approx(0.12)
    assert known_row(spec, record).run_id == trials[0]


@pytest.mark.parametrize(
    ("text", "value"),
    [("0.001", 0.001), ("3", 3), ("null", None), ("adamw", "adamw"), ("[0.9, 0.95]", [0.9, 0.95])],
)
def test_params_are_read_back(tmp_path: Path, text: str, value: Any) -> None:
    assert read_param(text) == value
