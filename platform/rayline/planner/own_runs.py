"""rayline's own runs as rows of a table that `rayline plan calibrate` reads: the columns of the
published table, and a few more that say in full what rayline's plans say."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path

from rayline.planner.columns import Habits, Layout, Machines
from rayline.planner.plan_grid import Workload, grid_of, plan_columns
from rayline.spec import JobSpec, ModelShape, ParallelPlan

OWN = "rayline"
"""The framework of these rows."""
OWN_RUNS = Path("~/.rayline/runs.csv")
"""Where jobs with `plan: auto` leave theirs."""
_PLAN_FIELDS = ("schedule", "replicate", "context_method")


def own_row(
    job: JobSpec,
    shape: ModelShape,
    machines: Machines,
    *,
    step_s: float,
    memory_gib: float | None,
    note: str = "",
) -> dict[str, str]:
    """The row of one run of `job`, whose plan is told. Called on the driver."""
    plan, kind = job.plan, machines.accelerator
    values: dict[str, object] = {
        "source": f"{OWN} on {kind.name}",
        "model": str(job.model),
        "layers": shape.layers,
        "hidden": shape.hidden,
        "ffn_hidden": shape.ffn,
        "heads": shape.heads,
        "kv_heads": shape.kv_heads,
        "vocab": shape.vocab,
        "seq_len": job.data.sequence_tokens,
        "gpu_type": kind.name,
        "n_gpus": machines.gpus,
        "gpus_per_node": machines.node,
        "workers_per_core": machines.workers_per_core,
        "tp": plan.tensor,
        "pp": plan.pipeline,
        "vpp": plan.stages_per_worker,
        "dp": plan.data,
        "cp": plan.context,
        "ep": plan.expert,
        "zero_stage": plan.zero_stage,
        "micro_batch": job.sequences_per_microbatch,
        "global_batch": job.batch.sequences,
        "recompute": job.recompute,
        "seq_parallel": str(plan.sequence).lower(),
        "precision": job.precision,
        "framework": f"{OWN} native" + (", compiled" if job.compile else ""),
        "step_time_s": f"{step_s:.6g}",
        "peak_mem_gib": "" if memory_gib is None else f"{memory_gib:.5g}",
        "note": note,
        **{name: getattr(plan, name) for name in _PLAN_FIELDS},
        "offload": job.offload.optimizer,
    }
    return {name: str(value) for name, value in values.items()}


def append_row(row: Mapping[str, str], file: Path) -> None:
    """Put a row at the end of the table, which is made where there is none."""
    file.parent.mkdir(parents=True, exist_ok=True)
    new = not file.exists()
    with file.open("a", encoding="utf-8", newline="") as table:
        writer = csv.DictWriter(table, list(row))
        if new:
            writer.writeheader()
        writer.writerow(row)


def own_layout(row: Mapping[str, str]) -> tuple[Layout, Habits]:
    """The plan of such a row, as the planner's search would lay it out. Raises ValueError where a
    number is none."""

    def number(name: str, usual: int = 1) -> int:
        return int(float(row.get(name) or usual))

    data, batch, rows = number("dp"), number("global_batch"), number("micro_batch")
    plan = ParallelPlan.parse(
        {
            "data": data,
            "tensor": number("tp"),
            "pipeline": number("pp"),
            "context": number("cp"),
            "expert": number("ep"),
            "stages_per_worker": number("vpp"),
            "zero_stage": number("zero_stage", 0),
            "replicate": number("replicate"),
            "microbatches": max(1, batch // (data * rows)),
            "sequence": row.get("seq_parallel") == "true",
            "schedule": row.get("schedule") or "1f1b",
            "context_method": row.get("context_method") or "ulysses",
        },
        origin="the table",
    )
    load = Workload(batch, number("seq_len"), row.get("precision") or "fp32")
    grid = grid_of(
        plan, load, row.get("recompute") or "none", offload=row.get("offload", "none") != "none"
    )
    fused = "compiled" in (row.get("framework") or "")
    columns = {
        name: float(array[0]) for name, array in plan_columns(grid, load.precision, fused).items()
    }

    def part(kind: type[Layout] | type[Habits]) -> dict[str, float]:
        return {f.name: columns[f.name] for f in fields(kind) if f.name in columns}

    return Layout(**part(Layout)), Habits(**part(Habits))
