"""ParallelPlan: how many workers stand along each axis, and which worker stands where.

Topology is arithmetic on rank numbers and nothing else, so it is tested without a cluster. Ranks
are laid out with pipeline outermost, then data, then context, tensor innermost: neighbours that
talk most have neighbouring numbers, and a tensor group is a run of consecutive ranks that one
placement bundle holds (the order of Megatron-LM, Narayanan et al. 2021, section 3.2, with the
pipeline outermost).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd, prod
from typing import Literal, Self

from pydantic import Field, model_validator

from rayline.errors import PlacementError, SpecError
from rayline.spec.document import Document
from rayline.spec.model import ModelShape
from rayline.spec.stages import (
    SCHEDULES,
    Schedule,
    ScheduleRules,
    balance_layers,
    forward_cost,
    stages_of_worker,
    worker_of_stage,
)

Axis = Literal["pipeline", "data", "context", "tensor"]
ContextMethod = Literal["ulysses", "ring"]
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

    auto: bool = False
    """Whether the planner chooses the plan on the cluster that the job finds; in a spec, `plan:
    auto` says so, and no other field of it."""
    data: int = Field(default=1, ge=1)
    """Replicas (ZeRO shards) of the model, each with its part of the batch."""
    tensor: int = Field(default=1, ge=1)
    """Workers that split each layer's matrices; they always lie on one node."""
    pipeline: int = Field(default=1, ge=1)
    """Workers that hold consecutive layers: one stage each, or `stages_per_worker`."""
    context: int = Field(default=1, ge=1)
    """Workers that split each sequence."""
    context_method: ContextMethod = "ulysses"
    """How they attend to one another's tokens. ulysses: heads are exchanged for tokens, so that
    each computes whole sequences for some heads (Jacobs et al. 2023); they must divide the heads.
    ring: keys and values go round (Liu et al. 2023), whatever the heads; what is sent grows with
    the key-value heads, and goes while the last part is computed."""
    expert: int = Field(default=1, ge=1)
    """Workers, out of the data axis, over which the experts of a mixture are spread: each holds
    experts / expert of them, and tokens travel to the experts that they chose and back (GShard,
    Lepikhin et al. 2020). Neighbours along the data axis share out one set of experts."""
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
    schedule: Schedule = "1f1b"
    """Order of the stages' forward and backward passes. interleaved has a smaller bubble than 1f1b
    and sends more; zero_bubble and zero_bubble_v fill the bubble with the gradients of weights."""
    stages_per_worker: int = Field(default=1, ge=1)
    """Stages that each worker of the pipeline holds; the schedule says how many it can take."""
    layers_per_stage: tuple[int, ...] | None = None
    """Layers of each stage, first to last; null balances the stages by what they cost."""

    @model_validator(mode="after")
    def _auto_says_no_more(self) -> Self:
        told = sorted(self.model_fields_set - {"auto"})
        others = [name for name in told if getattr(self, name) != type(self).default_of(name)]
        if self.auto and others:
            raise ValueError(
                f"auto leaves the whole plan to the planner, but {', '.join(others)} is told too; "
                "use plan: auto alone, or no auto"
            )
        return self

    @classmethod
    def default_of(cls, name: str) -> object:
        """What a field holds where nothing is told."""
        return cls.model_fields[name].default

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

    def expert_place(self, coordinate: Coordinate) -> int:
        """Which part of the experts the worker at `coordinate` holds, counted from 0."""
        return coordinate.data % self.expert

    @property
    def sequence_divisor(self) -> int:
        """Equal parts that each sequence is cut into: one for each worker of the context axis, two
        on a ring (see `rayline.parallel.sequence`), and over the tensor ranks between blocks."""
        blocks = 2 if self.context > 1 and self.context_method == "ring" else 1
        return self.context * blocks * (self.tensor if self.sequence else 1)

    @property
    def schedule_rules(self) -> ScheduleRules:
        """What the schedule asks for."""
        return SCHEDULES[self.schedule]

    @property
    def splits_backward(self) -> bool:
        """Whether the gradients of the weights are computed apart from those of the inputs."""
        return self.pipeline > 1 and self.schedule_rules.splits_backward

    @property
    def stages(self) -> int:
        """Stages of the whole pipeline."""
        return self.pipeline * self.stages_per_worker

    def worker_of_stage(self, stage: int) -> int:
        """Place on the pipeline axis of the worker that holds `stage`."""
        return worker_of_stage(stage, self.pipeline, self.schedule_rules.placement)

    def stages_of_worker(self, worker: int) -> tuple[int, ...]:
        """The stages of the worker at place `worker` of the pipeline axis, first to last; the
        inverse of `worker_of_stage`."""
        return stages_of_worker(worker, self.pipeline, self.stages, self.schedule_rules.placement)

    def stage_layers(self, model: ModelShape, sequence_tokens: int) -> tuple[int, ...]:
        """Layers of each stage, first to last: as `layers_per_stage` says, or balanced. Called by
        planner and engine, after `check`."""
        if self.layers_per_stage is not None:
            return self.layers_per_stage
        workers = [self.worker_of_stage(stage) for stage in range(self.stages)]
        return balance_layers(model.layers, forward_cost(model, sequence_tokens), workers)

    def check(
        self, model: ModelShape, global_batch: int, workers_per_node: int | None = None
    ) -> None:
        """Refuse, in microseconds, what cannot work. `global_batch` counts sequences;
        `workers_per_node` is the most that any node can hold (None: not known yet).
        Raises SpecError; PlacementError where every node is too small for a tensor group."""
        self._check_model(model)
        self._check_stages(model)
        self._check_batch(global_batch)
        self._check_schedule()
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
        heads = model.heads // self.tensor
        if self.context_method == "ulysses" and heads % self.context:
            raise SpecError(
                "plan.context",
                f"does not divide the {heads} attention heads of a tensor rank, which the ranks of "
                "a sequence exchange for tokens",
                value=self.context,
                allowed=_one_of(_divisors(heads)),
                fix="choose one of the allowed sizes, or --set plan.context_method=ring",
            )
        if self.data % self.replicate:
            raise SpecError(
                "plan.replicate",
                f"does not divide plan.data = {self.data}",
                value=self.replicate,
                allowed=_one_of(_divisors(self.data)),
            )
        self._check_experts(model)

    def _check_experts(self, model: ModelShape) -> None:
        """Whether the data axis and the model's experts can be spread as told."""
        if self.expert == 1:
            return
        if not model.experts:
            raise SpecError(
                "plan.expert",
                "the model is dense: it has no experts to spread",
                value=self.expert,
                allowed="1",
                fix="--set plan.expert=1; plan.data, plan.tensor and plan.pipeline split any model",
            )
        if self.data % self.expert or model.experts % self.expert:
            raise SpecError(
                "plan.expert",
                f"must divide plan.data = {self.data}, out of which its workers are taken, and the "
                f"model's {model.experts} experts",
                value=self.expert,
                allowed=_one_of(_divisors(gcd(self.data, model.experts))),
                fix="choose one of the allowed sizes, or another plan.data",
            )
        sharing = self.data // self.replicate
        if sharing % self.expert:
            raise SpecError(
                "plan.replicate",
                f"leaves {sharing} data ranks to share one copy, over which plan.expert = "
                f"{self.expert} cannot spread the experts",
                value=self.replicate,
                allowed=_one_of(_divisors(self.data // self.expert)),
                fix="choose one of the allowed sizes, or a smaller plan.expert",
            )

    def _check_stages(self, model: ModelShape) -> None:
        """What each worker holds of the model."""
        rules = self.schedule_rules
        fewest, most = rules.fewest_stages, rules.most_stages
        allowed = rules.allowed_stages
        if self.pipeline == 1:
            fewest, most, allowed = 1, 1, "1 on a pipeline of one worker"
        if self.stages_per_worker < fewest or self.stages_per_worker > (most or self.stages):
            raise SpecError(
                "plan.stages_per_worker",
                f"is not what the {self.schedule} schedule can run",
                value=self.stages_per_worker,
                allowed=allowed,
                fix=f"--set plan.stages_per_worker={fewest}, or another plan.schedule",
            )
        if self.stages > model.layers:
            raise SpecError(
                "plan.pipeline",
                f"{self.stages} stages are more than the model's {model.layers} layers",
                value=self.pipeline,
                allowed=f"1..{model.layers // self.stages_per_worker}",
            )
        if self.layers_per_stage is not None:
            self._check_layers(self.layers_per_stage, model.layers)

    def _check_layers(self, layers: tuple[int, ...], wanted: int) -> None:
        """Layers that were told by hand."""
        problem = ""
        if len(layers) != self.stages:
            problem = f"names {len(layers)} stages where the plan has {self.stages}"
        elif min(layers) < 1:
            problem = "leaves a stage without a layer"
        elif sum(layers) != wanted:
            problem = f"adds up to {sum(layers)} layers where the model has {wanted}"
        if problem:
            raise SpecError(
                "plan.layers_per_stage",
                problem,
                value=list(layers),
                allowed=f"{self.stages} numbers of 1 or more that add up to {wanted}",
                fix="--set plan.layers_per_stage=null balances the stages",
            )

    def _check_schedule(self) -> None:
        """What the schedule asks of microbatches and of the data axis."""
        if self.pipeline == 1:
            return
        if self.microbatches < self.pipeline and self.schedule == "1f1b":
            raise SpecError(
                "plan.microbatches",
                f"fewer than the {self.pipeline} pipeline stages that the 1f1b schedule keeps busy",
                value=self.microbatches,
                allowed=f"{self.pipeline} or more",
                fix=f"--set plan.microbatches={self.pipeline}, or plan.schedule=gpipe",
            )
        if self.schedule in ("interleaved", "zero_bubble"):
            self._check_rounds()
        holders = self.data * self.context
        if self.schedule_rules.splits_backward and holders > 1 and self.zero_stage == 3:
            raise SpecError(
                "plan.zero_stage",
                f"the {self.schedule} schedule comes back for the gradients of the weights, which "
                "stage 3 has given away by then",
                value=self.zero_stage,
                allowed="0, 1, 2",
                fix="--set plan.zero_stage=2, or plan.schedule=interleaved",
            )

    def _check_rounds(self) -> None:
        """Stages take turns in rounds of equally many microbatches."""
        rounds = max(1, self.microbatches // self.pipeline)
        if self.microbatches % rounds:
            above = (rounds + 1) * self.pipeline
            raise SpecError(
                "plan.microbatches",
                f"cannot be cut into {rounds} equal rounds, which the {self.schedule} schedule of "
                f"{self.pipeline} workers asks for",
                value=self.microbatches,
                allowed=f"a multiple of {self.pipeline}, such as {rounds * self.pipeline}",
                fix=f"--set plan.microbatches={above}",
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

    def __str__(self) -> str:
        if self.auto:
            return "auto"
        axes = [
            f"{axis} {getattr(self, axis)}" for axis in ("data", "tensor", "pipeline", "context")
        ]
        named = " x ".join(text for text in axes if not text.endswith(" 1")) or "one worker"
        return f"{named}, experts over {self.expert}" if self.expert > 1 else named


_WORDS = {"heads": "attention heads", "kv_heads": "key-value heads", "ffn": "feed-forward width"}


def _tensor_sizes(model: ModelShape) -> list[int]:
    return [
        size
        for size in range(1, model.heads + 1)
        if model.heads % size == 0
        and (model.kv_heads % size == 0 or size % model.kv_heads == 0)
        and model.ffn % size == 0
    ]


def _divisors(size: int) -> list[int]:
    return [n for n in range(1, size + 1) if size % n == 0]


def _one_of(sizes: list[int]) -> str:
    return ", ".join(str(size) for size in sizes)
