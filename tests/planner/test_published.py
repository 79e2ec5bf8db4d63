"""Tables of measured runs, and the curves that are fitted to them."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest

from rayline.errors import SpecError
from rayline.planner.accelerators import find_accelerator
from rayline.planner.calibration import fit_curves
from rayline.planner.calibration_file import (
    Calibration,
    read_calibration,
    shipped_calibration,
    write_calibration,
)
from rayline.planner.columns import Machines, stack
from rayline.planner.curves import Curves, as_vector, from_vector, vector_names
from rayline.planner.model_catalogue import find_shape
from rayline.planner.own_runs import append_row, own_row
from rayline.planner.published import read_runs
from rayline.planner.step_time import predict_step
from rayline.spec import JobSpec

ROW = {
    "source": "a paper",
    "model": "GPT-18B",
    "layers": "40",
    "hidden": "6144",
    "heads": "48",
    "vocab": "50k",
    "seq_len": "2048",
    "gpu_type": "A100-80GB (DGX)",
    "n_gpus": "256",
    "tp": "8",
    "pp": "1",
    "dp": "32",
    "micro_batch": "8",
    "global_batch": "1024",
    "recompute": "full",
    "precision": "fp16",
    "framework": "Megatron-LM",
}


def table(folder: Path, *rows: dict[str, str]) -> Path:
    file = folder / "runs.csv"
    names = list(dict.fromkeys(name for row in rows for name in row))
    with file.open("w", newline="") as out:
        writer = csv.DictWriter(out, names)
        writer.writeheader()
        writer.writerows(rows)
    return file


def test_a_row_is_read_with_what_is_known_of_its_framework(tmp_path: Path) -> None:
    (run,), left = read_runs(table(tmp_path, {**ROW, "step_time_s": "15.5", "peak_mem_gib": "OOM"}))

    assert left == []
    assert run.machines.accelerator.name == "A100-80G"
    assert (run.layout.tensor, run.layout.data, run.layout.microbatches) == (8, 32, 4)
    assert run.layout.recompute == 2
    assert run.habits.flash == 0, "scores were kept in memory in 2021"
    assert run.sizes.vocab == 50000
    assert run.step_s == 15.5
    assert run.memory_gib == math.inf


def test_step_times_come_from_speeds_where_only_those_are_told(tmp_path: Path) -> None:
    tokens = {**ROW, "tokens_per_s_per_gpu": "500"}
    rule = "hardware-style: counts full recompute"
    flops = {**ROW, "tflops_per_gpu": "135", "flops_def": rule}
    (by_tokens, by_flops), _ = read_runs(table(tmp_path, tokens, flops))

    assert by_tokens.step_s == pytest.approx(1024 * 2048 / (500 * 256))
    # 96 B s l h^2 (1 + s / 6h + V / 16lh), equation 3 of Narayanan et al. 2021.
    batch, length, layers, hidden, vocab = 1024, 2048, 40, 6144, 50000
    counted = 96 * batch * length * layers * hidden**2
    counted *= 1 + length / (6 * hidden) + vocab / (16 * layers * hidden)
    assert by_flops.step_s == pytest.approx(counted / (135e12 * 256), rel=0.01)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"tp": ""}, "no plan"),
        ({"dp": "31"}, "does not come to its n_gpus"),
        ({"layers": "", "model": "unheard of"}, "not described"),
        ({"gpu_type": "H9000"}, "no such kind of GPU"),
    ],
)
def test_rows_that_do_not_tell_enough_are_left_out_with_the_reason(
    tmp_path: Path, change: dict[str, str], why: str
) -> None:
    runs, (left,) = read_runs(table(tmp_path, {**ROW, **change}))

    assert runs == []
    assert why in left.why


def test_another_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="no column gpu_type"):
        read_runs(table(tmp_path, {"source": "x", "model": "y", "seq_len": "1"}))


def test_figures_go_through_a_vector_unchanged() -> None:
    curves = Curves()

    assert len(vector_names()) == len(as_vector(curves))
    assert np.allclose(as_vector(from_vector(as_vector(curves))), as_vector(curves))


def test_a_fit_finds_the_curves_that_runs_were_made_with(tmp_path: Path) -> None:
    """Runs predicted with other curves, and one that is far off: the fit comes near those curves'
    times, and the far one does not lead it away."""
    rows = [
        {**ROW, "row_id": str(n), "hidden": str(1024 * n), "heads": str(8 * n), "tp": str(t),
         "dp": str(256 // t), "micro_batch": "2", "step_time_s": "1"}
        for n, t in [(2, 1), (3, 1), (4, 2), (6, 4), (8, 8), (10, 8), (12, 8), (16, 8)]
    ]  # fmt: skip
    runs, _ = read_runs(table(tmp_path, *rows))
    truth = Curves(matrix={**Curves().matrix, "ampere-bf16": 0.6}, nvlink=0.5)
    measured = predict_step(stack(run.parts for run in runs), truth).total_s
    told = [
        {**row, "step_time_s": str(seconds * (4 if row is rows[-1] else 1))}
        for row, seconds in zip(rows, measured.tolist(), strict=True)
    ]
    runs, _ = read_runs(table(tmp_path, *told))
    before = predict_step(stack(run.parts for run in runs[:-1]), Curves()).total_s
    after = predict_step(stack(run.parts for run in runs[:-1]), fit_curves(runs)).total_s

    assert np.median(np.abs(before / measured[:-1] - 1)) > 0.15
    assert np.max(np.abs(after / measured[:-1] - 1)) < 0.08


def test_a_calibration_is_read_back(tmp_path: Path) -> None:
    made = Calibration(Curves(nvlink=0.5), "2026-11-26", {"a paper": 3})
    write_calibration(made, tmp_path / "curves.json")
    found = read_calibration(tmp_path / "curves.json")

    assert found.curves == made.curves
    assert found.fitted_on == {"a paper": 3}
    with pytest.raises(SpecError, match="is no calibration"):
        read_calibration(table(tmp_path, ROW))


def test_the_shipped_calibration_says_what_it_was_fitted_on() -> None:
    shipped = shipped_calibration()

    assert sum(shipped.fitted_on.values()) > 300
    assert shipped.date
    assert 0.3 < shipped.curves.matrix["hopper-bf16"] < 0.95


def test_own_runs_are_predicted_from_their_rows_as_from_their_specs(tmp_path: Path) -> None:
    from rayline.planner.choice import predict_job

    job = JobSpec.parse(
        {
            "name": "job",
            "model": {"hub": "meta-llama/Llama-3-8B"},
            "steps": 1,
            "precision": "bf16",
            "recompute": "selective",
            "data": {"kind": "text", "files": ["a.txt"], "sequence_tokens": 8192},
            "batch": {"sequences": 64},
            "optim": {"lr": 1e-3},
            "plan": {"data": 4, "tensor": 2, "pipeline": 2, "microbatches": 4, "zero_stage": 1},
        }
    )
    shape = find_shape("Llama-3-8B")
    assert shape is not None
    machines = Machines(find_accelerator("H100"), 16, 8)
    for step_s in (3.0, 4.0):
        append_row(
            own_row(job, shape, machines, step_s=step_s, memory_gib=None), tmp_path / "r.csv"
        )
    runs, left = read_runs(tmp_path / "r.csv")
    predicted = predict_step(stack(run.parts for run in runs), Curves()).total_s

    assert left == []
    assert [run.step_s for run in runs] == [3.0, 4.0]
    assert predicted[0] == pytest.approx(predict_job(job, shape, machines, Curves()).step_s)


@pytest.mark.parametrize(
    ("written", "kind"),
    [
        ("A100-SXM4-80GB", "A100-80G"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("H100 Meta Grand Teton (torchtitan)", "H100-96G"),
        ("V100-32GB", "V100-32G"),
        ("H100-80GB (DGX-H100)", "H100"),
        ("gb200", "GB200"),
    ],
)
def test_gpus_are_found_as_ray_clouds_and_papers_write_them(written: str, kind: str) -> None:
    assert find_accelerator(written).name == kind
