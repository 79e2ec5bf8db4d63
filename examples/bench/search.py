"""Searches: what the planner refuses, what ASHA saves, a killed driver, and a population's gain.

    python examples/bench/search.py --part 1     # learning rate x warm-up x plan, on eight nodes
    python examples/bench/search.py --part 2     # a population against fixed schedules, 3 seeds

Part 1: eight simulated nodes of one worker each, whose device is said to have DEVICE_GIB. Every
plan of the space is first given to `actors.train` by itself: what that refuses, and what it
measures beyond DEVICE_GIB, is infeasible. Then the same draws run once whole and once under ASHA,
whose driver is killed with SIGKILL halfway and gone on with by another. Part 2: four members
against four trials with the same first draws, the same steps and the same schedule, whose rates
stay as they were drawn. Losses are means over the newest steps of training, which reads the same
data in all trials of a seed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from quick import ROOT, quick_job
from ranks import leave_result

from rayline.errors import RaylineError
from rayline.spec import JobSpec, TuneSpec

NODES = 8
DEVICE_GIB = 0.8
TRIALS = 10
PLANS: dict[str, list[Any]] = {
    "plan.data": [1, 2],
    "plan.tensor": [1, 2, 3, 8],
    "plan.microbatches": [1, 8],
}
MEMBERS = 4
SEEDS = (0, 1, 2)


def search_spec(folder: Path, name: str, **changes: Any) -> TuneSpec:
    """The search of part 1 over the quickstart's model."""
    job = quick_job(
        folder,
        {
            "steps": 15,
            "batch.sequences": 32,
            "data.sequence_tokens": 256,
            "plan.data": 1,
            "checkpoint.every_steps": 3,
            "resources.cpus_per_worker": 1,
            "export.register_as": None,
        },
    )
    tree = {
        "name": name,
        "job": job.model_dump(mode="json"),
        "trials": TRIALS,
        "concurrent": 2,
        "search": "random",
        "seed": 4,
        "metric_window_steps": 2,
        "prune": {"device_memory_gib": DEVICE_GIB, "draws_per_trial": 50},
        "output_dir": str(folder / name),
        "space": {
            "optim.lr": {"low": 1e-4, "high": 3e-2, "log": True},
            "optim.warmup_steps": {"low": 0, "high": 6, "integer": True},
            **{field: {"choices": values} for field, values in PLANS.items()},
        },
    }
    return TuneSpec.parse({**tree, **changes})


def truth(folder: Path) -> dict[str, str]:
    """Each plan of the space to why it cannot run; empty where it can: by running it."""
    from rayline.actors import train

    base = search_spec(folder, "truth").job
    found = {}
    for values in itertools.product(*PLANS.values()):
        plan = dict(zip(PLANS, values, strict=True))
        name = "-".join(str(value) for value in values)
        changes = {**plan, "steps": 2, "name": f"plan-{name}", "output_dir": str(folder / name)}
        try:
            outcome = train(base.changed(changes))
        except RaylineError as wrong:
            found[plan_name(plan)] = type(wrong).__name__
            continue
        peak_gib = max(outcome.result.peak_memory_bytes) / 2**30
        print(f"{plan_name(plan)}: {peak_gib:.3f} GiB", flush=True)
        found[plan_name(plan)] = "memory" if peak_gib > DEVICE_GIB else ""
    return found


def plan_name(params: dict[str, Any]) -> str:
    """Such as data=1 tensor=2 microbatches=8."""
    return " ".join(f"{field.partition('.')[2]}={params[field]}" for field in PLANS)


def drive(spec_file: Path, resume: bool) -> None:
    """What a driver's process runs."""
    from rayline.tuning import search

    search(TuneSpec.load(spec_file), resume=resume)


def driver(spec: TuneSpec, folder: Path, resume: bool = False) -> subprocess.Popen[bytes]:
    """A driver in a process of its own, on the cluster of RAY_ADDRESS."""
    file = folder / f"{spec.name}.yaml"
    file.write_text(spec.to_yaml())
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "platform")}
    command = [sys.executable, __file__, "--drive", str(file)]
    return subprocess.Popen([*command, "--resume"] if resume else command, env=environment)


