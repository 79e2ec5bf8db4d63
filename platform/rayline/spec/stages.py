"""Pipeline stages as arithmetic: what each schedule asks for, which worker holds which stage, and
how many layers a stage takes.

Planner and engine both cut by these rules, so that what is predicted is what runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rayline.spec.model import ModelShape

Schedule = Literal["gpipe", "1f1b", "interleaved", "zero_bubble", "zero_bubble_v"]


@dataclass(frozen=True, slots=True)
class ScheduleRules:
    """What one schedule asks of a plan."""

    fewest_stages: int
    """Stages that a worker holds at least."""
    most_stages: int | None
    """Stages that a worker can hold; None: no limit."""
    placement: Literal["loop", "v"]
    """loop: after the last worker comes the first again. v: back from the last to the first."""
    splits_backward: bool
    """Whether the gradients of the weights are computed apart from those of the inputs."""

    @property
    def allowed_stages(self) -> str:
        """How many stages a worker can hold, in words."""
        if self.most_stages == self.fewest_stages:
            return str(self.fewest_stages)
        return f"{self.fewest_stages} or more"


SCHEDULES: dict[Schedule, ScheduleRules] = {
    "gpipe": ScheduleRules(1, 1, "loop", False),
    "1f1b": ScheduleRules(1, 1, "loop", False),
    "interleaved": ScheduleRules(2, None, "loop", False),
    "zero_bubble": ScheduleRules(1, None, "loop", True),
    "zero_bubble_v": ScheduleRules(2, 2, "v", True),
}
"""gpipe: Huang et al. 2019. 1f1b and interleaved: Narayanan et al. 2021, section 2.2. zero_bubble
is ZB1P and zero_bubble_v is ZB-V of Qi et al. 2023 (sections 2 and 6). The limits are those of
torch.distributed.pipelining, which runs them."""


def worker_of_stage(stage: int, workers: int, placement: Literal["loop", "v"]) -> int:
    """Place on the pipeline axis of the worker that holds `stage`."""
    lap, place = divmod(stage, workers)
    return workers - 1 - place if placement == "v" and lap % 2 else place


def stages_of_worker(
    worker: int, workers: int, stages: int, placement: Literal["loop", "v"]
) -> tuple[int, ...]:
    """The stages that the worker at place `worker` holds, first to last."""
    return tuple(s for s in range(stages) if worker_of_stage(s, workers, placement) == worker)


@dataclass(frozen=True, slots=True)
class ForwardCost:
    """Floating-point operations of one token's forward pass through the parts of a model; a
    multiplication with its addition counts as two."""

    layer_matrices: int
    """Products with the weights of one layer. Each of the two halves of the backward pass, for the
    inputs and for the weights, costs as much again."""
    layer_attention: int
    """Products of queries, keys and values; they have no weights, so the backward pass costs twice
    as much for the inputs and nothing for weights."""
    embedding: int
    """A look-up is a copy."""
    head: int
    """The product that makes logits."""
    loss: int
    """Element by element over the vocabulary."""

    @property
    def layer(self) -> int:
        """One whole layer."""
        return self.layer_matrices + self.layer_attention


def forward_cost(model: ModelShape, sequence_tokens: int) -> ForwardCost:
    """The cost of each part. Of a mixture of experts those count that a token is sent to; causal
    attention sees half of the sequence on average."""
    return ForwardCost(
        layer_matrices=2 * model.layer_matrices_per_token,
        layer_attention=2 * model.heads * model.head_dim * sequence_tokens,
        embedding=model.hidden,
        head=2 * model.hidden * model.vocab,
        loss=5 * model.vocab,
    )


def balance_layers(layers: int, cost: ForwardCost, workers: Sequence[int]) -> tuple[int, ...]:
    """Layers of each stage such that the busiest worker has as little to do as can be; each stage
    has at least one. `workers` names the worker of each stage.

    Layer by layer to the worker that has least to do so far, there to the stage that costs least:
    layers are alike, so that is the optimum. Where several are equal, the inner stage gets the
    layer. Raises ValueError where there are fewer layers than stages."""
    stages = len(workers)
    if layers < stages:
        raise ValueError(f"{layers} layers cannot fill {stages} stages")
    counts = [1] * stages
    load = [cost.layer] * stages
    load[0] += cost.embedding
    load[-1] += cost.head + cost.loss
    load_of_worker = [0] * (max(workers) + 1)
    for stage, worker in enumerate(workers):
        load_of_worker[worker] += load[stage]

    def order(stage: int) -> tuple[int, int, int, int]:
        depth = min(stage, stages - 1 - stage)
        return load_of_worker[workers[stage]], load[stage], -depth, stage

    for _ in range(layers - stages):
        lightest = min(range(stages), key=order)
        counts[lightest] += 1
        load[lightest] += cost.layer
        load_of_worker[workers[lightest]] += cost.layer
    return tuple(counts)
