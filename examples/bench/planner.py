"""How far predicted step times and memory are from published runs that no curve was fitted on.

    python examples/bench/planner.py --runs published_training_runs.csv \\
        --runs published_single_node_runs.csv --leave-one-out

Sources of the tables are split: curves are fitted on some (`FITTED`), and the errors told are those
of the others. `--leave-one-out` fits once more for each source, and for each family of sources
(parts of one document, and releases of one benchmark, are a family), without it. `--ship` writes
the fitted curves as the package's calibration. Tables in the same columns of which nothing is
fitted are given with `--held-out`.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from ranks import leave_result

from rayline.planner.accelerators import find_accelerator
from rayline.planner.calibration import fit_curves
from rayline.planner.calibration_file import Calibration, write_calibration
from rayline.planner.columns import Machines, stack
from rayline.planner.curves import Curves
from rayline.planner.model_catalogue import find_shape
from rayline.planner.published import MeasuredRun, by_source, read_runs
from rayline.planner.search import Workload, rank_plans
from rayline.planner.stage_memory import GIB, predict_memory
from rayline.planner.step_time import predict_step

FITTED = (
    "[H100 80GB BF16]",
    "[H100 80GB FP8]",
    "[A100 80GB with 1600 Gbps node-node interconnect (RoCE)]",
    "sc21/run_table_1.sh)",
    "chronicles-prequel.md @9e64ede",
    "tr3m-1B3.md @9e64ede",
    "InternEvo doc/en/train_performance.md",
    "(NeMo 24.07)",
    "(NeMo 25.04.rc2)",
    "[25.11 NeMo Container, Pre-Training Performance]",
    "[26.02 NeMo Container, Pre-Training Performance]",
    "[26.04 NeMo Container, Pre-Training Performance]",
    "[26.06 NeMo Container, Pre-Training Performance]",
    "[26.08 NeMo Container, Pre-Training Performance]",
    "ground_truth_single.csv @f8dda84",
)
"""How the names of those sources end that curves are fitted on: every kind of GPU, framework and
precision stands among them, and of what comes in several parts some are held back."""
FAMILIES = ("llm-foundry", "2104.04473", "tr11-176B", "Megatron-Bridge", "InternEvo", "vTrain")
"""A word in the names of sources that belong together."""
WHY_OFF = {
    "Megatron-Bridge": "mixtures of experts became up to twice as fast between releases of one "
    "framework on the same plan, and no column tells which kernels a release had",
    "long_sequence": "recompute and microbatch are not told, attention in 8 bits is not told",
    "2201.11990": "three runs; the plan's recompute is not told, and taken to be full",
    "InternEvo": "from 256 GPUs on gradients of a small batch are summed over a network that is "
    "not told",
    "vTrain": "kernels launched from the host decide at this size, and the host is not told",
    "Best TFLOPs": "microbatches of one sequence, which this source measured slower than others "
    "throughout, on nodes whose PCIe and NUMA settings were mended days later",
    "fms-fsdp": "which blocks are computed again is not told, and taken to be every second",
    "llm-foundry": "the only source with FSDP of 2023 and its attention kernel",
    "batch ramp-up": "a step of one microbatch: what a step costs besides computing",
}
STRIDE = 5
"""Of the single-node table every fifth run is fitted: it has twice as many as all others."""
LEAST_PLANS = 3
"""Plans of one model on one cluster from which choosing one is judged."""
FAR = 0.15


def fitted_on(runs: Sequence[MeasuredRun]) -> list[MeasuredRun]:
    """Those of the sources in FITTED; of a large one every STRIDE-th."""
    found = []
    for source, rows in by_source(runs).items():
        if source.endswith(FITTED):
            found += rows[::STRIDE] if len(rows) > 500 else rows
    return found


def times(runs: Sequence[MeasuredRun], curves: Curves) -> tuple[np.ndarray, np.ndarray]:
    """Predicted and measured step times."""
    measured = np.array([run.step_s for run in runs])
    return predict_step(stack(run.parts for run in runs), curves).total_s, measured


def summary(errors: np.ndarray) -> dict[str, Any]:
    """Of relative errors."""
    return {
        "runs": len(errors),
        "median_abs_error": round(float(np.median(np.abs(errors))), 4),
        "mean_abs_error": round(float(np.mean(np.abs(errors))), 4),
        "median_error": round(float(np.median(errors)), 4),
    }


def errors_by_source(runs: Sequence[MeasuredRun], curves: Curves) -> dict[str, dict[str, Any]]:
    """Step-time errors of each source, and why it is off where it is."""
    found = {}
    for source, rows in by_source(runs).items():
        predicted, measured = times(rows, curves)
        told = summary(predicted / measured - 1)
        if told["median_abs_error"] > FAR / 1.5 or told["mean_abs_error"] > FAR:
            why = next((why for word, why in WHY_OFF.items() if word in source), None)
            told |= {"why": why} if why else {}
        found[source] = told
    return found


def overall(runs: Sequence[MeasuredRun], curves: Curves) -> dict[str, Any]:
    """Errors of all runs together."""
    predicted, measured = times(runs, curves)
    return summary(predicted / measured - 1)


def left_out(
    runs: Sequence[MeasuredRun], key: Callable[[str], str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Errors of each group of sources under curves fitted on all others; of all published runs
    together, the single-node table aside."""
    thin = [
        r for s, rows in by_source(runs).items() for r in rows[:: STRIDE if len(rows) > 500 else 1]
    ]
    found: dict[str, Any] = {}
    errors = []
    for group in dict.fromkeys(key(run.source) for run in runs):
        curves = fit_curves([run for run in thin if key(run.source) != group])
        held = [run for run in runs if key(run.source) == group]
        predicted, measured = times(held, curves)
        found[group] = summary(predicted / measured - 1)
        if found[group]["median_abs_error"] > FAR / 1.5:
            why = next((why for word, why in WHY_OFF.items() if word in group), None)
            found[group] |= {"why": why} if why else {}
        if len(held) < 500:
            errors.append(predicted / measured - 1)
        print(f"without {group[-60:]:60s} {found[group]}", flush=True)
    return found, summary(np.concatenate(errors))