def finished(process: subprocess.Popen[bytes]) -> None:
    if process.wait() != 0:
        raise RuntimeError(f"a driver ended with code {process.returncode}")


def rows_of(spec: TuneSpec) -> list[Any]:
    from rayline.tuning.journal import read_rows

    files = list(Path(spec.directory).glob("*/journal.jsonl"))
    return read_rows(files[0].read_text(), str(files[0])) if files else []


def ends_of(rows: list[Any]) -> list[int]:
    """Numbers of the trials that ended, once for each end."""
    return [row.trial for row in rows if row.kind in ("end", "stop")]


def steps_of(spec: TuneSpec) -> dict[str, list[int]]:
    """By trial, every step that was computed, those computed again included."""
    return {
        file.parent.name: [json.loads(line)["step"] for line in file.read_text().splitlines()]
        for file in Path(spec.directory).glob("*/*/steps.jsonl")
    }


def best_of(spec: TuneSpec) -> float:
    """Smallest loss of a trial that finished."""
    rows = rows_of(spec)
    return min(row.values["loss"] for row in rows if row.kind == "end" and "loss" in row.values)


def killed_halfway(spec: TuneSpec, folder: Path) -> dict[str, Any]:
    """The search under a driver that is killed once half of the trials ended, then another."""
    process = driver(spec, folder)
    while len(ends_of(rows_of(spec))) < TRIALS // 2:
        if process.poll() is not None:
            raise RuntimeError("the driver ended before it was killed")
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before, done = steps_of(spec), set(ends_of(rows_of(spec)))
    finished(driver(spec, folder, resume=True))
    after, ends = steps_of(spec), ends_of(rows_of(spec))
    names = {number: f"{spec.name}-{number:03d}" for number in range(TRIALS)}
    repeated = {name: len(steps) - len(set(steps)) for name, steps in after.items()}
    return {
        "trials_ended_before_the_kill": len(done),
        "trials_under_way_at_the_kill": len(set(before) - {names[number] for number in done}),
        "trials_lost": sum(number not in ends for number in range(TRIALS)),
        "trials_with_two_ends": len(ends) - len(set(ends)),
        "ended_trials_that_ran_again": sum(
            after[names[number]][: len(before[names[number]])] != after[names[number]]
            # One that was being stopped may have had a step in flight.
            and len(after[names[number]]) - len(before[names[number]]) > 2
            for number in done
        ),
        "steps_computed_twice": sum(repeated.values()),
        "steps_before_the_kill_of_those_under_way": sum(
            len(steps)
            for name, steps in before.items()
            if name not in {names[number] for number in done}
        ),
    }


def pruning(spec: TuneSpec, why: dict[str, str]) -> dict[str, Any]:
    """The draws of the whole search against the truth."""
    draws = [row for row in rows_of(spec) if row.kind == "draw"]
    infeasible = [row for row in draws if why[plan_name(row.params)]]
    refused = [row for row in infeasible if row.refused is not None]
    wrongly = [row for row in draws if row.refused is not None and not why[plan_name(row.params)]]
    return {
        "plans_of_the_space": why,
        "draws": len(draws),
        "infeasible_draws": len(infeasible),
        "of_these_refused_before_placement": len(refused),
        "share_refused": len(refused) / len(infeasible),
        "feasible_draws_refused": len(wrongly),
        "refused_by": {
            kind: sum(row.refused == kind for row in draws)
            for kind in ("spec", "memory", "placement", "time")
        },
    }


