"""How contenders meet: the same work for all, each run by itself, one after another, or all side by
side, by turns."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from turns import Contender, measures, ratios, take_turns
from workload import STEPS_FILE, Work

from rayline.data import collate, load_dataset
from rayline.models.tiny import write_tiny_model
from rayline.spec import DataSpec

HERE = Path(__file__).parent
WARM_UP_STEPS = 4
CONTENDERS = {
    "rayline": ("rayline_native.py", "torchrun"),
    "plain_pytorch": ("plain_pytorch.py", "torchrun"),
    "deepspeed": ("deepspeed_zero.py", "torchrun"),
    "hf_trainer": ("hf_trainer.py", "torchrun"),
    "rayline_gang": ("rayline_native.py", "ray"),
    "ray_train_v2": ("ray_train.py", "ray"),
}
"""Script, and what starts its workers."""
PACKAGES = ("torch", "transformers", "accelerate", "deepspeed", "ray")
_LINE_TOKENS = 20
"""Fewer than any line of the text has."""


def conditions(work: Work) -> dict[str, Any]:
    """What a result file says of the machine and of the work."""
    said: dict[str, Any] = {
        "versions": {name: version(name) for name in PACKAGES},
        "work": work.described(),
    }
    if work.device == "gpu":
        said["hardware"] = torch.cuda.get_device_name()
    return said


def prepare(work: Work, shape: dict[str, int], sequence_tokens: int) -> None:
    """The model of `shape` and its batches, in the order in which rayline draws them."""
    folder = Path(work.folder)
    write_tiny_model(Path(work.model), **shape)  # type: ignore[arg-type]
    lines = work.steps * work.sequences * sequence_tokens // _LINE_TOKENS + sequence_tokens
    text = [json.dumps({"text": f"line {n} of {n % 97}: {n * 7919 % 10007}"}) for n in range(lines)]
    (folder / "text.jsonl").write_text("\n".join(text))
    spec = DataSpec(
        kind="text", files=[str(folder / "text.jsonl")], sequence_tokens=sequence_tokens
    )
    dataset = load_dataset(spec, Path(work.model))
    order = dataset.order(seed=0).indices(0, work.steps * work.sequences)
    input_ids, labels, _ = collate(dataset, order)
    torch.save(torch.cat([input_ids, labels[:, -1:]], 1), folder / "tokens.pt")
    work.save()


def run(name: str, work: Work, number: int) -> dict[str, Any]:
    """One contender's seconds and losses; what it says goes to a log in the work folder."""
    out = Path(work.folder) / f"{name}-{number}.json"
    log = Path(work.folder) / f"{name}-{number}.log"
    with log.open("w") as said:
        done = subprocess.run(
            command(name, work, out),
            env=environment(work),
            stdout=said,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if done.returncode != 0:
        sys.exit(f"{name} ended with {done.returncode}:\n{log.read_text()[-4000:]}")
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def command(name: str, work: Work, out: Path) -> list[str]:
    """What starts a contender."""
    script, launcher = CONTENDERS[name]
    words = [sys.executable]
    if launcher == "torchrun":
        words += ["-m", "torch.distributed.run", "--standalone"]
        words += [f"--nproc-per-node={work.workers}"]
    return [*words, str(HERE / script), work.folder, str(out)]


def environment(work: Work) -> dict[str, str]:
    """Of every contender alike."""
    paths = [str(HERE), os.environ.get("PYTHONPATH", "")]
    alike = {**os.environ, "RAY_AUTH_MODE": "disabled", "PYTHONPATH": os.pathsep.join(paths)}
    if work.device == "cpu":
        alike |= {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    return alike


def take_turns_at(
    work: Work, names: list[str], slices: int, slice_s: float, rivals: dict[str, tuple[str, ...]]
) -> dict[str, Any]:
    """Contenders under torchrun side by side, by turns; what each did, and the ratios of `rivals`.
    The work has to have more steps than they do meanwhile."""
    with ExitStack() as running:
        contenders: dict[str, Contender] = {}
        for name in names:
            steps = Path(work.folder) / f"{name}.steps"
            told = environment(work) | {STEPS_FILE: str(steps)}
            out = Path(work.folder) / f"{name}.json"
            contenders[name] = Contender(command(name, work, out), told, steps)
            running.callback(contenders[name].end)
            contenders[name].settle()
            contenders[name].pause()
        seconds = take_turns(contenders, slices, slice_s)
        losses = {
            name: [float(line[2]) for line in one.lines()] for name, one in contenders.items()
        }
    reference = losses[names[0]]
    return {
        "slices": slices,
        "slice_s": slice_s,
        "steps": {name: measures(found) for name, found in seconds.items()},
        "ratios": {
            f"{ours}/{theirs}": ratios(seconds[ours], seconds[theirs])
            for ours, others in rivals.items()
            for theirs in others
            if ours in seconds and theirs in seconds
        },
        f"largest_loss_difference_to_{names[0]}": {
            name: max(abs(a - b) for a, b in zip(found, reference, strict=False))
            for name, found in losses.items()
        },
    }


def compete(
    work: Work, names: list[str], rounds: int, rivals: dict[str, tuple[str, ...]]
) -> dict[str, Any]:
    """Every contender in every round, each round beginning with another one; tokens per second,
    the ratios of `rivals`, ours to theirs, and how far the losses lie apart."""
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
        for ours, others in rivals.items()
        for theirs in others
        if ours in speeds and theirs in speeds
    }
    reference = losses[names[0]]
    return {
        "rounds": rounds,
        "tokens_per_s": speeds,
        "ratios": ratios,
        "median_ratios": {name: statistics.median(found) for name, found in ratios.items()},
        f"largest_loss_difference_to_{names[0]}": {
            name: max(abs(a - b) for a, b in zip(found, reference, strict=True))
            for name, found in losses.items()
        },
    }
