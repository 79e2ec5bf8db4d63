"""The report: one file that needs nothing else, and what it says is what was found."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayline.spec import GoalSpec, Range, TuneSpec
from rayline.tuning.figures import StepFigures
from rayline.tuning.importance import importance, rank_correlation
from rayline.tuning.outcome import RefusedDraw, TrialOutcome
from rayline.tuning.report import Findings, write_report

MakeSearch = Callable[..., TuneSpec]
SPACE = {
    "optim.lr": Range(low=1e-4, high=1e-1, log=True),
    "optim.weight_decay": Range(low=0.0, high=0.3),
    "plan.data": Range(choices=[1, 2]),
}


def trials(count: int) -> list[TrialOutcome]:
    """Loss depends on the rate alone."""
    chance = random.Random(count)
    found = []
    for number in range(count):
        params = {
            "optim.lr": 10 ** chance.uniform(-4, -1),
            "optim.weight_decay": chance.uniform(0, 0.3),
            "plan.data": chance.choice([1, 2]),
        }
        loss = math.log10(params["optim.lr"]) + 5 + chance.uniform(0, 0.01)
        values = {"loss": loss, "tokens_per_s": chance.uniform(1, 2)}
        found.append(TrialOutcome(number, params, "finished", values, 9, f"run{number}"))
    return found


@pytest.mark.parametrize(("count", "method"), [(8, "Spearman"), (40, "PED-ANOVA")])
def test_the_rate_decided(count: int, method: str) -> None:
    found = importance(trials(count), SPACE, GoalSpec(metric="loss"))
    assert method in found.method
    assert next(iter(found.shares)) == "optim.lr"
    assert found.shares["optim.lr"] > 0.5
    assert sum(found.shares.values()) == pytest.approx(1)


def test_two_trials_decide_nothing() -> None:
    assert importance(trials(2), SPACE, GoalSpec(metric="loss")).shares == {}


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=20))
def test_rank_correlation_knows_only_order(values: list[float]) -> None:
    varied = len(set(values)) > 1
    assert rank_correlation(values, values) == pytest.approx(1 if varied else 0)
    assert rank_correlation(values, [-value for value in values]) == pytest.approx(
        -1 if varied else 0
    )
    assert rank_correlation([1, 2, 3, 4], [1, 3, 2, 4]) == pytest.approx(0.8)


@pytest.mark.parametrize("objectives", [["loss"], ["loss", "tokens_per_s"]])
def test_one_file_holds_everything(
    make_search: MakeSearch, tmp_path: Path, objectives: list[str]
) -> None:
    space = {name: span.model_dump(exclude_defaults=True) for name, span in SPACE.items()}
    spec = make_search(space=space, objectives=objectives)
    found = trials(6)
    steps = {
        trial.number: [StepFigures(n, 9.0 / n, 1.0, 0.1, 1.0) for n in range(1, 10)]
        for trial in found
    }
    refused = [RefusedDraw(3, {"plan.data": 2}, "memory", "needs <9> GiB & more")]
    file = tmp_path / "report.html"
    pictures = write_report(Findings(spec, "run0", found, refused, steps), file)
    names = {"curves", "parallel", "importance"} | ({"pareto"} if len(objectives) > 1 else set())
    assert {picture.stem for picture in pictures} == names
    assert all(picture.read_bytes()[:4] == b"\x89PNG" for picture in pictures)
    page = file.read_text()
    assert page.count("<svg") == len(names)
    assert "needs &lt;9&gt; GiB &amp; more" in page
    for trial in found:
        assert f"{trial.values['loss']:.5g}" in page
    # Nothing is fetched from anywhere: addresses are names of XML's vocabularies and no more.
    assert "<script" not in page
    assert not re.search(r"(src|href)=\"(?!#)", page)
    assert "@import" not in page


def test_a_search_in_which_nothing_ran_has_a_report(
    make_search: MakeSearch, tmp_path: Path
) -> None:
    failed = TrialOutcome(0, {"optim.lr": 1e-3}, "failed", {}, 0, None, "no such file")
    file = tmp_path / "report.html"
    write_report(Findings(make_search(), "run0", [failed], [], {0: []}), file)
    assert "no such file" in file.read_text()
