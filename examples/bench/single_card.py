"""Tokens per second and MFU on one card: rayline against Hugging Face's Trainer, same model.

    python examples/bench/single_card.py     # a Llama of 1 B in bf16, 4,096 tokens; tiny on a CPU

Where there is no GPU the same scripts run on a tiny model in fp32, which shows that they run and
nothing about a GPU; the result file says so. MFU is what `rayline.planner.flops` counts over what
the card's maker states (`rayline.planner.hardware`); a CPU's peak is not known.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent / "peers"))

from contest import compete, conditions, prepare
from ranks import leave_result
from workload import Work

from rayline.planner import device_peak_flops_per_s, model_flops_per_token
from rayline.spec import ModelShape

BILLION = {
    "layers": 16,
    "hidden": 2048,
    "heads": 32,
    "kv_heads": 8,
    "ffn": 8192,
    "vocab": 32768,
    "max_positions": 4096,
}
TINY = {"layers": 4, "hidden": 128, "heads": 4, "kv_heads": 2, "ffn": 352, "vocab": 512}


def main() -> None:
    """Parse, measure, write the dated result file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--sequences", type=int, default=4)
    options = parser.parse_args()
    gpu = torch.cuda.is_available()
    shape, tokens = (BILLION, 4096) if gpu else (TINY, 128)
    with tempfile.TemporaryDirectory() as folder:
        work = Work(
            folder,
            options.steps,
            options.sequences,
            workers=1,
            zero_stage=0,
            device="gpu" if gpu else "cpu",
            precision="bf16" if gpu else "fp32",
        )
        prepare(work, shape, tokens)
        found = compete(
            work, ["rayline", "hf_trainer"], options.rounds, {"rayline": ("hf_trainer",)}
        )
        config = json.loads((Path(work.model) / "config.json").read_text())
    flops = model_flops_per_token(ModelShape.from_config(config), tokens)
    peak = device_peak_flops_per_s(torch.cuda.get_device_name(), "bf16") if gpu else None
    found["mfu"] = peak and {
        name: [speed * flops / peak for speed in speeds]
        for name, speeds in found["tokens_per_s"].items()
    }
    seen = "" if gpu else " Without a GPU: a tiny model in fp32, which says nothing of a GPU."
    what = f"{__doc__.splitlines()[0]}{seen} {shape}, {tokens} tokens."
    leave_result(__file__, what, " ".join(sys.argv[1:]), **conditions(work), **found)


if __name__ == "__main__":
    main()
