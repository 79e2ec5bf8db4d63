"""Tables of measured runs: one row a run, in the columns of a published CSV or of rayline's own
records. What a source does not tell, but is known of the framework that it names, is told here.

Only what a framework does counts, by its name and year, never where the row was read.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rayline.errors import SpecError
from rayline.planner.accelerators import find_accelerator
from rayline.planner.columns import Habits, Layout, Machines, Sizes
from rayline.planner.model_catalogue import find_sizes
from rayline.planner.own_runs import OWN, own_layout

_COLUMNS = ("source", "model", "seq_len", "gpu_type", "n_gpus", "micro_batch", "global_batch")
_NIC_GBIT = {"1600 Gbps": 200.0, "8x 200Gb/s": 200.0, "Omni-Path": 50.0}
"""What an interconnect comes to for each GPU, by a word of its name: 4 Omni-Path links of 100 Gb/s
a node of 8."""
_PRECISIONS = {"amp_bf16": "bf16", "amp_fp8": "fp8", "mxfp8": "fp8", "nvfp4": "fp4", "": "bf16"}

_MEGATRON_2021 = Habits(flash=0, hides_data=0, fused=0, recent=0, gradient_bytes=2, waits=1)
_DEEPSPEED = replace(_MEGATRON_2021, sums_whole=1, step_bytes=7)
_FSDP_2023 = Habits(
    hides_data=1, gathers_layers=1, fused=0, gradient_bytes=2, recent=0, weight_bytes=2
)
_NEMO = Habits(hides_tensor=1, gradient_bytes=4)
_HABITS: tuple[tuple[str, Habits], ...] = (
    ("DeepSpeed ZeRO-3", replace(_DEEPSPEED, hides_data=1, gathers_layers=1, one_link=1)),
    ("Megatron-DeepSpeed", _DEEPSPEED),
    ("Megatron-LM", _MEGATRON_2021),
    ("llm-foundry", _FSDP_2023),
    ("lit-gpt FSDP", replace(_FSDP_2023, fused=1)),
    ("fms-fsdp", replace(_FSDP_2023, fused=1, recent=1)),
    (
        "InternEvo",
        Habits(recent=0, fused=0, hides_data=0, gradient_bytes=2, sums_whole=1, step_bytes=13),
    ),
    ("Megatron-Bridge 25", _NEMO),
    ("Megatron-Bridge 26.02", replace(_NEMO, graphed=0.5)),
    ("Megatron-Bridge 26.04", replace(_NEMO, graphed=0.5)),
    ("Megatron-Bridge", replace(_NEMO, graphed=0.8)),
    ("NeMo", _NEMO),
    ("torchtitan", replace(_FSDP_2023, fused=1, recent=1, gradient_bytes=4)),
    ("nanotron", Habits(hides_data=0, fused=0)),
    ("MegaScale", Habits(hides_tensor=1, recent=1, gradient_bytes=4)),
    ("Megatron", Habits(recent=0)),
    ("DeepSpeed", replace(_DEEPSPEED, flash=1, hides_data=1)),
    ("FSDP", replace(_FSDP_2023, fused=1, recent=1)),
)
"""By a word of the framework's name; the first that fits holds."""


@dataclass(frozen=True, slots=True)
class MeasuredRun:
    """One run of a table, and what was measured of it."""

    row: str
    """Its row_id."""
    source: str
    label: str
    sizes: Sizes
    machines: Machines
    layout: Layout
    habits: Habits
    tokens: float
    """Of a sequence."""
    precision: str
    step_s: float | None
    memory_gib: float | None
    """Peak of the worker that needed most; math.inf where it ran out of memory."""

    @property
    def parts(self) -> tuple[Sizes, Machines, Layout, Habits, float, str]:
        """As `columns.stack` takes them."""
        return (
            self.sizes,
            self.machines,
            self.layout,
            self.habits,
            self.tokens,
            self.precision,
        )


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A row that cannot be predicted, and why."""

    row: str
    source: str
    why: str


def read_runs(path: Path) -> tuple[list[MeasuredRun], list[LeftOut]]:
    """The runs of a table, and the rows that do not tell enough. Raises SpecError where the file is
    no such table."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    except OSError as wrong:
        raise SpecError(str(path), f"can't be read: {wrong.strerror}") from None
    missing = [name for name in _COLUMNS if not rows or name not in rows[0]]
    if missing:
        raise SpecError(
            str(path),
            f"is no table of measured runs: it has no column {missing[0]}",
            allowed=", ".join(_COLUMNS),
            fix="give a CSV file with these columns, tp, pp, dp, and step_time_s or "
            "tokens_per_s_per_gpu",
        )
    runs: list[MeasuredRun] = []
    left_out: list[LeftOut] = []
    for number, row in enumerate(rows):
        name = row.get("row_id") or str(number + 1)
        try:
            runs.append(read_run(row, name))
        except (SpecError, ValueError) as wrong:
            why = wrong.problem if isinstance(wrong, SpecError) else str(wrong)
            left_out.append(LeftOut(name, row["source"], why))
    return runs, left_out


