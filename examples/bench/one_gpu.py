"""One GPU, many kinds of steps: memory and time as predicted, and as measured.

    python examples/bench/one_gpu.py                 # Llamas of 0.4, 1 and 3 B in bf16

The native engine takes steps on random tokens: layers' shapes, microbatch, recompute and compile
vary. Memory is the allocator's peak; a step's time the median after warm-up. The rows bear the
names of the columns of published runs, so that `rayline plan calibrate` reads them.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from ranks import context_of, leave_result

from rayline.models.tiny import byte_tokenizer
from rayline.planner import estimate_memory, model_flops_per_token
from rayline.spec import JobSpec, ModelShape
from rayline.train.build import build_engine
from rayline.train.engine import Batch, Engine

_GIB = 2**30
SHAPES = {
    "llama-0.4b": {"layers": 24, "hidden": 1024, "heads": 16, "kv_heads": 16, "ffn": 2816},
    "llama-1b": {"layers": 16, "hidden": 2048, "heads": 32, "kv_heads": 8, "ffn": 8192},
    "llama-3b": {"layers": 28, "hidden": 3072, "heads": 24, "kv_heads": 8, "ffn": 8192},
}
VOCAB = 32768
CASES: list[dict[str, Any]] = [
    {"model": "llama-0.4b", "tokens": 2048, "microbatch": 4, "recompute": "none"},
    {"model": "llama-0.4b", "tokens": 2048, "microbatch": 8, "recompute": "none"},
    {"model": "llama-0.4b", "tokens": 8192, "microbatch": 2, "recompute": "full"},
    {"model": "llama-1b", "tokens": 4096, "microbatch": 1, "recompute": "none"},
    {"model": "llama-1b", "tokens": 4096, "microbatch": 2, "recompute": "none"},
    {"model": "llama-1b", "tokens": 4096, "microbatch": 4, "recompute": "selective"},
    {"model": "llama-1b", "tokens": 4096, "microbatch": 4, "recompute": "full"},
    {"model": "llama-1b", "tokens": 4096, "microbatch": 8, "recompute": "full"},
    {"model": "llama-1b", "tokens": 4096, "microbatch": 2, "recompute": "none", "sums": 4},
    {"model": "llama-1b", "tokens": 4096, "microbatch": 2, "recompute": "none", "compile": True},
    {"model": "llama-3b", "tokens": 4096, "microbatch": 1, "recompute": "full"},
    {"model": "llama-3b", "tokens": 4096, "microbatch": 2, "recompute": "full"},
]
TINY = {"layers": 2, "hidden": 64, "heads": 4, "kv_heads": 2, "ffn": 128}


def write_config(folder: Path, shape: dict[str, int], vocab: int, tokens: int) -> None:
    """A Llama's config and a tokenizer: its weights are drawn when it is built."""
    from transformers import LlamaConfig

    LlamaConfig(
        num_hidden_layers=shape["layers"],
        hidden_size=shape["hidden"],
        num_attention_heads=shape["heads"],
        num_key_value_heads=shape["kv_heads"],
        intermediate_size=shape["ffn"],
        vocab_size=vocab,
        max_position_embeddings=tokens,
        tie_word_embeddings=False,
        architectures=["LlamaForCausalLM"],
    ).save_pretrained(folder)
    byte_tokenizer(vocab, tokens).save_pretrained(folder)


def job_of(case: dict[str, Any], folder: Path, precision: str) -> JobSpec:
    """The case as a spec."""
    sums = case.get("sums", 1)
    return JobSpec.parse(
        {
            "name": "one-gpu",
            "model": {"directory": str(folder)},
            "init": "random",
            "steps": 100,
            "data": {"kind": "text", "files": ["none"], "sequence_tokens": case["tokens"]},
            "batch": {"sequences": case["microbatch"] * sums},
            "plan": {"microbatches": sums},
            "optim": {"lr": 1e-4},
            "precision": precision,
            "recompute": case["recompute"],
            "compile": {} if case.get("compile") else None,
        }
    )


def seconds_of_steps(engine: Engine, batch: Batch, device: torch.device, steps: int) -> list[float]:
    """Of each step, the first three left out."""
    seconds = []
    for _ in range(steps + 3):
        _settle(device)
        began_s = time.perf_counter()
        engine.step(batch, 1e-4)
        _settle(device)
        seconds.append(time.perf_counter() - began_s)
    return seconds[3:]


def _settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(case: dict[str, Any], device: torch.device, steps: int) -> dict[str, Any]:
    """One case: predicted and measured."""
    gpu = device.type == "cuda"
    shape, vocab = (SHAPES[case["model"]], VOCAB) if gpu else (TINY, 512)
    case = case if gpu else case | {"tokens": 64, "compile": False}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_config(folder, shape, vocab, case["tokens"])
        job = job_of(case, folder, "bf16" if gpu else "fp32")
        model = ModelShape.from_config(json.loads((folder / "config.json").read_text()))
        context = replace(context_of(job, 0), device="cuda" if gpu else "cpu")
        engine = build_engine(job, context, folder, device)
        ids = torch.randint(0, vocab, (job.batch.sequences, case["tokens"] + 1), device=device)
        if gpu:
            torch.cuda.reset_peak_memory_stats()
        seconds = seconds_of_steps(engine, Batch(ids[:, :-1], ids[:, 1:]), device, steps)
    step_s = statistics.median(seconds)
    tokens = job.batch.sequences * case["tokens"]
    peak = torch.cuda.max_memory_allocated() / _GIB if gpu else None
    predicted = estimate_memory(model, job).total_bytes / _GIB
    return {
        **case,
        **shape,
        "vocab": vocab,
        "step_time_s": round(step_s, 5),
        "slowest_s": round(max(seconds), 5),
        "tokens_per_s": round(tokens / step_s),
        "model_tflops": tokens / step_s * model_flops_per_token(model, case["tokens"]) / 1e12,
        "peak_mem_gib": peak,
        "predicted_mem_gib": predicted,
        "predicted_over_measured_mem": peak and predicted / peak,
    }


def main() -> None:
    """Parse, measure, write the dated result file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--models", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    gpu = torch.cuda.is_available()
    device = torch.device("cuda", 0) if gpu else torch.device("cpu")
    store = dist.HashStore()
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if gpu else "gloo", store=store, rank=0, world_size=1
    )
    rows = []
    for case in (one for one in CASES if one["model"] in options.models):
        try:
            rows.append(measure(case, device, options.steps))
        except torch.OutOfMemoryError:
            rows.append({**case, "peak_mem_gib": "out of memory"})
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
        gc.collect()
        if gpu:
            torch.cuda.empty_cache()
    dist.destroy_process_group()
    leave_result(
        __file__,
        __doc__,
        " ".join(sys.argv[1:]),
        options.out,
        versions={name: version(name) for name in ("torch", "transformers")},
        gpu=torch.cuda.get_device_name() if gpu else "none: tiny models, which say nothing of one",
        steps=options.steps,
        rows=rows,
    )


if __name__ == "__main__":
    main()