def family(source: str) -> str:
    """The family of a source; itself where it has none."""
    return next((word for word in FAMILIES if word in source), source)


def memory(runs: Sequence[MeasuredRun], curves: Curves) -> dict[str, Any]:
    """Errors of peak memory, and whether what ran out of it was called so."""
    told = [run for run in runs if run.memory_gib is not None]
    if not told:
        return {}
    predicted = predict_memory(stack(run.parts for run in told), curves).total / GIB
    found: dict[str, Any] = {}
    errors, called, ran_out, fitted, fits = [], 0, 0, 0, 0
    for run, gib in zip(told, predicted.tolist(), strict=True):
        room = run.machines.accelerator.memory_gib
        if math.isinf(run.memory_gib or 0):
            ran_out, called = ran_out + 1, called + (gib > room)
        else:
            errors.append(gib / (run.memory_gib or 1) - 1)
            fitted, fits = fitted + 1, fits + (gib <= room)
    found["all"] = summary(np.array(errors))
    for source, rows in by_source(told).items():
        chosen = [
            gib / (run.memory_gib or 1) - 1
            for run, gib in zip(told, predicted.tolist(), strict=True)
            if run.source == source and not math.isinf(run.memory_gib or 0)
        ]
        if chosen:
            found[source] = summary(np.array(chosen))
        del rows
    found["ran_out"] = {"runs": ran_out, "called_so": called}
    found["ran"] = {"runs": fitted, "called_so": fits}
    return found


