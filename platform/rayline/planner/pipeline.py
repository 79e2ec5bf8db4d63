"""How busy a pipeline keeps its workers: a schedule's actions played through in time.

No closed formula for the bubble: the orders of `rayline.planner.schedule` are simulated with the
times of each stage, so that uneven stages and steps of few microbatches come out right too. A
worker does its actions in order; one begins once the worker is free and what it needs has come.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rayline.planner.schedule import Action, Order, action_orders
from rayline.spec import ForwardCost, JobSpec, ModelShape, ParallelPlan, forward_cost


@dataclass(frozen=True, slots=True)
class StageTimes:
    """Time of one microbatch on one stage, in any unit that is the same for all stages."""

    forward: float
    backward_input: float
    """Gradients of the stage's inputs."""
    backward_weight: float
    """Gradients of its weights."""


@dataclass(frozen=True, slots=True)
class Timeline:
    """One step as it was played through; times are in the unit of the stages' times."""

    ends: Mapping[Action, float]
    """When each action is done, from the beginning of the step."""
    lengths: Mapping[Action, float]
    """How long each action takes."""
    length: float
    """When the last worker is done."""
    busy: tuple[float, ...]
    """Time that each worker computes."""

    @property
    def bubble_share(self) -> float:
        """Share of all workers' time in which they wait, from 0 to 1."""
        return 1.0 - sum(self.busy) / (self.length * len(self.busy)) if self.length else 0.0


@dataclass(frozen=True, slots=True)
class PipelineEstimate:
    """What the pipeline axis of a plan comes to."""

    stage_layers: tuple[int, ...]
    """Layers of each stage, first to last."""
    bubble_share: float
    """Share of the workers' time in which they wait for one another, from 0 to 1."""
    relative_step: float
    """Length of a step over that of workers that are never idle and equally loaded; 1 or more."""


def estimate_pipeline(shape: ModelShape, job: JobSpec) -> PipelineEstimate:
    """The estimate for the job's plan, by operations: all are taken to be equally fast, and sending
    costs nothing. Called on the driver, after `job.check`."""
    cost = forward_cost(shape, job.data.sequence_tokens)
    layers = job.plan.stage_layers(shape, job.data.sequence_tokens)
    timeline = simulate(job.plan, stage_times(layers, cost))
    ideal = sum(timeline.busy) / len(timeline.busy)
    return PipelineEstimate(layers, timeline.bubble_share, timeline.length / ideal)


def stage_times(layers: Sequence[int], cost: ForwardCost) -> list[StageTimes]:
    """The times of stages with so many layers, in operations for each token."""
    times = []
    for stage, count in enumerate(layers):
        matrices, elementwise = count * cost.layer_matrices, 0
        if stage == 0:
            elementwise += cost.embedding
        if stage == len(layers) - 1:
            matrices += cost.head
            elementwise += cost.loss
        attention = count * cost.layer_attention
        times.append(
            StageTimes(
                forward=matrices + attention + elementwise,
                backward_input=matrices + 2 * attention + elementwise,
                backward_weight=matrices,
            )
        )
    return times


def simulate(plan: ParallelPlan, times: Sequence[StageTimes]) -> Timeline:
    """Play one step through; `times` are those of every stage, first to last. Raises ValueError
    where the workers would wait for one another for ever."""
    orders = action_orders(plan)
    ends: dict[Action, float] = {}
    lengths: dict[Action, float] = {}
    free_at = [0.0] * len(orders)
    busy = [0.0] * len(orders)
    position = [0] * len(orders)
    waiting = set(range(len(orders)))
    while waiting:
        done_before = len(ends)
        for worker in sorted(waiting):
            order = orders[worker]
            while position[worker] < len(order):
                action = order[position[worker]]
                ready_at = _ready_at(action, plan.stages, ends)
                if ready_at is None:
                    break
                length = _length(action, times[action.stage])
                free_at[worker] = max(free_at[worker], ready_at) + length
                busy[worker] += length
                ends[action] = free_at[worker]
                lengths[action] = length
                position[worker] += 1
            else:
                waiting.remove(worker)
        if waiting and len(ends) == done_before:
            stuck = [str(orders[worker][position[worker]]) for worker in sorted(waiting)]
            raise ValueError(f"workers wait for one another: {', '.join(stuck)}")
    return Timeline(ends, lengths, max(free_at), tuple(busy))


def _ready_at(action: Action, stages: int, ends: Mapping[Action, float]) -> float | None:
    """When what the action needs is there; None while that is not known."""
    work, stage, microbatch = action
    if work == "W":
        return ends.get(Action("I", stage, microbatch))
    if work == "F":
        return 0.0 if stage == 0 else ends.get(Action("F", stage - 1, microbatch))
    if stage == stages - 1:
        return ends.get(Action("F", stage, microbatch))
    return ends.get(Action(work, stage + 1, microbatch))


def _length(action: Action, times: StageTimes) -> float:
    """Nobody waits for the gradients of the first stage's inputs, so torch computes both halves of
    its backward pass in W."""
    if action.work == "F":
        return times.forward
    whole = times.backward_input + times.backward_weight
    if action.work == "B":
        return whole
    if action.stage == 0:
        return whole if action.work == "W" else 0.0
    return times.backward_weight if action.work == "W" else times.backward_input


def peak_in_flight(order: Order, held: Mapping[int, int]) -> int:
    """The most that one worker holds at a time, where each microbatch on stage s holds `held[s]`
    (bytes, or 1 to count) from its forward pass to the end of its backward pass."""
    now = most = 0
    for action in order:
        if action.work == "F":
            now += held.get(action.stage, 0)
            most = max(most, now)
        elif action.work != "I":
            now -= held.get(action.stage, 0)
    return most
