"""What is said of a plan before anything runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from rayline import Client, JobSpec
from rayline.cli.plans import pipeline_text, plan_document

REPOSITORY = Path(__file__).resolve().parents[2]


def test_a_pipeline_says_how_layers_are_cut_and_how_long_workers_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(REPOSITORY)
    job = JobSpec.load(
        "jobs/specs/tiny-3d.yaml",
        [
            "plan.schedule=interleaved",
            "plan.stages_per_worker=2",
            "plan.layers_per_stage=[1, 1, 1, 1]",
        ],
    )
    plan = Client().plan(job)

    share = plan.pipeline.bubble_share
    assert pipeline_text(plan) == (
        "interleaved, 2 stages a worker, 1+1+1+1 layers; workers wait "
        f"{share:.0%} of a step for one another"
    )
    assert plan_document(plan)["pipeline"]["stage_layers"] == [1, 1, 1, 1]