def part_one() -> dict[str, Any]:
    """Pruning, ASHA and a killed driver."""
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster()
    try:
        cluster.add_node(num_cpus=0, include_dashboard=False)
        for _ in range(NODES):
            cluster.add_node(num_cpus=1)
        os.environ["RAY_ADDRESS"] = cluster.address
        ray.init(address=cluster.address, log_to_driver=False)
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            began_s = time.perf_counter()
            why = truth(folder)
            print(f"every plan by itself: {time.perf_counter() - began_s:.0f} s", flush=True)
            whole = search_spec(folder, "whole")
            halved = search_spec(
                folder, "asha", stopping={"kind": "asha", "grace_steps": 2, "reduction_factor": 4}
            )
            began_s = time.perf_counter()
            finished(driver(whole, folder))
            whole_s = time.perf_counter() - began_s
            print(f"the whole search: {whole_s:.0f} s", flush=True)
            kill = killed_halfway(halved, folder)
            all_steps = {
                spec.name: sum(map(len, steps_of(spec).values())) for spec in (whole, halved)
            }
            best = {spec.name: best_of(spec) for spec in (whole, halved)}
            return {
                "pruning": pruning(whole, why),
                "asha": {
                    "same_draws": [row.params for row in rows_of(whole) if row.kind == "draw"]
                    == [row.params for row in rows_of(halved) if row.kind == "draw"],
                    "steps": all_steps,
                    "share_of_steps": all_steps["asha"] / all_steps["whole"],
                    "best_loss": best,
                    "loss_above_whole": best["asha"] / best["whole"] - 1,
                    "whole_search_s": whole_s,
                },
                "killed_driver": kill,
            }
    finally:
        ray.shutdown()
        cluster.shutdown()


def population_job(folder: Path, seed: int) -> JobSpec:
    """The quickstart's model on its bundled text, one worker."""
    return quick_job(
        folder,
        {
            "steps": 45,
            "seed": seed,
            "plan.data": 1,
            "resources.cpus_per_worker": 1,
            "export.register_as": None,
        },
    )


def one_seed(folder: Path, seed: int) -> dict[str, Any]:
    """Fixed rates and a population, from the same draws."""
    from rayline.tuning import search

    found: dict[str, Any] = {}
    for name, population in (
        ("fixed", None),
        ("population", {"every_steps": 15, "factors": [0.6, 1.6]}),
    ):
        spec = TuneSpec.parse(
            {
                "name": f"{name}-{seed}",
                "job": population_job(folder, seed).model_dump(mode="json"),
                "trials": MEMBERS,
                "concurrent": 2,
                "search": "random",
                "seed": seed,
                "metric_window_steps": 5,
                "population": population,
                "output_dir": str(folder / f"{name}-{seed}"),
                "space": {"optim.lr": {"low": 1e-4, "high": 3e-2, "log": True}},
            }
        )
        began_s = time.perf_counter()
        outcome = search(spec)
        rows = rows_of(spec)
        found[name] = {
            "best_loss": outcome.best.loss,
            "losses": sorted(trial.loss or float("inf") for trial in outcome.trials),
            "first_rates": [row.params["optim.lr"] for row in rows if row.kind == "draw"],
            "moved": sum(len(trial.moved) for trial in outcome.trials),
            "steps": sum(map(len, steps_of(spec).values())),
            "wall_s": time.perf_counter() - began_s,
        }
        print(f"seed {seed}, {name}: {found[name]}", flush=True)
    found["population_better_by"] = (
        1 - found["population"]["best_loss"] / found["fixed"]["best_loss"]
    )
    return found


def part_two() -> dict[str, Any]:
    """A population against fixed schedules of the same budget."""
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        with tempfile.TemporaryDirectory() as temporary:
            seeds = {str(seed): one_seed(Path(temporary), seed) for seed in SEEDS}
    finally:
        ray.shutdown()
    better = sum(one["population_better_by"] > 0 for one in seeds.values())
    return {"seeds": seeds, "seeds_in_which_the_population_is_better": f"{better} of {len(SEEDS)}"}


def main() -> None:
    """Parse, measure, write the dated result files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", type=int, choices=(1, 2), action="append", help="both by default")
    parser.add_argument("--drive", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--resume", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if options.drive is not None:
        drive(options.drive, options.resume)
        return
    for part in options.part or (1, 2):
        began_s = time.perf_counter()
        found = part_one() if part == 1 else part_two()
        leave_result(
            __file__,
            __doc__,
            f"--part {part}",
            variant=f"-part{part}",
            versions={name: version(name) for name in ("ray", "torch", "optuna", "cmaes")},
            model="Llama, 0.7 M parameters, from scratch on the bundled text",
            runs=f"part {part} once, {time.perf_counter() - began_s:.0f} s",
            **found,
        )


if __name__ == "__main__":
    main()