def choices(runs: Sequence[MeasuredRun], curves: Curves) -> dict[str, Any]:
    """Of many plans for one model, cluster and batch: the measured time of the one that would have
    been chosen, over the best measured one."""
    groups: dict[tuple[object, ...], list[MeasuredRun]] = {}
    for run in runs:
        layout = run.layout
        sequences = layout.data * layout.microbatch * layout.microbatches
        key = (run.source, run.label, run.sizes, run.machines, run.precision, run.tokens)
        groups.setdefault((*key, round(sequences, -1) or sequences, layout.recompute), []).append(
            run
        )
    ratios: dict[str, list[float]] = {}
    for (source, *_), rows in groups.items():
        if len({row.layout for row in rows}) < LEAST_PLANS:
            continue
        predicted, measured = times(rows, curves)
        chosen = measured[int(np.argmin(predicted))] / float(np.min(measured))
        ratios.setdefault(str(source), []).append(float(chosen))
    return {
        source: {
            "models": len(found),
            "mean_over_best": round(float(np.mean(found)), 4),
            "median_over_best": round(float(np.median(found)), 4),
            "worst_over_best": round(max(found), 4),
            "best_chosen": sum(one == 1 for one in found),
        }
        for source, found in ratios.items()
    }


def largest_search(curves: Curves) -> dict[str, Any]:
    """The search for Llama 3 405B on 16,384 GPUs: how long, and where Meta's plan comes out."""
    shape = find_shape("meta-llama/Llama-3-405B")
    if shape is None:
        raise SystemExit("the catalogue has no Llama 3 405B")
    machines = Machines(find_accelerator("H100"), 16384)
    began = time.perf_counter()
    ranking = rank_plans(shape, machines, Workload(2048, 8192), curves)
    seconds = time.perf_counter() - began
    return {"seconds": round(seconds, 3), "plans": ranking.tried, "fit": len(ranking.order)}


def read_all(files: Sequence[Path]) -> tuple[list[MeasuredRun], dict[str, int]]:
    """The runs of all tables, and for each reason how many rows are left out."""
    runs, reasons = [], {}
    for file in files:
        found, left = read_runs(file)
        runs += found
        for row in left:
            reasons[row.why] = reasons.get(row.why, 0) + 1
    return runs, reasons


def main() -> None:
    """Fit, predict, write the dated result file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=Path, action="append", required=True)
    parser.add_argument("--held-out", type=Path, action="append", default=[])
    parser.add_argument("--leave-one-out", action="store_true")
    parser.add_argument(
        "--ship", type=Path, help="write the fitted curves to this calibration file"
    )
    parser.add_argument("--out", type=Path, help="result file; default: dated, in results/")
    options = parser.parse_args()
    runs, reasons = read_all(options.runs)
    fitted = fitted_on(runs)
    curves = fit_curves(fitted)
    timed = [run for run in runs if run.step_s]
    held = [run for run in timed if not run.source.endswith(FITTED)]
    found: dict[str, Any] = {
        "fitted_on": {source: len(rows) for source, rows in by_source(fitted).items()},
        "held_out": overall(held, curves),
        "held_out_by_source": errors_by_source(held, curves),
        "held_out_of_other_families": overall(
            [r for r in held if "Megatron-Bridge" not in r.source], curves
        ),
        "fitted_by_source": errors_by_source(
            [run for run in timed if run.source.endswith(FITTED)], curves
        ),
        "memory": memory(runs, curves),
        "memory_held_out": memory([r for r in runs if not r.source.endswith(FITTED)], curves),
        "chosen_over_best": choices(timed, curves),
        "search_of_16384_gpus": largest_search(curves),
        "rows_left_out": reasons,
    }
    if options.held_out:
        others, why = read_all(options.held_out)
        told = [run for run in others if run.step_s]
        found["other_tables"] = {
            "all": overall(told, curves),
            "by_source": errors_by_source(told, curves),
            "memory": memory(others, curves),
            "chosen_over_best": choices(told, curves),
            "rows_left_out": why,
        }
    if options.leave_one_out:
        by_one, all_one = left_out(timed, lambda source: source)
        by_family, all_families = left_out(timed, family)
        found["leave_one_source_out"] = {"all_but_single_node": all_one, **by_one}
        found["leave_one_family_out"] = {"all_but_single_node": all_families, **by_family}
    if options.ship:
        today = datetime.now(tz=UTC).date().isoformat()
        write_calibration(Calibration(curves, today, found["fitted_on"]), options.ship)
    files = " ".join(f"--runs {file.name}" for file in options.runs)
    leave_result(__file__, __doc__, f"{files} --leave-one-out", options.out, **found)


if __name__ == "__main__":
    main()
