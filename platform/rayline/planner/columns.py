"""Columns: many runs or candidate plans at once, one array a quantity.

Step time and memory are predicted for whole columns, so that ten thousand plans cost as much as one
and a fit sees hundreds of measured runs in one call. A column is made from a model, a cluster and a
plan, from wherever these come: rayline's own specs or a table of published runs. What frameworks do
differently (what they keep, and what they hide behind computing) is a column too: `Habits`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Self

import numpy as np
from numpy.typing import NDArray

from rayline.planner.accelerators import Accelerator
from rayline.spec import ModelShape

Numbers = NDArray[np.float64]
PRECISION_BYTES = {"fp32": 4.0, "bf16": 2.0, "fp16": 2.0, "fp8": 2.0, "fp4": 2.0}
"""Of what is kept and sent: fp8 and fp4 only multiply."""
CURVE_NAMES = (
    "volta-bf16",
    "ampere-bf16",
    "ada-bf16",
    "ada-fp8",
    "hopper-bf16",
    "hopper-fp8",
    "blackwell-bf16",
    "blackwell-fp8",
    "blackwell-fp4",
    "cdna3-bf16",
    "cdna3-fp8",
    "cpu-fp32",
)
CPU_CURVE = "cpu-fp32"
"""Generation of GPU and precision: each has a share of its peak that large products reach."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """A model, in the quantities that time and memory are computed from; widths are whole, not yet
    split over tensor ranks."""

    layers: float
    hidden: float
    query: float
    """Width of all queries: heads x head_dim."""
    key: float
    """Width of all keys."""
    head_dim: float
    ffn: float
    """Width of the feed-forward matrices that one token meets in a layer; of all its experts."""
    ffn_matrices: float
    """3 with a gate, 2 without."""
    vocab: float
    attention_weights: float
    """Weights of the attention's matrices in one layer."""
    expert_weights: float
    """Weights of the routed experts in one layer; 0 for a dense model."""
    shared_weights: float
    """Feed-forward weights in one layer outside the routed experts, norms too."""
    experts_per_token: float
    experts: float
    heads: float
    tied: float
    dropout: float = 0.0
    """1 where the model keeps masks of dropout for the backward pass."""
    ffn_saved: float = 4.0
    """Tensors of the feed-forward width that autograd keeps: gate, its activation, up, product."""

    @classmethod
    def of(cls, shape: ModelShape, *, gated: bool = True, dropout: bool = False) -> Self:
        """The sizes of a model of this shape."""
        query, key = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        matrices = 3 if gated else 2
        routed = shape.experts * shape.expert_ffn
        active = shape.experts_per_token * shape.expert_ffn if shape.experts else shape.ffn
        shared = 0 if shape.experts else matrices * shape.hidden * shape.ffn
        return cls(
            layers=shape.layers,
            hidden=shape.hidden,
            query=query,
            key=key,
            head_dim=shape.head_dim,
            ffn=active,
            ffn_matrices=matrices,
            vocab=shape.vocab,
            attention_weights=shape.hidden * (2 * query + 2 * key),
            expert_weights=matrices * shape.hidden * routed,
            shared_weights=shared + shape.hidden * (2 + shape.experts),
            experts_per_token=shape.experts_per_token,
            experts=shape.experts,
            heads=shape.heads,
            tied=float(shape.tied_embeddings),
            dropout=float(dropout),
            ffn_saved=4.0 if gated else 2.0,
        )


@dataclass(frozen=True, slots=True)
class Machines:
    """A cluster of one kind of GPU."""

    accelerator: Accelerator
    gpus: int
    gpus_per_node: int = 0
    """GPUs that share NVLink; 0 takes the kind's own."""
    nic_bytes_per_s: float = 0.0
    """Between nodes, a GPU's share, one direction; 0 takes the kind's own."""
    workers_per_core: float = 1.0
    """Workers that share one core, or one device; 1 or more. While one waits, another computes."""

    @property
    def node(self) -> int:
        """GPUs that share NVLink."""
        return min(self.gpus, self.gpus_per_node or self.accelerator.per_node)

    @property
    def nic(self) -> float:
        """Between nodes, a GPU's share, in bytes a second."""
        return self.nic_bytes_per_s or self.accelerator.nic_bytes_per_s


