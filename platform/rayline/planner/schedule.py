"""The order in which each worker of a pipeline does its forward and backward passes, as values.

These are the orders of torch.distributed.pipelining, which runs them; a test compares the two.
Sources: Huang et al. 2019 (gpipe); Narayanan et al. 2021, section 2.2 (1f1b, interleaved); Qi et
al. 2023, sections 2 and 6 (zero_bubble, zero_bubble_v).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Literal, NamedTuple

from rayline.spec import ParallelPlan

Work = Literal["F", "B", "I", "W"]
"""F: forward. B: the whole backward. I: its gradients of the inputs. W: those of the weights."""


class Action(NamedTuple):
    """One piece of work of the worker that holds the stage."""

    work: Work
    stage: int
    microbatch: int


Order = tuple[Action, ...]
"""What one worker does in one step, first to last."""


def action_orders(plan: ParallelPlan) -> tuple[Order, ...]:
    """The order of every worker along the pipeline axis. Called on the driver, for a plan that
    passed `check`."""
    shape = plan.model_copy(update={"data": 1, "tensor": 1, "context": 1, "layers_per_stage": None})
    return _orders(shape)


def worker_order(plan: ParallelPlan, worker: int) -> Order:
    """The order of one worker, as in `action_orders`, without those of the others."""
    if plan.pipeline == 1:
        return action_orders(plan)[0]
    return tuple(_ORDERS[plan.schedule](plan, worker))


@lru_cache(maxsize=64)
def _orders(plan: ParallelPlan) -> tuple[Order, ...]:
    if plan.pipeline == 1:
        return (tuple(a for k in range(plan.microbatches) for a in _both(0, k)),)
    order_of = _ORDERS[plan.schedule]
    return tuple(tuple(order_of(plan, worker)) for worker in range(plan.pipeline))


def _both(stage: int, microbatch: int) -> tuple[Action, Action]:
    return Action("F", stage, microbatch), Action("B", stage, microbatch)


def _gpipe(plan: ParallelPlan, worker: int) -> Iterable[Action]:
    for work in ("F", "B"):
        for microbatch in range(plan.microbatches):
            yield Action(work, worker, microbatch)


def _one_forward_one_backward(plan: ParallelPlan, worker: int) -> Iterable[Action]:
    ahead = min(plan.microbatches, plan.pipeline - worker)
    for microbatch in range(ahead):
        yield Action("F", worker, microbatch)
    for microbatch in range(plan.microbatches):
        yield Action("B", worker, microbatch)
        if microbatch + ahead < plan.microbatches:
            yield Action("F", worker, microbatch + ahead)


def _interleaved(plan: ParallelPlan, worker: int) -> Iterable[Action]:
    """Stages take turns in rounds of microbatches; `ahead` forward passes come first, then one
    backward pass for every forward one."""
    turns = plan.stages_per_worker * plan.microbatches
    round_length = plan.microbatches // max(1, plan.microbatches // plan.pipeline)
    splits = plan.schedule_rules.splits_backward
    distance = plan.pipeline - 1 - worker
    ahead = (plan.stages_per_worker - 1) * round_length + (1 if splits else 2) * distance
    ahead = min(ahead, turns)
    stages = plan.stages_of_worker(worker)
    forward = _taking_turns(stages, round_length, turns)
    backward = _taking_turns(stages[::-1], round_length, turns)
    for stage, microbatch in forward[:ahead]:
        yield Action("F", stage, microbatch)
    for number, (stage, microbatch) in enumerate(backward):
        if ahead + number < turns:
            yield Action("F", *forward[ahead + number])
        yield Action("I" if splits else "B", stage, microbatch)
        if splits and number >= worker:
            yield Action("W", *backward[number - worker])
    if splits:
        for stage, microbatch in backward[max(0, turns - worker) :]:
            yield Action("W", stage, microbatch)


def _taking_turns(stages: tuple[int, ...], round_length: int, turns: int) -> list[tuple[int, int]]:
    """(stage, microbatch) of each turn."""
    done: Counter[int] = Counter()
    found = []
    for turn in range(turns):
        stage = stages[turn // round_length % len(stages)]
        found.append((stage, done[stage]))
        done[stage] += 1
    return found


def _zero_bubble_v(plan: ParallelPlan, worker: int) -> Iterable[Action]:
    """ZB-V is laid out for at least 2 x workers - 1 microbatches; of a shorter step, what there
    is no microbatch for is left out."""
    laid_out = max(2 * plan.pipeline - 1, plan.microbatches)
    down, up = plan.stages_of_worker(worker)
    return (
        action
        for action in _laid_out_v(plan.pipeline, worker, laid_out, down, up)
        if action.microbatch < plan.microbatches
    )


def _laid_out_v(
    workers: int, worker: int, microbatches: int, down: int, up: int
) -> Iterable[Action]:
    """The order of one worker, whose stages are `down` on the way to the last worker and `up` on
    the way back."""
    done: Counter[tuple[Work, int]] = Counter()

    def next_of(work: Work, stage: int) -> Action:
        done[work, stage] += 1
        return Action(work, stage, done[work, stage] - 1)

    def backward(stage: int) -> tuple[Action, Action]:
        return next_of("I", stage), next_of("W", stage)

    for _ in range(2 * (workers - worker) - 1):
        yield next_of("F", down)
    for _ in range(worker):
        yield next_of("F", up)
        yield next_of("F", down)
    for _ in range(workers - worker):
        yield next_of("F", up)
        yield from backward(up)
    while done["F", up] < done["F", down] or done["F", down] < microbatches:
        if done["F", down] < microbatches:
            yield next_of("F", down)
        yield from backward(down)
        yield next_of("F", up)
        yield from backward(up)
    for _ in range(worker):
        yield next_of("I", down)
        yield next_of("I", up)
    for _ in range(workers - worker):
        yield from backward(down)
    for stage in (up, down):
        while done["W", stage] < done["I", stage]:
            yield next_of("W", stage)


_ORDERS: dict[str, Callable[[ParallelPlan, int], Iterable[Action]]] = {
    "gpipe": _gpipe,
    "1f1b": _one_forward_one_backward,
    "interleaved": _interleaved,
    "zero_bubble": _interleaved,
    "zero_bubble_v": _zero_bubble_v,
}
