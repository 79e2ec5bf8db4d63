"""Search the learning rate and the batch of a job, then train with the best that was found.

    python examples/search.py                  two CPU cores, no network, two minutes
    python examples/search.py --trials 40 --steps 200

Each trial is a child run in MLflow; weak ones are stopped early. The best trial's job is written as
a spec that `rayline train` takes.
"""

import argparse
import sys
from pathlib import Path

from rayline import Client, JobSpec, TuneSpec
from rayline.errors import RaylineError
from rayline.spec import TrackingSpec

HERE = Path(__file__).resolve().parent


def spec(folder: Path, trials: int, steps: int) -> TuneSpec:
    """What is searched, and the job that every trial changes."""
    return TuneSpec.parse(
        {
            "name": "rates",
            "trials": trials,
            "concurrent": 2,
            "search": "random",
            "metric_window_steps": max(1, steps // 5),
            "space": {
                "optim.lr": {"low": 1e-4, "high": 3e-2, "log": True},
                "optim.warmup_steps": {"low": 0, "high": steps // 2, "integer": True},
            },
            "asha": {"grace_steps": max(1, steps // 4), "reduction_factor": 2},
            "output_dir": str(folder / "search"),
            "job": {
                "name": "best",
                "model": {"directory": str(HERE / "models" / "tiny")},
                "init": "random",
                "steps": steps,
                "data": {
                    "kind": "text",
                    "files": [str(HERE / "data" / "text.jsonl")],
                    "sequence_tokens": 64,
                },
                "batch": {"sequences": 8},
                "optim": {"lr": 1e-3},
                "resources": {"device": "cpu", "cpus_per_worker": 1},
                "tracking": {"uri": f"sqlite:///{folder}/mlflow.db"},
                "output_dir": str(folder / "runs" / "{name}"),
            },
        }
    )


def main(words: list[str]) -> int:
    """Search, tell, train the best; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path(".rayline/search"))
    parser.add_argument("--trials", type=int, default=6)
    parser.add_argument("--steps", type=int, default=20)
    given = parser.parse_args(words)
    search = spec(given.folder.absolute(), given.trials, given.steps)
    client = Client(tracking=TrackingSpec(uri=search.job.tracking.uri))
    outcome = client.tune(search)
    for trial in outcome.trials:
        drawn = ", ".join(f"{field} {value:.3g}" for field, value in trial.params.items())
        loss = "-" if trial.loss is None else f"{trial.loss:.4f}"
        print(f"trial {trial.number}: {trial.status}, loss {loss}, {trial.steps} steps, {drawn}")
    print(f"best spec: {outcome.best_spec}")
    best = JobSpec.load(outcome.best_spec)
    trained = client.train(best, chart=False)
    print(f"trained with it: run {trained.run_id}, {trained.model}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except RaylineError as wrong:
        print(f"error: {wrong}", file=sys.stderr)
        sys.exit(wrong.exit_code)
