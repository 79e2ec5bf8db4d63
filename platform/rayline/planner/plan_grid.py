"""The grid of all plans that rayline can run on so many workers, as columns.

One array a choice, one entry a plan: what `ParallelPlan.check` would refuse is left out here, so
that what is predicted could run. Plans that come to the same (stage 3 under a pipeline, which keeps
what it gathered) stand once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rayline.planner.columns import PRECISION_BYTES, Machines, Numbers
from rayline.spec import ModelShape, ParallelPlan
from rayline.spec.stages import SCHEDULES, Schedule

RECOMPUTE = ("none", "selective", "full")
SCHEDULE_BUBBLES: dict[Schedule, float] = {
    "gpipe": 1.0,
    "1f1b": 1.0,
    "interleaved": 1.0,
    "zero_bubble": 0.5,
    "zero_bubble_v": 0.35,
}
"""Share of 1F1B's bubble that a schedule leaves, before the stages of a worker are counted; a test
holds it against the schedules as they are played through."""
LEAST_TOKENS = 4096
"""Of a sequence that a context rank keeps: no published run has fewer, so nothing says that a
prediction holds there."""
_MOST_CHUNKS = 8
AXES = ("tensor", "pipeline", "context", "data", "expert")
Grid = dict[str, Numbers]
"""Arrays by choice, of one length."""


@dataclass(frozen=True, slots=True)
class Workload:
    """What is to be computed in one step."""

    sequences: int
    tokens: int
    """Of a sequence."""
    precision: str = "bf16"


@dataclass(frozen=True, slots=True)
class Space:
    """Which choices are open besides the sizes of the axes; each a list of what may be chosen."""

    recompute: tuple[str, ...] = RECOMPUTE
    offload: tuple[bool, ...] = (False,)
    schedules: tuple[Schedule, ...] = ("1f1b", "interleaved", "zero_bubble", "zero_bubble_v")
    zero_stages: tuple[int, ...] = (0, 1, 2, 3)
    context_methods: tuple[str, ...] = ("ulysses", "ring")


def _divisors(size: int) -> list[int]:
    return [one for one in range(1, size + 1) if size % one == 0]


def plan_grid(shape: ModelShape, machines: Machines, load: Workload, space: Space) -> Grid:
    """Every combination of choices that the plan's own rules admit, as arrays."""
    gpus, node = machines.gpus, machines.node
    tensor = [t for t in _divisors(gpus) if t <= node and _cuts(shape, t)]
    pipeline = [p for p in _divisors(gpus) if p <= shape.layers]
    context = [c for c in _divisors(gpus) if _shares_out(load.tokens, c)]
    axes = [
        (t, p, c, gpus // (t * p * c))
        for t in tensor
        for p in pipeline
        for c in context
        if gpus % (t * p * c) == 0 and load.sequences % (gpus // (t * p * c)) == 0
    ]
    rows = [
        (*one, rows // count, expert)
        for one in axes
        for rows in [load.sequences // one[3]]
        for count in _microbatch_counts(rows)
        for expert in _expert_sizes(shape, one[3])
    ]
    t, p, c, data, microbatch, expert = np.array(rows, dtype=np.float64).reshape(-1, 6).T
    return _with_choices(
        {
            "tensor": t,
            "pipeline": p,
            "context": c,
            "data": data,
            "microbatch": microbatch,
            "expert": expert,
        },
        shape,
        machines,
        load,
        space,
    )


def _shares_out(tokens: int, context: int) -> bool:
    """Whether a context axis of this size leaves each rank enough of a sequence."""
    return context == 1 or (tokens % (2 * context) == 0 and tokens // context >= LEAST_TOKENS)


def _cuts(shape: ModelShape, tensor: int) -> bool:
    """Whether the model's widths can be cut over so many ranks."""
    shared = shape.kv_heads % tensor == 0 or tensor % shape.kv_heads == 0
    return shape.heads % tensor == 0 and shape.ffn % tensor == 0 and shared


def _microbatch_counts(rows: int) -> list[int]:
    """How many microbatches a replica's rows can be cut into, each of 16 rows at most."""
    return [count for count in _divisors(rows) if rows // count <= 16]


def _expert_sizes(shape: ModelShape, data: int) -> list[int]:
    if not shape.experts:
        return [1]
    return [one for one in _divisors(data) if shape.experts % one == 0]


def _with_choices(
    base: Grid,
    shape: ModelShape,
    machines: Machines,
    load: Workload,
    space: Space,
) -> Grid:
    """The axes' sizes times the other choices, without what no plan may be. Between blocks the
    tensor ranks hold parts of a sequence wherever it can be cut so: that costs nothing."""
    parts = []
    for piped in (False, True):
        for rings in (False, True):
            chosen = ((base["pipeline"] > 1) == piped) & ((base["context"] > 1) | (not rings))
            values = _choices(space, piped=piped, ring=rings)
            times = values.shape[1]
            part = {name: np.repeat(array[chosen], times) for name, array in base.items()}
            tiled = (np.tile(row, int(np.sum(chosen))) for row in values)
            parts.append(part | dict(zip(_CHOICES, tiled, strict=True)))
    grid = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    pieces = grid["context"] * (2 - grid["ulysses"]) * grid["tensor"]
    grid["sequence"] = ((grid["tensor"] > 1) & (np.mod(load.tokens, pieces) == 0)).astype(float)
    grid["microbatches"] = load.sequences / (grid["data"] * grid["microbatch"])
    beside = np.maximum(1, machines.node // (grid["tensor"] * grid["context"]))
    grid["replicate"] = np.where(grid["hybrid"] > 0, np.floor(grid["data"] / beside), 1.0)
    keep = _admitted(grid, shape, load)
    return {name: array[keep] for name, array in grid.items()}


_CHOICES = ("schedule", "chunks", "zero_stage", "hybrid", "recompute_kind", "offload", "ulysses")


def _choices(space: Space, *, piped: bool, ring: bool) -> Numbers:
    """Every combination of the choices, one row a choice, in the order of `_CHOICES`."""
    known = tuple(SCHEDULE_BUBBLES)
    schedules = space.schedules if piped else ("1f1b",)
    methods = [name for name in space.context_methods if (name == "ring") == ring]
    found = [
        (schedule, chunks, zero, hybrid, recompute, offload, not ring)
        for schedule in (known.index(name) for name in schedules)
        for chunks in _chunk_counts(known[schedule])
        # A pipeline keeps what it gathered: with stage 3 it would hold as much as with stage 2.
        for zero in space.zero_stages
        if zero < 3 or not piped
        for hybrid in ((0, 1) if zero else (0,))
        for recompute in (RECOMPUTE.index(name) for name in space.recompute)
        for offload in space.offload
        if methods
    ]
    return np.array(found, dtype=np.float64).reshape(-1, len(_CHOICES)).T


def _chunk_counts(schedule: Schedule) -> list[int]:
    rules = SCHEDULES[schedule]
    most = rules.most_stages or _MOST_CHUNKS
    return [n for n in (1, 2, 3, 4, 6, 8) if rules.fewest_stages <= n <= most]


def _admitted(g: Grid, shape: ModelShape, load: Workload) -> NDArray[np.bool_]:
    """What `ParallelPlan.check` would admit, and only one of those that come to the same."""
    known = tuple(SCHEDULE_BUBBLES)
    alone, split = g["pipeline"] == 1, g["schedule"] >= known.index("zero_bubble")
    selective = g["recompute_kind"] == RECOMPUTE.index("selective")
    one_by_one = g["schedule"] == known.index("1f1b")
    keep: NDArray[np.bool_] = alone | (g["pipeline"] * g["chunks"] <= shape.layers)
    keep &= alone | ~one_by_one | (g["microbatches"] >= g["pipeline"])
    rounds = np.maximum(1.0, np.floor(g["microbatches"] / g["pipeline"]))
    keep &= alone | one_by_one | (np.mod(g["microbatches"], rounds) == 0)
    keep &= (g["zero_stage"] == 0) | (g["data"] * g["context"] > 1)
    keep &= alone | ~split | ~selective
    keep &= (g["hybrid"] == 0) | ((g["replicate"] > 1) & (g["replicate"] < g["data"]))
    keep &= np.mod(g["data"], np.maximum(1.0, g["replicate"])) == 0
    keep &= np.mod(g["data"] / np.maximum(1.0, g["replicate"]), g["expert"]) == 0
    ring = g["ulysses"] == 0
    keep &= ring | (np.mod(shape.heads / g["tensor"], g["context"]) == 0)
    keep &= ~ring | ~selective
    pieces = g["context"] * np.where(ring, 2, 1) * np.where(g["sequence"] > 0, g["tensor"], 1)
    keep &= np.mod(load.tokens, pieces) == 0
    return keep


def plan_columns(g: Grid, precision: str, fused: bool) -> Grid:
    """What the native engine makes of these plans: see `rayline.planner.memory`, which counts the
    same for one plan exactly."""
    known = tuple(SCHEDULE_BUBBLES)
    alone = g["pipeline"] == 1
    kind = g["recompute_kind"]
    size = PRECISION_BYTES[precision]
    sharded = g["zero_stage"] >= 1
    adds = (g["zero_stage"] < 2) & (g["microbatches"] > 1)
    holders = g["data"] * g["context"]
    return {
        **{name: g[name] for name in (*AXES, "microbatch", "microbatches", "chunks")},
        **{name: g[name] for name in ("sequence", "offload", "ulysses")},
        "expert_tensor": g["tensor"],
        "zero": g["zero_stage"],
        "shard": np.where(sharded, holders / np.maximum(1.0, g["replicate"]), 1.0),
        "recompute": np.where(kind == RECOMPUTE.index("full"), 2.0, 0.0),
        "reuse": np.where(kind == RECOMPUTE.index("selective"), 1.0, 0.0),
        "bubble": np.array(list(SCHEDULE_BUBBLES.values()))[g["schedule"].astype(np.int64)],
        "balanced": np.ones(1),
        "gpipe": (g["schedule"] == known.index("gpipe")).astype(np.float64),
        "hides_data": alone.astype(np.float64),
        "gathers_layers": (alone & (g["zero_stage"] == 3)).astype(np.float64),
        "fused": np.full(1, float(fused)),
        "weight_bytes": np.full(1, size),
        "copy_bytes": np.full(1, size),
        "gradient_bytes": np.full(1, 4.0),
        "gradient_own": np.full(1, 4.0),
        "gradient_held": np.where(alone & ~adds, size, 4.0),
        "holds_gradients": np.ones(1),
        "logit_bytes": np.full(1, 2 * size),
        "norm_extra": np.full(1, 4.0),
    }


def grid_of(plan: ParallelPlan, load: Workload, recompute: str, *, offload: bool) -> Grid:
    """The grid of this one plan."""
    known = tuple(SCHEDULE_BUBBLES)
    values: dict[str, float] = {
        **{name: getattr(plan, name) for name in AXES},
        "microbatch": load.sequences / (plan.data * plan.microbatches),
        "microbatches": plan.microbatches,
        "schedule": known.index(plan.schedule if plan.pipeline > 1 else "1f1b"),
        "chunks": plan.stages_per_worker,
        "zero_stage": plan.zero_stage,
        "replicate": plan.replicate,
        "recompute_kind": RECOMPUTE.index(recompute),
        "offload": offload,
        "sequence": plan.sequence,
        "ulysses": plan.context_method == "ulysses",
    }
    return {name: np.array([float(value)]) for name, value in values.items()}
