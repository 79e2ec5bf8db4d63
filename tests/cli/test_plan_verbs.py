"""`rayline plan` of a cluster, and `rayline plan calibrate`."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from rayline.cli import run
from rayline.planner.calibration_file import read_calibration

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In the repository, with a home that has no calibration."""
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setenv("HOME", str(tmp_path))


def answer(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, object]:
    assert run(["plan", *words, "--json"]) == 0
    found: dict[str, object] = json.loads(capsys.readouterr().out)
    return found


def test_the_fastest_plans_of_a_model_are_shown_with_what_they_cost(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ["Llama-3-8B", "--gpus", "16", "--gpu-type", "h100", "--top", "3", "--tokens", "1e12"]
    picture = tmp_path / "plan.svg"
    found = answer(capsys, *words, "--why", "tensor=1", "--price", "2", "--picture", str(picture))
    best = found["best"]
    assert isinstance(best, list)

    assert len(best) == 3
    assert [one["step_s"] for one in best] == sorted(one["step_s"] for one in best)
    speed = best[0]["tokens_per_s"]
    assert best[0]["dollars"] == pytest.approx(16 * 2 * 1e12 / speed / 3600)
    assert isinstance(found["why"], list)
    assert {one["value"] for one in found["why"]} >= {1, 2}
    assert picture.read_text().startswith("<svg")


def test_a_jobs_own_plan_stands_beside_the_best_and_the_way_there_is_told(
    capsys: pytest.CaptureFixture[str],
) -> None:
    spec = "jobs/specs/tiny-3d.yaml"
    words = [
        "plan",
        spec,
        "--set",
        "model={hub: Llama-3.2-1B}",
        "--set",
        "data.sequence_tokens=1024",
    ]
    assert run([*words, "--gpus", "8", "--gpu-type", "A100"]) == 0
    shown = capsys.readouterr().out

    assert "8 x A100-40G" in shown
    assert "to take the first: --set" in shown
    assert "own" in shown


def test_what_is_missing_or_contradicts_itself_is_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for words, told in (
        (["Llama-3-8B", "--gpus", "8"], "--gpu-type"),
        (["Llama-3-8B", "--gpu-type", "H100"], "--gpus"),
        (["Llama-3-8B", "--why", "tensor=8"], "give --gpus and --gpu-type"),
        (["Llama-3-8B"], "auto is chosen on a cluster"),
        (["Llama-9-8B", "--gpus", "8", "--gpu-type", "H100"], "neither a spec's file nor a model"),
        (["Llama-3-8B", "--gpus", "8", "--gpu-type", "H100", "--why", "tensor"], "FIELD=VALUE"),
    ):
        assert run(["plan", *words]) == 2
        assert told in capsys.readouterr().err


def test_curves_are_fitted_kept_and_used(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    names = [
        "source",
        "model",
        "layers",
        "hidden",
        "heads",
        "vocab",
        "seq_len",
        "gpu_type",
        "n_gpus",
        "tp",
        "pp",
        "dp",
        "micro_batch",
        "global_batch",
        "precision",
        "framework",
        "step_time_s",
    ]
    told = [
        "lab",
        "x",
        "24",
        "2048",
        "16",
        "50304",
        "2048",
        "H100",
        "8",
        "1",
        "1",
        "8",
        "4",
        "64",
        "bf16",
        "NeMo",
    ]
    runs = tmp_path / "runs.csv"
    with runs.open("w", newline="") as file:
        csv.writer(file).writerows([names, [*told, "2.0"], [*told[:2], "", *told[3:], "2.0"]])
    assert run(["plan", "calibrate", str(runs)]) == 0
    shown = capsys.readouterr().out
    words = ["Llama-3-8B", "--gpus", "8", "--gpu-type", "H100"]
    assert run(["plan", *words]) == 0

    assert "row 2 is left out" in shown
    kept = read_calibration(tmp_path / ".rayline" / "calibration.json")
    assert kept.fitted_on == {"lab": 1}
    assert str(tmp_path / ".rayline" / "calibration.json") in capsys.readouterr().out


def test_help_shows_the_options_of_a_spec_and_names_calibrate(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(["plan", "--help"]) == 0
    shown = capsys.readouterr().out

    assert "--why FIELD=VALUE" in shown
    assert "rayline plan calibrate" in shown
