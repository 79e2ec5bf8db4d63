"""Pretrain a small language model from scratch, and look at what it learnt.

    python examples/pretrain_from_scratch.py                  two CPU cores, no network, a minute
    python examples/pretrain_from_scratch.py --steps 2000 --set plan=auto --address auto

Weights are drawn, texts are packed without gaps, a tenth of them is held out, and the learning rate
falls along a cosine. What comes out is a Hugging Face folder whose logits were compared with the
trained model's, registered in MLflow.
"""

import argparse
import math
import sys
from pathlib import Path

from rayline import Client, JobSpec
from rayline.errors import RaylineError
from rayline.spec import StepReport, TrackingSpec
from rayline.spec.document import apply_overrides

HERE = Path(__file__).resolve().parent


def spec(folder: Path, steps: int, sets: list[str]) -> JobSpec:
    """The whole run in one value; the same tree could stand in a YAML file."""
    return JobSpec.parse(
        apply_overrides(
            {
                "name": "pretrained",
                "model": {"directory": str(HERE / "models" / "tiny")},
                "init": "random",
                "steps": steps,
                "data": {
                    "kind": "text",
                    "files": [str(HERE / "data" / "text.jsonl")],
                    "sequence_tokens": 128,
                },
                "evaluation": {"fraction": 0.1, "every_steps": max(1, steps // 4)},
                "batch": {"sequences": 16},
                "optim": {"lr": 3e-3, "warmup_steps": min(10, steps // 2)},
                "plan": {"data": 2},
                "checkpoint": {"every_steps": max(1, steps // 2)},
                "resources": {"device": "cpu", "cpus_per_worker": 0.5},
                "tracking": {"uri": f"sqlite:///{folder}/mlflow.db"},
                "export": {"register_as": "pretrained"},
                "output_dir": str(folder / "runs" / "{name}"),
            },
            sets,
        )
    )


def show(report: StepReport) -> None:
    """A line for every evaluation."""
    for evaluation in report.evaluations:
        print(
            f"step {evaluation.step:4}  training loss {report.loss:.3f}  held-out loss "
            f"{evaluation.loss:.3f}, perplexity {evaluation.perplexity:.1f}"
        )


def main(words: list[str]) -> int:
    """Plan, train, tell; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path(".rayline/pretrain"))
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--address", help="Ray cluster to join; else Ray is started here")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE")
    given = parser.parse_args(words)
    folder = given.folder.absolute()
    job = spec(folder, given.steps, given.set)
    client = Client(address=given.address, tracking=TrackingSpec(uri=job.tracking.uri))
    plan = client.plan(job)
    print(f"{plan.parameters:,} parameters, {job.plan}, {plan.tokens_per_step:,} tokens a step")
    losses: list[float] = []
    outcome = client.train(job, observers=[show, lambda report: losses.append(report.loss)])
    fair = math.log(plan.model.vocab)
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}; knowing nothing is {fair:.3f}")
    print(f"{outcome.model} in {outcome.result.export.directory if outcome.result.export else '?'}")
    return 0 if losses[-1] < losses[0] else 1


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except RaylineError as wrong:
        print(f"error: {wrong}", file=sys.stderr)
        sys.exit(wrong.exit_code)
