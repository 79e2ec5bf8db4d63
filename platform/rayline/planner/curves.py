"""Curves: the fitted figures of the step-time model, each one a share of what is possible, or the
time or bytes of one thing. They are what `rayline plan calibrate` writes and reads."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np

from rayline.planner.columns import CPU_CURVE, CURVE_NAMES, Numbers

_MATRIX_PRIORS = {
    "volta-bf16": 0.75,
    "ampere-bf16": 0.85,
    "ada-bf16": 0.75,
    "ada-fp8": 0.65,
    "hopper-bf16": 0.75,
    "hopper-fp8": 0.62,
    "blackwell-bf16": 0.75,
    "blackwell-fp8": 0.65,
    "blackwell-fp4": 0.55,
    "cdna3-bf16": 0.55,
    "cdna3-fp8": 0.45,
    "cpu-fp32": 0.8,
}


_ATTENTION_PRIORS = {
    "volta": 0.4,
    "ampere": 0.65,
    "ada": 0.5,
    "hopper": 0.65,
    "blackwell": 0.65,
    "cdna3": 0.4,
    "cpu": 0.5,
}


@dataclass(frozen=True, slots=True)
class Curves:
    """Every figure, as it was fitted."""

    matrix: dict[str, float] = field(default_factory=lambda: dict(_MATRIX_PRIORS))
    """Share of the peak that large matrix products reach, by generation and precision."""
    half_width: float = 0.35
    """Width of a product at which it reaches half of that, over the GPU's operations per byte."""
    misaligned: float = 0.25
    """By how much longer products take whose widths are no multiples of 64."""
    attention: dict[str, float] = field(default_factory=lambda: dict(_ATTENTION_PRIORS))
    """Share of the bf16 peak that fused attention reaches, by generation: kernels of 2024."""
    early: float = 0.4
    """Speed of earlier kernels over theirs; many computed what the causal mask leaves out."""
    grouped: float = 2.0
    """Width at which products of experts reach half of their speed, over that of others."""
    cast: float = 1.0
    """Passes over memory that turn inputs of products to 8 bits, over one read and one write."""
    routing: float = 4.0
    """Passes over memory of tokens that are sorted by expert, and back."""
    elementwise: float = 1.0
    """Passes over memory beside products, over the count in `step_time`."""
    unfused: float = 1.5
    """Times that where kernels are not fused."""
    scores: float = 1.0
    """Passes over scores that are kept in memory, over the count in `step_time`."""
    launch_s: float = 2e-5
    """From one launch to the next."""
    routing_launches: float = 4.0
    """Launches of a layer with experts over those of another."""
    checkpoint_s: float = 1e-3
    """What one layer costs whose states are put aside and back to be computed again, where a
    framework waits for the device then."""
    memory: float = 0.85
    """Share of the memory's bandwidth that kernels reach."""
    nvlink: float = 0.7
    """Share of the links' speed that collectives reach within a node."""
    nic: float = 0.75
    """The same between nodes."""
    near_s: float = 8e-6
    """Least time of one collective within a node, a rank."""
    far_s: float = 4e-6
    """Least time of a step around a ring between nodes."""
    overlap: float = 3.0
    """How well what is sent hides behind computing: 1 not at all, more is better."""
    tensor_exposed: float = 0.5
    """Share of tensor communication that is seen where a framework hides it."""
    expert_exposed: float = 0.6
    """The same of tokens on their way to experts."""
    pipeline_exposed: float = 1.0
    """The same of what stages send."""
    jitter: float = 0.004
    """Share of a step by which twice as many nodes wait longer for the slowest."""
    step_s: float = 0.02
    """What a step costs beside all that."""
    reserved_gib: float = 3.0
    """Context of the device and buffers of communication."""
    process_gib: float = 0.6
    """What a worker's process takes of the host's memory where it computes on a processor."""
    fragments: float = 0.25
    """Share of activations on top of them that the allocator holds and cannot use."""

    def matrix_of(self, curve: Numbers) -> Numbers:
        """The share of the peak for each column."""
        known = np.array([self.matrix[name] for name in CURVE_NAMES])
        return known[curve.astype(np.int64)]

    def base_gib(self, curve: Numbers) -> Numbers:
        """What a worker takes before it holds anything, for each column."""
        on_cpu = curve == CURVE_NAMES.index(CPU_CURVE)
        return np.where(on_cpu, self.process_gib, self.reserved_gib)

    def attention_of(self, curve: Numbers) -> Numbers:
        """The share of the bf16 peak for each column."""
        known = np.array([self.attention[name.partition("-")[0]] for name in CURVE_NAMES])
        return known[curve.astype(np.int64)]


SPREADS = {
    "matrix": 0.12,
    "half_width": 0.5,
    "misaligned": 0.5,
    "attention": 0.15,
    "early": 0.3,
    "cast": 0.5,
    "grouped": 0.5,
    "routing": 0.5,
    "elementwise": 0.4,
    "unfused": 0.3,
    "scores": 0.4,
    "launch_s": 0.4,
    "routing_launches": 0.5,
    "checkpoint_s": 1.0,
    "memory": 0.1,
    "nvlink": 0.25,
    "nic": 0.25,
    "near_s": 0.7,
    "far_s": 0.7,
    "overlap": 0.5,
    "tensor_exposed": 0.5,
    "expert_exposed": 0.5,
    "pipeline_exposed": 0.5,
    "jitter": 0.7,
    "step_s": 0.7,
    "reserved_gib": 0.3,
    "process_gib": 0.5,
    "fragments": 0.5,
}
"""By how much each figure may be off before anything was measured, as the standard deviation of its
logarithm."""
_WIDE = 1.0
"""Of processors, of which the catalogue has one kind for all."""
_LEAST = {"overlap": 1.0, "unfused": 1.0}
_MOST = {
    "matrix": 0.95,
    "attention": 0.85,
    "memory": 0.95,
    "nvlink": 0.95,
    "nic": 0.95,
    "tensor_exposed": 1.0,
    "expert_exposed": 1.0,
}
_TABLES = ("matrix", "attention")


def _names() -> list[tuple[str, str]]:
    """Figure and, in a table, entry."""
    found = [("matrix", name) for name in CURVE_NAMES]
    found += [("attention", name) for name in _ATTENTION_PRIORS]
    return found + [(one.name, "") for one in fields(Curves) if one.name not in _TABLES]


def vector_names() -> list[str]:
    """The name of each entry of `as_vector`."""
    return [f"{figure}.{entry}" if entry else figure for figure, entry in _names()]


def as_vector(curves: Curves) -> Numbers:
    """Logarithms of all figures, in the order of `vector_names`."""
    values = [getattr(curves, f)[e] if e else getattr(curves, f) for f, e in _names()]
    logs: Numbers = np.log(np.array(values))
    return logs


def from_vector(vector: Numbers) -> Curves:
    """The inverse of `as_vector`; what lies beyond what is possible is set to the limit."""
    found: dict[str, Any] = {}
    tables: dict[str, dict[str, float]] = {"matrix": {}, "attention": {}}
    for (figure, entry), value in zip(_names(), np.exp(vector).tolist(), strict=True):
        held = min(max(value, _LEAST.get(figure, 0.0)), _MOST.get(figure, np.inf))
        if entry:
            tables[figure][entry] = held
        else:
            found[figure] = held
    return replace(Curves(), **found, matrix=tables["matrix"], attention=tables["attention"])


def spreads() -> Numbers:
    """The spread of each entry of `as_vector`."""
    return np.array([_WIDE if "cpu" in entry else SPREADS[figure] for figure, entry in _names()])
