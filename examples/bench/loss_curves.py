"""The loss under seven plans against one rank's: the same curve, step by step.

    python examples/bench/loss_curves.py            # 50 steps, eight runs, a plot beside the result

Global batch, seed and data are the same in all runs; only the plan differs. Ranks are forked
processes on gloo (four at most), the model is small and random, its text regular enough to be
learnt. What is told of each plan is the largest difference of a step's loss to one rank's.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from ranks import context_of, leave_result, on_ranks

import rayline.train.native  # noqa: F401  (once, before the ranks are forked)
from rayline.models.tiny import write_tiny_model
from rayline.spec import JobSpec
from rayline.train.build import build_engine
from rayline.train.engine import Batch
from rayline.train.pace import Pace

BAR = 1e-4
VOCAB, SEQUENCES, TOKENS = 264, 8, 32
PLANS: dict[str, dict[str, Any]] = {
    "data, stage 1": {"data": 4, "zero_stage": 1, "microbatches": 2},
    "data, stage 3": {"data": 4, "zero_stage": 3},
    "tensor + sequence": {"tensor": 4, "sequence": True},
    "pipeline, 1f1b": {"pipeline": 4, "microbatches": 4},
    "context, ring": {"context": 4, "context_method": "ring"},
    "data x tensor, stage 2": {"data": 2, "tensor": 2, "zero_stage": 2},
    "tensor x pipeline, zero-bubble": {
        "tensor": 2,
        "pipeline": 2,
        "microbatches": 4,
        "schedule": "zero_bubble",
    },
}


def curve_job(steps: int, plan: dict[str, Any]) -> JobSpec:
    """The job whose loss is followed."""
    return JobSpec.parse(
        {
            "name": "curve",
            "model": {"directory": "given"},
            "steps": steps,
            "data": {"kind": "text", "files": ["none"], "sequence_tokens": TOKENS},
            "batch": {"sequences": SEQUENCES},
            "optim": {"lr": 1e-2, "weight_decay": 0.1, "warmup_steps": 5},
            "plan": plan,
        }
    )


def global_batch(step: int) -> Batch:
    """Arithmetic progressions of bytes, other ones at each step; the last place has no target."""
    draw = torch.Generator().manual_seed(step)
    first, stride = (torch.randint(1, most, (SEQUENCES, 1), generator=draw) for most in (40, 4))
    text = (first + stride * torch.arange(TOKENS + 1)) % 256
    return Batch(text[:, :-1].contiguous(), text[:, 1:].contiguous())


def live(rank: int, job: JobSpec, model: Path) -> list[float]:
    """One rank's run: the loss of every step."""
    context = context_of(job, rank)
    engine = build_engine(job, context, model, torch.device("cpu"))
    pace, here, losses = Pace(job), context.coordinate.data, []
    for step in range(1, job.steps + 1):
        whole = global_batch(step)
        ids, labels = (each.chunk(job.plan.data)[here] for each in (whole.input_ids, whole.labels))
        outcome = engine.step(Batch(ids, labels), pace.learning_rate(step), pace.admits)
        pace.done(step, outcome)
        losses.append(outcome.loss)
    return losses


def compare(steps: int, plans: list[str]) -> dict[str, list[float]]:
    """The loss of every step, by plan; one rank's first."""
    found = {}
    with tempfile.TemporaryDirectory() as temporary:
        model = write_tiny_model(Path(temporary) / "model", hidden=64, ffn=128, kv_heads=4)
        for name in ("one rank", *plans):
            job = curve_job(steps, PLANS.get(name, {}))
            found[name] = on_ranks(job.plan.world_size, live, job, model)[0]
            print(f"{name}: {found[name][0]:.4f} to {found[name][-1]:.4f}", flush=True)
    return found


def plot(curves: dict[str, list[float]], file: Path) -> None:
    """The curves, and their differences to one rank's."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (above, below) = pyplot.subplots(2, 1, sharex=True, figsize=(7, 6))
    for name, losses in curves.items():
        steps = range(1, len(losses) + 1)
        above.plot(steps, losses, label=name)
        if name != "one rank":
            apart = [abs(a - b) for a, b in zip(losses, curves["one rank"], strict=True)]
            below.semilogy(steps, [max(each, 1e-9) for each in apart], label=name)
    below.axhline(BAR, color="black", linestyle=":")
    above.set_ylabel("loss")
    above.legend(fontsize="small")
    below.set_ylabel("difference to one rank")
    below.set_xlabel("step")
    figure.savefig(file, dpi=120)


def main() -> None:
    """Parse, run, write the dated result file and the plot."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--out", type=Path, help="in place of the dated file in results/")
    parser.add_argument("--plans", nargs="+", choices=list(PLANS), default=list(PLANS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    curves = compare(options.steps, options.plans)
    alone = curves["one rank"]
    apart = {
        name: max(abs(a - b) for a, b in zip(losses, alone, strict=True))
        for name, losses in curves.items()
        if name != "one rank"
    }
    file = leave_result(
        __file__,
        __doc__,
        f"--steps {options.steps}",
        options.out,
        model=f"Llama, 4 layers, hidden 64, vocab {VOCAB}, float32; {SEQUENCES} x {TOKENS} tokens",
        plans={name: PLANS[name] for name in options.plans},
        bar=BAR,
        largest_difference_of_loss=apart,
        largest=max(apart.values()),
        within_bar=max(apart.values()) <= BAR,
        losses=curves,
    )
    plot(curves, file.with_suffix(".png"))


if __name__ == "__main__":
    main()