def read_run(row: Mapping[str, str], name: str) -> MeasuredRun:
    """One row. Raises ValueError, or SpecError, where it does not tell enough."""
    sizes = _sizes(row)
    framework = row.get("framework") or ""
    habits = _habits(framework)
    machines = _machines(row)
    if framework.startswith(OWN):
        layout, habits = own_layout(row)
    else:
        layout, habits = _layout(row, machines.gpus, habits)
    tokens = _number(row, "seq_len")
    if tokens is None and _memory(row) is not None:
        tokens = 2048.0
    if tokens is None:
        raise ValueError("tells no seq_len")
    precision = row.get("precision") or ""
    precision = _PRECISIONS.get(precision, "fp8" if precision.startswith("fp8") else precision)
    run = MeasuredRun(
        row=name,
        source=row["source"],
        label=row["model"],
        sizes=sizes,
        machines=machines,
        layout=layout,
        habits=habits,
        tokens=tokens,
        precision=precision,
        step_s=None,
        memory_gib=_memory(row),
    )
    return replace(run, step_s=_step_s(row, run))


def _number(row: Mapping[str, str], name: str) -> float | None:
    text = (row.get(name) or "").strip()
    if text.endswith("k"):
        return 1000 * float(text[:-1])
    try:
        return float(text) if text else None
    except ValueError:
        return None


def _sizes(row: Mapping[str, str]) -> Sizes:
    layers, hidden = _number(row, "layers"), _number(row, "hidden")
    known = find_sizes(row["model"])
    if layers is None or hidden is None:
        if known is None:
            raise ValueError(f"model {row['model']} is not described, nor in the catalogue")
        return known
    heads = _number(row, "heads") or hidden // 128
    groups = _number(row, "kv_heads") or heads
    ffn = _number(row, "ffn_hidden") or (known.ffn if known else 4 * hidden)
    name = row["model"].lower()
    gated = known.ffn_matrices == 3 if known else "llama" in name or ffn < 3.9 * hidden
    vocab = _number(row, "vocab") or (known.vocab if known else 50304)
    matrices = 3 if gated else 2
    head = hidden / heads
    return Sizes(
        layers=layers,
        hidden=hidden,
        query=hidden,
        key=groups * head,
        head_dim=head,
        ffn=ffn,
        ffn_matrices=matrices,
        vocab=vocab,
        attention_weights=hidden * (2 * hidden + 2 * groups * head),
        expert_weights=0,
        shared_weights=hidden * (matrices * ffn + 2),
        experts_per_token=0,
        experts=0,
        heads=heads,
        tied=0.0 if gated else 1.0,
        dropout=0.0 if gated or "mpt" in name else 1.0,
        ffn_saved=4.0 if gated else 2.0,
    )


def _habits(framework: str) -> Habits:
    for word, habits in _HABITS:
        if word.lower() in framework.lower():
            return habits
    return Habits()


def _machines(row: Mapping[str, str]) -> Machines:
    kind = find_accelerator(row["gpu_type"])
    gpus = int(_number(row, "n_gpus") or 0)
    if gpus < 1:
        raise ValueError("tells no n_gpus")
    link = row.get("interconnect") or ""
    gbit = next((value for word, value in _NIC_GBIT.items() if word in link), 0.0)
    node = int(_number(row, "gpus_per_node") or 0)
    shared = _number(row, "workers_per_core") or 1.0
    return Machines(kind, gpus, node, gbit * 1e9 / 8, shared)


