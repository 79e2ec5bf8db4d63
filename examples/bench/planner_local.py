"""Whether the planner ranks plans right on this machine, once it is calibrated on other runs here.

    python examples/bench/planner_local.py           # 4 workers on gloo, 8 plans

Gangs of forked processes train a model by every plan; the median step and the largest peak of
resident memory count. Curves are fitted to the runs of two other models, a smaller and a larger one
(what `rayline plan calibrate` does), never to those that are judged. Told are the measured place of
the plan that was predicted to be fastest, how much slower it was than the fastest, and how far
predicted memory and time were off. Workers share this machine's cores, so what is ranked is the
work and the talk of a plan; that a bubble costs nothing here is part of the prediction.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from ranks import context_of, leave_result, on_ranks

import rayline.train.native  # noqa: F401  (once, before the ranks are forked)
from rayline.models.tiny import write_tiny_model
from rayline.planner import read_model_shape
from rayline.planner.accelerators import find_accelerator
from rayline.planner.calibration import fit_curves
from rayline.planner.calibration_file import shipped_calibration
from rayline.planner.choice import predict_job
from rayline.planner.columns import Machines
from rayline.planner.own_runs import own_row
from rayline.planner.published import MeasuredRun, read_run
from rayline.spec import JobSpec
from rayline.train.build import build_engine
from rayline.train.engine import Batch

GIB = 2**30
TOKENS, SEQUENCES = 128, 8
WARM_UP = 2
PLANS: dict[str, dict[str, Any]] = {
    "data 4, ZeRO 3": {"data": 4, "zero_stage": 3},
    "data 4, ZeRO 1": {"data": 4, "zero_stage": 1},
    "data 2 x tensor 2": {"data": 2, "tensor": 2, "zero_stage": 1},
    "tensor 4": {"tensor": 4},
    "data 2 x pipeline 2": {"data": 2, "pipeline": 2, "microbatches": 4, "zero_stage": 1},
    "pipeline 4": {"pipeline": 4, "microbatches": 8},
    "tensor 2 x pipeline 2": {"tensor": 2, "pipeline": 2, "microbatches": 4},
    "data 2 x context 2": {"data": 2, "context": 2, "zero_stage": 1},
}
FITTED = {"small": {"layers": 4, "hidden": 192}, "large": {"layers": 4, "hidden": 384}}
JUDGED = {"layers": 6, "hidden": 256}


def local_job(plan: dict[str, Any], steps: int) -> JobSpec:
    """The job that every plan runs."""
    return JobSpec.parse(
        {
            "name": "local",
            "model": {"directory": "given"},
            "steps": steps,
            "data": {"kind": "text", "files": ["none"], "sequence_tokens": TOKENS},
            "batch": {"sequences": SEQUENCES},
            "optim": {"lr": 1e-3},
            "plan": plan,
        }
    )


def live(rank: int, job: JobSpec, model: Path) -> tuple[float, int]:
    """One rank's run: its median step in seconds, and its peak of resident memory in bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    context = context_of(job, rank)
    engine = build_engine(job, context, model, torch.device("cpu"))
    draw = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 2000, (SEQUENCES, TOKENS), generator=draw)
    share = ids.chunk(job.plan.data)[context.coordinate.data]
    seconds = []
    for _ in range(job.steps):
        began = time.perf_counter()
        engine.step(Batch(share, share), 1e-3, lambda loss, norm: True)
        seconds.append(time.perf_counter() - began)
    status = Path("/proc/self/status").read_text()
    (peak,) = [line for line in status.splitlines() if line.startswith("VmHWM")]
    return statistics.median(seconds[WARM_UP:]), int(peak.split()[1]) * 1024


def machines() -> Machines:
    """Four workers on the cores of this machine."""
    return Machines(find_accelerator("CPU"), 4, 0, 0.0, max(1.0, 4 / (os.cpu_count() or 1)))


