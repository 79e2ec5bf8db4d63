"""ParallelPlan: how many workers stand along each axis, and which worker stands where.

Topology is arithmetic on rank numbers and nothing else, so it is tested without a cluster. Ranks
are laid out with pipeline outermost, then data, then context, tensor innermost: neighbours that
talk most have neighbouring numbers, and a tensor group is a run of consecutive ranks that one
placement bundle holds (the order of Megatron-LM, Narayanan et al. 2021, section 3.2, with the
pipeline outermost).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Literal

from pydantic import Field

from rayline.errors import PlacementError, SpecError
from rayline.spec.document import Document
from rayline.spec.model import ModelShape

Axis = Literal["pipeline", "data", "context", "tensor"]
AXES: tuple[Axis, ...] = ("pipeline", "data", "context", "tensor")
"""Outermost first: the order of the ranks and of the device mesh."""


@dataclass(frozen=True, slots=True)
class Coordinate:
    """Where one rank stands along every axis, each counted from 0."""

    pipeline: int
    data: int
    context: int
    tensor: int

    def __str__(self) -> str:
        return f"pp{self.pipeline}-dp{self.data}-cp{self.context}-tp{self.tensor}"


class ParallelPlan(Document):
    """Sizes of the axes of parallelism; the product of the first four is the world size."""

    data: int = Field(default=1, ge=1)
    """Replicas (ZeRO shards) of the model, each with its part of the batch."""
    tensor: int = Field(default=1, ge=1)
    """Workers that split each layer's matrices; they always lie on one node."""
    pipeline: int = Field(default=1, ge=1)
    """Stages: workers that hold consecutive layers."""
    context: int = Field(default=1, ge=1)
    """Workers that split each sequence, and exchange heads for tokens in the attention (Ulysses,
    Jacobs et al. 2023)."""
    expert: int = Field(default=1, ge=1)
    """Workers, out of the data axis, over which the experts of a mixture are spread."""
    zero_stage: Literal[0, 1, 2, 3] = 3
    """What the data axis shards: 0 nothing, 1 optimizer states, 2 gradients too, 3 weights too
    (Rajbhandari et al. 2020)."""
    replicate: int = Field(default=1, ge=1)
    """Copies of the sharded state along the data axis (hybrid sharding): data / replicate
    neighbours, best the workers of a node, share one copy."""
    microbatches: int = Field(default=1, ge=1)
    """Parts that each data replica's share of a global batch is cut into."""
    sequence: bool = False
    """Whether the tensor ranks hold parts of each sequence between blocks (Korthikanti et al.
    2022): less memory for activations, the same traffic."""
    schedule: Literal["gpipe", "1f1b"] = "1f1b"
    """Order of the stages' forward and backward passes."""

    @property
    def world_size(self) -> int:
        """Workers in all."""
        return prod(self._sizes())

    def _sizes(self) -> tuple[int, ...]:
        return tuple(getattr(self, axis) for axis in AXES)

    def coordinate(self, rank: int) -> Coordinate:
        """Where `rank` stands."""
        if not 0 <= rank < self.world_size:
            raise SpecError(
                "rank", "outside the plan", value=rank, allowed=f"0..{self.world_size - 1}"
            )
        places = []
        for size in reversed(self._sizes()):
            rank, place = divmod(rank, size)
            places.append(place)
        pipeline, data, context, tensor = reversed(places)
        return Coordinate(pipeline, data, context, tensor)

    def rank(self, coordinate: Coordinate) -> int:
        """Who stands at `coordinate`; the inverse of `coordinate`."""
        rank = 0
        for axis, size in zip(AXES, self._sizes(), strict=True):
            rank = rank * size + getattr(coordinate, axis)
        return rank

    def groups(self, axis: Axis) -> list[tuple[int, ...]]:
        """The groups of ranks that differ along `axis` only, each in the order of that axis."""
        found: dict[tuple[int, ...], list[int]] = {}
        for rank in range(self.world_size):
            here = self.coordinate(rank)
            others = tuple(getattr(here, other) for other in AXES if other != axis)
            found.setdefault(others, []).append(rank)
        return [tuple(group) for group in found.values()]

    def check(
        self, model: ModelShape, global_batch: int, workers_per_node: int | None = None
    ) -> None:
        """Refuse, in microseconds, what cannot work. `global_batch` counts sequences;
        `workers_per_node` is the most that any node can hold (None: not known yet).
        Raises SpecError; PlacementError where every node is too small for a tensor group."""
        self._check_model(model)
        self._check_batch(global_batch)
        if workers_per_node is not None and self.tensor > workers_per_node:
            raise PlacementError(
                "plan.tensor",
                f"a tensor group lies on one node: {self.tensor} wanted, "
                f"the largest node has {workers_per_node}",
                value=self.tensor,
                allowed=f"1..{workers_per_node}",
                fix="lower plan.tensor and raise plan.pipeline or plan.data",
            )

    def _check_model(self, model: ModelShape) -> None:
        fits = {
            "heads": model.heads % self.tensor == 0,
            # Where there are fewer, neighbouring ranks hold the same key-value head.
            "kv_heads": model.kv_heads % self.tensor == 0 or self.tensor % model.kv_heads == 0,
            "ffn": model.ffn % self.tensor == 0,
        }
        for name, fitting in fits.items():
            if not fitting:
                raise SpecError(
                    "plan.tensor",
                    f"does not divide the model's {getattr(model, name)} {_WORDS[name]}",
                    value=self.tensor,
                    allowed=_one_of(_tensor_sizes(model)),
                    fix="choose one of the allowed sizes",
                )
        if self.pipeline > model.layers:
            raise SpecError(
                "plan.pipeline",
                f"more stages than the model's {model.layers} layers",
                value=self.pipeline,
                allowed=f"1..{model.layers}",
            )
        heads = model.heads // self.tensor
        if heads % self.context:
            raise SpecError(
                "plan.context",
                f"does not divide the {heads} attention heads of a tensor rank, which the ranks of "
                "a sequence exchange for tokens",
                value=self.context,
                allowed=_one_of([size for size in range(1, heads + 1) if heads % size == 0]),
                fix="choose one of the allowed sizes",
            )
        if self.data % self.replicate:
            raise SpecError(
                "plan.replicate",
                f"does not divide plan.data = {self.data}",
                value=self.replicate,
                allowed=_one_of([n for n in range(1, self.data + 1) if self.data % n == 0]),
            )
        if self.expert > 1:
            raise SpecError(
                "plan.expert",
                "this axis is not available",
                value=self.expert,
                allowed="1",
                fix="use plan.tensor, which cuts each expert, with plan.data and plan.pipeline",
            )

    def _check_batch(self, global_batch: int) -> None:
        parts = self.data * self.microbatches
        product = f"{self.data} x {self.microbatches}"
        if global_batch % parts:
            below, above = global_batch // parts * parts, -(-global_batch // parts) * parts
            raise SpecError(
                "batch.sequences",
                f"not divisible by plan.data x plan.microbatches = {product}",
                value=global_batch,
                allowed=f"a multiple of {parts}",
                fix=f"--set batch.sequences={below or above}",
            )
        if self.pipeline > 1 and self.microbatches < self.pipeline and self.schedule == "1f1b":
            raise SpecError(
                "plan.microbatches",
                f"fewer than the {self.pipeline} pipeline stages that the 1f1b schedule keeps busy",
                value=self.microbatches,
                allowed=f"{self.pipeline} or more",
                fix=f"--set plan.microbatches={self.pipeline}, or plan.schedule=gpipe",
            )

    def __str__(self) -> str:
        axes = [
            f"{axis} {getattr(self, axis)}" for axis in ("data", "tensor", "pipeline", "context")
        ]
        return " x ".join(text for text in axes if not text.endswith(" 1")) or "one worker"


_WORDS = {"heads": "attention heads", "kv_heads": "key-value heads", "ffn": "feed-forward width"}


def _tensor_sizes(model: ModelShape) -> list[int]:
    return [
        size
        for size in range(1, model.heads + 1)
        if model.heads % size == 0
        and (model.kv_heads % size == 0 or size % model.kv_heads == 0)
        and model.ffn % size == 0
    ]


def _one_of(sizes: list[int]) -> str:
    return ", ".join(str(size) for size in sizes)