def _layout(row: Mapping[str, str], gpus: int, habits: Habits) -> tuple[Layout, Habits]:
    tensor, pipeline = _number(row, "tp"), _number(row, "pp")
    if tensor is None or pipeline is None:
        raise ValueError("tells no plan (tp, pp)")
    context = _number(row, "cp") or 1
    data = _number(row, "dp") or gpus / (tensor * pipeline * context)
    if data < 1 or data * tensor * pipeline * context != gpus:
        raise ValueError("its plan does not come to its n_gpus")
    batch = _number(row, "global_batch")
    microbatch = _number(row, "micro_batch") or 1
    if batch is None:
        # Who tells no batch computes it at once, or in as many parts as fill the pipeline.
        batch = data * microbatch * pipeline
    zero, shard, gathers = _zero(row.get("zero_stage") or "", data * context)
    framework = (row.get("framework") or "").lower()
    nvidia = "nemo" in framework or "bridge" in framework
    if nvidia and not row.get("zero_stage"):
        zero, shard = 1, data * context
    # A pipeline keeps the weights that it gathered, whatever shards them.
    layered = (gathers or "FSDP" in (row.get("zero_stage") or "")) and pipeline == 1
    habits = replace(habits, gathers_layers=float(layered))
    # Who keeps scores in memory, and does not say, computes layers again.
    untold = 0.0 if habits.flash else 2.0
    told = {"full": 2.0, "selective": 1.0, "none": 0.0}
    recompute = told.get(row.get("recompute") or "", untold)
    if "BF16" in (row.get("zero_stage") or ""):
        # DeepSpeed's optimizer for bf16 sums gradients in float32, beside those of 16 bits.
        habits = replace(habits, gradient_bytes=4, gradient_held=6)
    # fms-fsdp's selective checkpointing computes every second block again.
    every_other = recompute == 1 and habits.gathers_layers > 0
    sequence = (row.get("seq_parallel") or "").lower() in ("1", "1.0", "true", "yes", "sp")
    return (
        Layout(
            tensor=tensor,
            pipeline=pipeline,
            chunks=_number(row, "vpp") or 1,
            data=data,
            context=context,
            expert=_number(row, "ep") or 1,
            expert_tensor=1 if nvidia else tensor,
            zero=zero,
            shard=shard,
            microbatch=microbatch,
            microbatches=max(1.0, batch / (data * microbatch)),
            sequence=float(sequence or (nvidia and tensor > 1)),
            recompute=2.0 if every_other else recompute,
            recomputed=0.5 if every_other else 1.0,
        ),
        habits,
    )


def _zero(text: str, ranks: float) -> tuple[float, float, bool]:
    """ZeRO stage, ranks that share one copy, and whether weights are gathered layer by layer."""
    lower = text.lower()
    if "hsdp" in lower:
        return 3, min(8.0, ranks), True
    if "fsdp" in lower:
        return (2, ranks, True) if lower.endswith("2") else (3, ranks, True)
    stage = next((float(letter) for letter in text if letter.isdigit()), 0.0)
    within = [float(word) for word in lower.replace(")", " ").split() if word.isdigit()]
    shard = min(ranks, within[-1]) if "within" in lower and within else ranks
    return stage, shard if stage else 1.0, stage >= 3


def _memory(row: Mapping[str, str]) -> float | None:
    if "oom" in (row.get("peak_mem_gib") or "").lower():
        return math.inf
    return _number(row, "peak_mem_gib")


def _step_s(row: Mapping[str, str], run: MeasuredRun) -> float | None:
    """Measured, or from tokens a second, or from operations a second as the source counts them."""
    step_s = _number(row, "step_time_s")
    if step_s:
        return step_s
    plan = run.layout
    tokens = plan.data * plan.microbatch * plan.microbatches * run.tokens
    speed = _number(row, "tokens_per_s_per_gpu")
    if speed:
        return tokens / (speed * run.machines.gpus)
    tera = _number(row, "tflops_per_gpu")
    counted = _operations(row.get("flops_def") or "", run)
    if tera and counted:
        return tokens * counted / (tera * 1e12 * run.machines.gpus)
    return None


def _operations(rule: str, run: MeasuredRun) -> float | None:
    """Operations of one token as the source counts them."""
    sizes, tokens = run.sizes, run.tokens
    matrices = sizes.attention_weights + sizes.ffn_matrices * sizes.hidden * sizes.ffn
    products = sizes.layers * matrices
    head = sizes.hidden * sizes.vocab
    attention = 12 * sizes.layers * sizes.query * tokens
    if rule.startswith("hardware-style"):
        return 8 * products + 4 / 3 * attention + 6 * head
    if "causal attention" in rule:
        return 6 * (products + head) + attention / 2
    if "SC21" in rule or rule.startswith("model"):
        return 6 * (products + head) + attention
    return None


def by_source(runs: Sequence[MeasuredRun]) -> dict[str, list[MeasuredRun]]:
    """The runs of each source, in the order of the table."""
    found: dict[str, list[MeasuredRun]] = {}
    for run in runs:
        found.setdefault(run.source, []).append(run)
    return found
