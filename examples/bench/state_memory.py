"""What a rank holds of a model's states, and how far loading them lifts its memory.

    python examples/bench/state_memory.py            # 58 M parameters, four plans

Each plan is a gang of forked processes on gloo that load the model from its folder and take one
step with AdamW in float32. Told of the rank that has most: the bytes of its parameters, gradients
and optimizer states, counted from the tensors as they lie in memory, and how far its resident
memory rose, at its peak, while it loaded, and stood after the step. The first as a share of one
rank's; the last two beside the model's own size. Anonymous memory is the process's own; resident
memory also counts the pages of the weights' file that were read, which all processes share. After
the step much of it is free memory that malloc keeps; what is in use is told besides.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import tempfile
from pathlib import Path
from typing import Any

import torch
from ranks import context_of, leave_result, on_ranks
from torch import nn

import rayline.train.native  # noqa: F401  (once, before the ranks are forked)
from rayline.models.tiny import write_tiny_model
from rayline.parallel.layout import local_part
from rayline.spec import JobSpec
from rayline.train.build import build_engine
from rayline.train.engine import Batch

BAR = 0.35
MIB = 2**20
VOCAB, SEQUENCES, TOKENS = 8192, 4, 16
PLANS: dict[str, dict[str, Any]] = {
    "one rank": {},
    "ZeRO 1 x 4": {"data": 4, "zero_stage": 1},
    "ZeRO 3 x 4": {"data": 4, "zero_stage": 3},
    "tensor 2 x pipeline 2": {"tensor": 2, "pipeline": 2, "microbatches": 2},
}


def state_job(plan: dict[str, Any]) -> JobSpec:
    """One step of a small batch."""
    return JobSpec.parse(
        {
            "name": "state",
            "model": {"directory": "given"},
            "steps": 1,
            "data": {"kind": "text", "files": ["none"], "sequence_tokens": TOKENS},
            "batch": {"sequences": SEQUENCES},
            "optim": {"lr": 1e-3},
            "plan": plan,
        }
    )


def memory(*fields: str) -> list[int]:
    """Fields of proc(5)'s status of this process, in bytes."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return [int(lines[field].split()[0]) * 1024 for field in fields]


def forget_peak() -> None:
    """Let the peak of resident memory begin anew (proc(5), clear_refs)."""
    Path("/proc/self/clear_refs").write_text("5")


def give_back_freed_memory() -> None:
    """What was freed and is kept by malloc for the next step (malloc_trim(3))."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)


def gradient_bytes() -> int:
    """Bytes of this rank's gradients now: of every parameter that has one, whoever holds it."""
    gradients = [
        local_part(one.grad)
        for one in gc.get_objects()
        if isinstance(one, nn.Parameter) and one.grad is not None
    ]
    return sum({each.data_ptr(): each.numel() * each.element_size() for each in gradients}.values())


def live(rank: int, job: JobSpec, model: Path) -> dict[str, int]:
    """One rank: load, one step, and what it held."""
    gc.collect()
    forget_peak()
    (before, own_before) = memory("VmRSS", "RssAnon")
    context = context_of(job, rank)
    engine = build_engine(job, context, model, torch.device("cpu"))
    peak, own_loaded = memory("VmHWM", "RssAnon")
    found = {
        "rss_peak_rise_while_loading": peak - before,
        "own_rise_by_loading": own_loaded - own_before,
    }

    def look(loss: float, grad_norm: float) -> bool:
        found["gradients"] = gradient_bytes()
        return True

    draw = torch.Generator().manual_seed(1)
    ids = torch.randint(0, VOCAB, (SEQUENCES, TOKENS), generator=draw)
    share = ids.chunk(job.plan.data)[context.coordinate.data]
    engine.step(Batch(share, share), 1e-3, look)
    held = {piece.data.data_ptr(): piece for piece in engine.pieces()}.values()
    for kind in ("weight", "optimizer"):
        found[f"{kind}s" if kind == "weight" else "optimizer_states"] = sum(
            piece.data.numel() * piece.data.element_size()
            for piece in held
            if piece.tensor.startswith(f"{kind}/")
        )
    found["states"] = found["weights"] + found["gradients"] + found["optimizer_states"]
    found["own_rise_after_the_step"] = memory("RssAnon")[0] - own_before
    give_back_freed_memory()
    found["own_rise_in_use"] = memory("RssAnon")[0] - own_before
    return found


def compare(layers: int, plans: list[str]) -> tuple[int, dict[str, Any]]:
    """Bytes of the model, and what each plan's ranks held at most."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        sizes = {"hidden": 640, "heads": 10, "kv_heads": 10, "ffn": 1760, "vocab": VOCAB}
        model = write_tiny_model(Path(temporary) / "model", layers=layers, **sizes)
        model_bytes = (model / "model.safetensors").stat().st_size
        for name in plans:
            job = state_job(PLANS[name])
            ranks = on_ranks(job.plan.world_size, live, job, model)
            worst = {key: max(rank[key] for rank in ranks) for key in ranks[0]}
            found[name] = {f"{key}_mib": round(each / MIB, 1) for key, each in worst.items()}
            found[name]["loading_peak_over_model"] = round(
                worst["rss_peak_rise_while_loading"] / model_bytes, 3
            )
            print(f"{name}: {found[name]}", flush=True)
    alone = found["one rank"]["states_mib"]
    for each in found.values():
        each["states_over_one_rank"] = round(each["states_mib"] / alone, 3)
    return model_bytes, found


def main() -> None:
    """Parse, measure, write the dated result file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=10)
    parser.add_argument("--out", type=Path, help="in place of the dated file in results/")
    parser.add_argument(
        "--plans", nargs="+", choices=list(PLANS), default=list(PLANS), help="one rank first"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    model_bytes, found = compare(options.layers, options.plans)
    leave_result(
        __file__,
        __doc__,
        f"--layers {options.layers}",
        options.out,
        model=f"Llama, {options.layers} layers, hidden 640, vocab {VOCAB}, float32: "
        f"{model_bytes / MIB:.0f} MiB",
        bar=f"ZeRO 3 x 4 holds at most {BAR} of one rank's states",
        within_bar=all(
            each["states_over_one_rank"] <= BAR
            for name, each in found.items()
            if name == "ZeRO 3 x 4"
        ),
        plans=found,
    )


if __name__ == "__main__":
    main()