@dataclass(frozen=True, slots=True)
class Habits:
    """What a training framework does, as far as time and memory depend on it."""

    flash: float = 1.0
    """Attention without scores in memory."""
    hides_data: float = 1.0
    """Gradients are summed while the backward pass goes on."""
    hides_tensor: float = 0.0
    """Tensor communication goes in parts beside the matrix products."""
    gathers_layers: float = 0.0
    """Weights are gathered for each layer, each time, from all that share them (FSDP, ZeRO-3)."""
    fused: float = 1.0
    """Norms, activations and masks run as fused kernels (torch.compile, Apex, Transformer
    Engine)."""
    graphed: float = 0.0
    """Kernels are launched ahead of time (CUDA graphs)."""
    gradient_bytes: float = 4.0
    """Of one gradient, as it is summed over ranks."""
    weight_bytes: float = 2.0
    """Of one weight, as it is gathered."""
    one_link: float = 0.0
    """Parameters are gathered one by one from their owners, over one link at a time."""
    sums_whole: float = 0.0
    """With ZeRO 1, gradients are summed on every rank rather than on their owner."""
    copy_bytes: float = 2.0
    """Of one weight to compute with, which each rank has whole unless it gathers layer by layer."""
    master_bytes: float = 0.0
    """Of one weight that its owner keeps besides, where `state_bytes` does not count it."""
    state_bytes: float = 12.0
    """Of what the owner of a weight keeps for the optimizer, a master copy among it."""
    gradient_held: float = 2.0
    """Of one gradient that every rank keeps, unless ZeRO shares them out."""
    gradient_own: float = 0.0
    """Of one gradient that its owner keeps besides."""
    holds_gradients: float = 0.0
    """Whether a pipeline keeps whole gradients, whatever ZeRO shares out."""
    step_bytes: float = 0.0
    """Of copies for one weight while its owner steps, in memory that others don't get back."""
    logit_bytes: float = 10.0
    """Of one logit with what is made of it: 16 bits, float32, and its gradient."""
    norm_extra: float = 0.0
    """Tensors of the hidden width that norms keep besides their input and output."""
    waits: float = 0.0
    """Whether computing a layer again waits for the device, to put random states aside."""
    recent: float = 1.0
    """Attention kernels of 2024 and later."""


@dataclass(frozen=True, slots=True)
class Layout:
    """One plan, in numbers."""

    tensor: float = 1
    pipeline: float = 1
    chunks: float = 1
    """Stages that a worker of the pipeline holds."""
    data: float = 1
    context: float = 1
    expert: float = 1
    expert_tensor: float = 1
    """Ranks that split each expert's matrices."""
    zero: float = 0
    shard: float = 1
    """Ranks that share one copy of what ZeRO shards."""
    microbatch: float = 1
    """Sequences that a rank computes at a time."""
    microbatches: float = 1
    sequence: float = 0
    recompute: float = 0
    """0 none, 1 the attention's core, or all but products, 2 whole layers."""
    bubble: float = 1
    """Share of 1F1B's bubble that the schedule leaves, before chunks."""
    balanced: float = 0
    """Whether embedding and head count when layers are cut into stages."""
    offload: float = 0
    """Whether the optimizer's states lie in the host's memory."""
    ulysses: float = 0
    """Whether the context axis exchanges heads rather than keys and values."""
    recomputed: float = 1
    """Share of the layers that are computed again."""
    reuse: float = 0
    """Whether the backward pass computes elementwise operations again (recompute selective)."""
    gpipe: float = 0
    """Whether all forward passes come before the first backward pass."""


_PARTS = (Sizes, Layout, Habits)


class Columns:
    """Arrays by the names of the fields of Sizes, Layout and Habits, and of the machines."""

    def __init__(self, arrays: dict[str, Numbers]) -> None:
        """Arrays of one length each, or of length 1."""
        self._arrays = arrays

    def __getattr__(self, name: str) -> Numbers:
        if name.startswith("_") or name not in self._arrays:
            raise AttributeError(name)
        return self._arrays[name]

    def __len__(self) -> int:
        return max(len(array) for array in self._arrays.values())

    def take(self, chosen: NDArray[np.int64] | NDArray[np.bool_]) -> Columns:
        """The chosen entries."""
        count = len(self)
        return Columns({k: np.broadcast_to(a, (count,))[chosen] for k, a in self._arrays.items()})

    def with_arrays(self, **changed: Numbers) -> Columns:
        """A copy in which some columns are others."""
        return Columns({**self._arrays, **changed})


def stack(
    rows: Iterable[tuple[Sizes, Machines, Layout, Habits, float, str]],
) -> Columns:
    """Columns of rows (model, cluster, plan, framework, tokens of a sequence, precision)."""
    found: dict[str, list[float]] = {}
    for sizes, machines, layout, habits, tokens, precision in rows:
        for part in (sizes, layout, habits):
            for field in fields(part):
                found.setdefault(field.name, []).append(float(getattr(part, field.name)))
        for name, value in machine_numbers(machines, precision).items():
            found.setdefault(name, []).append(value)
        found.setdefault("tokens", []).append(tokens)
    return Columns({name: np.array(values) for name, values in found.items()})


def machine_numbers(machines: Machines, precision: str) -> dict[str, float]:
    """The columns that come from the cluster and the precision."""
    kind = machines.accelerator
    return {
        "gpus": float(machines.gpus),
        "node": float(machines.node),
        "nic": machines.nic,
        "nvlink": kind.nvlink_bytes_per_s,
        "hbm": kind.hbm_bytes_per_s,
        "sharing": machines.workers_per_core,
        "peak": kind.peak_flops_per_s(precision),
        "bf16_peak": kind.peak_flops_per_s("bf16"),
        "element_bytes": PRECISION_BYTES[precision],
        "low_precision": float(precision in ("fp8", "fp4")),
        "curve": float(CURVE_NAMES.index(curve_name(kind, precision))),
        "bf16_curve": float(CURVE_NAMES.index(curve_name(kind, "bf16"))),
    }


def curve_name(kind: Accelerator, precision: str) -> str:
    """Which efficiency curve holds: generation and precision, such as hopper-fp8."""
    has = {"fp8": kind.fp8_tflops, "fp4": kind.fp4_tflops}.get(precision, 1)
    if kind.generation == "cpu":
        return CPU_CURVE
    plain = "bf16" if precision in ("bf16", "fp16", "fp32") or not has else precision
    return f"{kind.generation}-{plain}"
