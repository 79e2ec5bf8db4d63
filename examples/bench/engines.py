"""Tokens per second of the native engine against its peers: same model, batch, plan and machine.

    python examples/bench/engines.py                  # ZeRO-3 over 4 workers, three rounds
    python examples/bench/engines.py --zero-stage 0   # replicas, with Hugging Face's Trainer

Every contender trains the same steps from the same weights on the same tokens in the same order
(`peers/` holds one script each), in fp32 with AdamW, clipping and a loss reported at each step.
They run one after another, each round beginning with another one, so that a drift of the machine's
speed meets all. Compared are medians of the seconds between the ends of steps, the first ones left
out; starting up is not counted. The losses are compared as well: whoever computes something else
is no peer.

Under torchrun: rayline's engine, the hand-written script (FSDP2, or DistributedDataParallel for
replicas), DeepSpeed, and Hugging Face's Trainer, which on a CPU can only replicate, so it takes part
in stage 0 alone. On Ray: rayline's gang, Ray Train v2.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

PEERS = Path(__file__).parent / "peers"
sys.path.insert(0, str(PEERS))

from workload import Work

WARM_UP_STEPS = 4
CONTENDERS = {
    "rayline": ("rayline_native.py", "torchrun"),
    "plain_pytorch": ("plain_pytorch.py", "torchrun"),
    "deepspeed": ("deepspeed_zero.py", "torchrun"),
    "hf_trainer": ("hf_trainer.py", "torchrun"),
    "rayline_gang": ("rayline_native.py", "ray"),
    "ray_train_v2": ("ray_train.py", "ray"),
}
RIVALS = {
    "rayline": ("plain_pytorch", "deepspeed", "hf_trainer"),
    "rayline_gang": ("ray_train_v2",),
}
"""Whose tokens per second are set against whose."""


def prepare(folder: Path, options: argparse.Namespace) -> Work:
    """A model of 5 M parameters and its batches, in the order in which rayline draws them."""
    import numpy as np
    import torch

    from rayline.data import SampleOrder, load_dataset
    from rayline.models.tiny import write_tiny_model
    from rayline.spec import DataSpec

    work = Work(str(folder), options.steps, options.sequences, options.workers, options.zero_stage)
    write_tiny_model(
        Path(work.model), layers=6, hidden=256, heads=8, kv_heads=4, ffn=704, vocab=512
    )
    lines = [json.dumps({"text": f"line {n} of {n % 97}: {n * 7919 % 10007}"}) for n in range(6000)]
    (folder / "text.jsonl").write_text("\n".join(lines))
    spec = DataSpec(
        kind="text", files=[str(folder / "text.jsonl")], sequence_tokens=options.sequence_tokens
    )
    dataset = load_dataset(spec, Path(work.model))
    order = SampleOrder(len(dataset), seed=0).indices(0, work.steps * work.sequences)
    rows = np.stack([dataset.tokens[dataset.starts[n] : dataset.stops[n]] for n in order])
    torch.save(torch.from_numpy(rows).long(), folder / "tokens.pt")
    work.save()
    return work


def run(name: str, work: Work, number: int) -> dict[str, Any]:
    """One contender's seconds and losses; what it says goes to a log in the work folder."""
    script, launcher = CONTENDERS[name]
    out = Path(work.folder) / f"{name}-{number}.json"
    command = [sys.executable]
    if launcher == "torchrun":
        command += ["-m", "torch.distributed.run", "--standalone"]
        command += [f"--nproc-per-node={work.workers}"]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "RAY_AUTH_MODE": "disabled",
        "ACCELERATE_USE_CPU": "true",
        "DS_ACCELERATOR": "cpu",
        "PYTHONPATH": os.pathsep.join([str(PEERS), os.environ.get("PYTHONPATH", "")]),
    }
    log = Path(work.folder) / f"{name}-{number}.log"
    with log.open("w") as said:
        done = subprocess.run(
            [*command, str(PEERS / script), work.folder, str(out)],
            env=environment,
            stdout=said,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if done.returncode != 0:
        sys.exit(f"{name} ended with {done.returncode}:\n{log.read_text()[-4000:]}")
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def compare(work: Work, names: list[str], rounds: int) -> dict[str, Any]:
    """Every contender in every round, and the ratios, round by round."""
    tokens = work.sequences * (work.tokens().shape[-1] - 1)
    speeds: dict[str, list[float]] = {name: [] for name in names}
    losses: dict[str, list[float]] = {}
    for number in range(rounds):
        first = number * len(names) // rounds
        for name in [*names[first:], *names[:first]]:
            found = run(name, work, number)
            losses[name] = found["losses"]
            speeds[name].append(tokens / statistics.median(found["seconds"][WARM_UP_STEPS:]))
            print(f"round {number} {name}: {speeds[name][-1]:.0f} tokens/s", flush=True)
    ratios = {
        f"{ours}/{theirs}": [a / b for a, b in zip(speeds[ours], speeds[theirs], strict=True)]
        for ours, others in RIVALS.items()
        for theirs in others
        if ours in speeds and theirs in speeds
    }
    reference = losses[names[0]]
    return {
        "tokens_per_s": speeds,
        "ratios": ratios,
        "median_ratios": {name: statistics.median(found) for name, found in ratios.items()},
        f"largest_loss_difference_to_{names[0]}": {
            name: max(abs(a - b) for a, b in zip(found, reference, strict=True))
            for name, found in losses.items()
        },
    }


def main() -> None:
    """Parse, measure, write the dated result file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--sequences", type=int, default=16)
    parser.add_argument("--sequence-tokens", type=int, default=128)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--zero-stage", type=int, default=3, choices=(0, 1, 2, 3))
    parser.add_argument("--only", nargs="+", choices=list(CONTENDERS), default=list(CONTENDERS))
    options = parser.parse_args()
    names = [name for name in options.only if options.zero_stage == 0 or name != "hf_trainer"]
    with tempfile.TemporaryDirectory() as temporary:
        work = prepare(Path(temporary), options)
        found = compare(work, names, options.rounds)
    packages = ("torch", "transformers", "accelerate", "deepspeed", "ray")
    result = {
        "what": __doc__.splitlines()[0],
        "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
        "command": f"python examples/bench/engines.py {' '.join(sys.argv[1:])}".strip(),
        "hardware": f"{os.cpu_count()} cores, {platform.machine()}, no GPU",
        "versions": {name: version(name) for name in packages},
        "python": platform.python_version(),
        "rounds": options.rounds,
        "work": f"Llama, 6 layers, hidden 256, vocab 512, fp32; data {work.workers} on gloo, ZeRO-"
        f"{work.zero_stage}; {work.sequences} x {options.sequence_tokens} tokens a step",
        **found,
    }
    print(json.dumps(result, indent=2))
    name = f"engines-zero{work.zero_stage}-{result['date']}.json"
    file = Path(__file__).parent / "results" / name
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
