"""Two runs compared: curves by numbers alone, the rest on a real MLflow."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayline.cli import run as rayline
from rayline.errors import SpecError
from rayline.spec import StepReport, TrackingSpec
from rayline.tracking import open_run
from rayline.tracking.comparing import compare_curves, diff_runs, draw_diff
from rayline.tracking.comparing.curves import scatter
from rayline.tracking.comparing.runs import changes

curves = st.dictionaries(
    st.integers(1, 60), st.floats(-1e3, 1e3, allow_nan=False), min_size=1, max_size=40
)


def falling(noise: float, seed: int, *, shift: float = 0.0, since: int = 10**9) -> dict[int, float]:
    drawn = random.Random(seed)
    return {
        step: 8 / step**0.5 + drawn.gauss(0, noise) + (shift if step >= since else 0.0)
        for step in range(1, 401)
    }


@given(curves)
def test_a_curve_does_not_part_from_itself(curve: dict[int, float]) -> None:
    found = compare_curves("loss", curve, curve)
    assert (found.parted_at, found.area, found.steps) == (None, 0.0, len(curve))
    assert found.best_a == min(curve.values())
    assert found.last_a == curve[max(curve)]
    assert compare_curves("tokens_per_s", curve, curve).best_b == max(curve.values())


@given(curves, curves)
def test_the_other_way_round_the_area_changes_its_sign(
    a: dict[int, float], b: dict[int, float]
) -> None:
    one, other = compare_curves("loss", a, b), compare_curves("loss", b, a)
    assert one.steps == len(a.keys() & b.keys())
    assert one.parted_at == other.parted_at
    if one.area is None:
        assert other.area is None
    else:
        assert other.area == pytest.approx(-one.area, abs=1e-9)


@given(curves, st.integers(1, 60))
def test_without_scatter_any_difference_counts(curve: dict[int, float], since: int) -> None:
    flat = dict.fromkeys(range(1, 61), 1.0)
    moved = {step: value + (0.01 if step >= since else 0.0) for step, value in flat.items()}
    assert compare_curves("lr", flat, moved).parted_at == since


@pytest.mark.parametrize("seed", range(8))
def test_noise_is_not_told_for_a_difference_and_a_difference_is_found(seed: int) -> None:
    plain = falling(0.05, seed)
    assert scatter(list(plain.values())) == pytest.approx(0.05, rel=0.35)
    assert compare_curves("loss", plain, falling(0.05, 100 + seed)).parted_at is None
    shifted = falling(0.05, 200 + seed, shift=0.3, since=200)
    parted = compare_curves("loss", plain, shifted).parted_at
    assert parted is not None
    assert 190 <= parted <= 205


def test_what_is_no_number_differs_from_every_number() -> None:
    a = {1: 2.0, 2: math.nan, 3: 1.0}
    assert compare_curves("loss", a, a).parted_at is None
    found = compare_curves("loss", a, {1: 2.0, 2: 1.5, 3: 1.0})
    assert found.parted_at == 2
    assert found.area == 0.0
    nowhere = compare_curves("loss", {1: math.nan}, {2: 1.0})
    assert (nowhere.steps, nowhere.area, nowhere.best_a) == (0, None, None)


@given(st.dictionaries(st.text(max_size=3), st.text(max_size=3)))
def test_equal_mappings_have_no_changes(mapping: dict[str, str]) -> None:
    assert changes(mapping, dict(mapping)) == ()
    assert len(changes(mapping, {})) == len(mapping)


@pytest.fixture
def two_runs(
    tracking: TrackingSpec, report: Callable[[int], StepReport], tmp_path: Path
) -> tuple[str, str]:
    """The second with another rate, plan and package, and a loss that parts at step 30."""
    ids = []
    for number, (rate, plan, version) in enumerate([(1e-3, "2", "1.0"), (3e-3, "4", "1.1")]):
        params = {"optim.lr": rate, "plan.data": plan, "seed": 0}
        with open_run(
            tracking, name=f"job-{number}", params=params, tags={}, directory=tmp_path
        ) as run:
            for step in range(1, 61):
                worse = 0.5 if number and step >= 30 else 0.0
                run.observe(replace(report(step), loss=8 / step + worse))
            run.log_text(json.dumps({"chosen": {"step_s": 0.5}}), "plan.json")
            run.log_text(json.dumps({"measured_step_s": 0.5 + number}), "plan_measured.json")
            run.log_text(f"ray==2\nmine=={version}\n", "environment/requirements.txt")
        ids.append(run.run_id)
    return ids[0], ids[1]


def test_two_runs_tell_what_they_differ_in(
    tracking: TrackingSpec, two_runs: tuple[str, str], tmp_path: Path
) -> None:
    found = diff_runs(tracking, *two_runs)
    assert [(one.key, one.a, one.b) for one in found.spec] == [("optim.lr", "0.001", "0.003")]
    assert [(one.key, one.a, one.b) for one in found.plan] == [
        ("measured step_s", "0.5", "1.5"),
        ("plan.data", "2", "4"),
    ]
    assert [(one.key, one.a, one.b) for one in found.environment] == [
        ("package mine", "1.0", "1.1")
    ]
    by_name = {curve.metric: curve for curve in found.curves}
    assert by_name["loss"].parted_at == 30
    assert by_name["loss"].area == pytest.approx(0.5 * 31 / 60)
    assert by_name["lr"].parted_at is None
    assert draw_diff(found, tmp_path / "diff.png").read_bytes().startswith(b"\x89PNG")
    page = draw_diff(found, tmp_path / "diff.html").read_text()
    assert "optim.lr" in page
    assert "<script" not in page
    with pytest.raises(SpecError, match=r"\.png, \.svg, \.html"):
        draw_diff(found, tmp_path / "diff.bmp")


def test_the_verb_prints_it(
    tracking: TrackingSpec, two_runs: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--tracking-uri", tracking.uri, "--experiment", "tests"]
    assert rayline(["diff", *two_runs, *where]) == 0
    shown = capsys.readouterr().out
    assert "optim.lr" in shown
    assert "loss a" in shown
    assert rayline(["diff", *two_runs, *where, "--json"]) == 0
    tree = json.loads(capsys.readouterr().out)
    assert tree["spec"] == [{"key": "optim.lr", "a": "0.001", "b": "0.003"}]
    assert rayline(["diff", two_runs[0], "0a1b", *where]) == 2