def measure(model: Path, steps: int, rounds: int) -> dict[str, tuple[float, float]]:
    """Seconds of a step and GiB of the largest worker, by plan; the best of the rounds."""
    found: dict[str, tuple[float, float]] = {}
    for _ in range(rounds):
        for name, plan in PLANS.items():
            job = local_job(plan, steps)
            ranks = on_ranks(4, live, job, model)
            step_s = max(seconds for seconds, _ in ranks)
            gib = max(peak for _, peak in ranks) / GIB
            before = found.get(name, (step_s, gib))
            found[name] = (min(step_s, before[0]), max(gib, before[1]))
            print(f"{model.name}: {name}: {step_s:.3f} s, {gib:.3f} GiB", flush=True)
    return found


def made(folder: Path, name: str, *, layers: int, hidden: int) -> Path:
    """A Llama of this size."""
    sizes = {"heads": 8, "kv_heads": 4, "ffn": 11 * hidden // 4 // 64 * 64, "vocab": 2048}
    return write_tiny_model(folder / name, layers=layers, hidden=hidden, **sizes)


def rows_of(model: Path, steps: int, measured: dict[str, tuple[float, float]]) -> list[MeasuredRun]:
    """The runs as a calibration reads them."""
    shape = read_model_shape(model)
    return [
        read_run(
            own_row(
                local_job(PLANS[name], steps), shape, machines(), step_s=step_s, memory_gib=gib
            ),
            name,
        )
        for name, (step_s, gib) in measured.items()
    ]


def judge(
    measured: dict[str, tuple[float, float]], predicted: dict[str, tuple[float, float]]
) -> dict[str, Any]:
    """Predictions against measurements."""
    by_time = sorted(measured, key=lambda name: measured[name][0])
    by_prediction = sorted(predicted, key=lambda name: predicted[name][0])
    first = by_prediction[0]
    errors = {name: predicted[name][1] / measured[name][1] - 1 for name in measured}
    return {
        "predicted_first": first,
        "measured_place_of_predicted_first": by_time.index(first) + 1,
        "predicted_place_of_measured_first": by_prediction.index(by_time[0]) + 1,
        "predicted_first_over_best": round(measured[first][0] / measured[by_time[0]][0], 4),
        "largest_memory_error": round(max(abs(error) for error in errors.values()), 4),
        "median_time_error": round(
            statistics.median(abs(predicted[n][0] / measured[n][0] - 1) for n in measured), 4
        ),
        "plans": {
            name: {
                "measured_s": round(measured[name][0], 4),
                "predicted_s": round(predicted[name][0], 4),
                "measured_gib": round(measured[name][1], 4),
                "predicted_gib": round(predicted[name][1], 4),
            }
            for name in by_time
        },
    }


def main() -> None:
    """Measure, fit, predict, write the dated result file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", type=Path, help="result file; default: dated, in results/")
    options = parser.parse_args()
    torch.set_num_threads(1)
    runs: list[MeasuredRun] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name, sizes in FITTED.items():
            model = made(folder, name, **sizes)
            runs += rows_of(model, options.steps, measure(model, options.steps, options.rounds))
        model = made(folder, "judged", **JUDGED)
        measured = measure(model, options.steps, options.rounds)
        shape = read_model_shape(model)
    curves = fit_curves(runs, shipped_calibration().curves)
    predicted = {}
    for name, plan in PLANS.items():
        job = local_job(plan, options.steps)
        found = predict_job(job, shape, machines(), curves)
        predicted[name] = (found.step_s, found.memory_bytes / GIB)
    leave_result(
        __file__,
        __doc__,
        f"--steps {options.steps} --rounds {options.rounds}",
        options.out,
        gang=f"4 workers on gloo, {os.cpu_count()} cores; {SEQUENCES} x {TOKENS} tokens a step",
        fitted_on=f"{len(runs)} runs of {FITTED}",
        judged_model=JUDGED,
        judged=judge(measured, predicted),
        curves={name: getattr(curves, name) for name in ("step_s", "process_gib", "near_s")},
    )


if __name__ == "__main__":
    main()
