"""Ranks that hold replicas of a small module, whose gradients come in different orders."""

import os
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from rayline.parallel.replicas import Replicas

MICROBATCHES = 2
WIDTH = 8
HANG_S = 20
STAGE = 3
"""Its number; any would do."""


class Branches(nn.Module):
    """Two branches between a first and a last layer, gone through in the order asked for, or left
    out; a layer that nothing goes through, and a frozen one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.first = nn.Linear(WIDTH, WIDTH)
        self.left = nn.Linear(WIDTH, WIDTH)
        self.right = nn.Linear(WIDTH, WIDTH)
        self.unused = nn.Linear(WIDTH, WIDTH)
        self.frozen = nn.Linear(WIDTH, WIDTH).requires_grad_(False)
        self.last = nn.Linear(WIDTH, WIDTH)

    def forward(self, inputs: torch.Tensor, order: list[str]) -> torch.Tensor:
        hidden: torch.Tensor = self.first(inputs)
        for name in order:
            hidden = torch.tanh(self.get_submodule(name)(hidden))
        return self.last(self.frozen(hidden)).square().sum()  # type: ignore[no-any-return]


ORDERS = (
    ([["left", "right"], ["right", "left"]], [["right", "left"], ["left", "right"]]),
    ([["left"], ["left", "right"]], [["right"], ["right"]]),
    ([["right"], []], [[], ["left"]]),
)
"""Of each step, of both ranks: the branches of each microbatch."""


def inputs(step: int, rank: int) -> torch.Tensor:
    """[microbatches, places, width]."""
    draw = torch.Generator().manual_seed(10 * step + rank)
    return torch.randn(MICROBATCHES, 4, WIDTH, generator=draw)


def expected(step: int) -> dict[str, torch.Tensor]:
    """The sums over both ranks, by autograd alone."""
    total: dict[str, torch.Tensor] = {}
    for rank, orders in enumerate(ORDERS[step]):
        model = Branches()
        for part, order in zip(inputs(step, rank), orders, strict=True):
            model(part, order).backward()
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                own = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                total[name] = total[name] + own if rank else own
    return total


def sum_gradients(rank: int, world: int, port: int, _: Path, log: Path) -> None:
    """Steps of both ranks, each in microbatches of which the last one alone sends."""
    with log.open("w") as said:
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"tcp://127.0.0.1:{port}",
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=HANG_S),
    )
    model = Branches()
    matrix_bytes = model.first.weight.nbytes
    replicas = Replicas({STAGE: model.parameters()}, dist.group.WORLD, matrix_bytes)
    storages = set()
    for step in range(len(ORDERS)):
        sums = expected(step)
        own = zip(inputs(step, rank), ORDERS[step][rank], strict=True)
        for number, (part, order) in enumerate(own):
            if number < MICROBATCHES - 1:
                model(part, order).backward()
                continue
            loss = model(part, order)
            with replicas.summing(STAGE):
                loss.backward()
        replicas.finish()
        for name, total in sums.items():
            grad = model.get_parameter(name).grad
            assert grad is not None
            assert torch.equal(grad, total), f"step {step}: {name} is {grad}, not {total}"
            storages.add(grad.untyped_storage().data_ptr())
        assert model.frozen.weight.grad is None
        model.zero_grad(set_to_none=True)
    # Five matrices, and the vectors in one bucket: gradients are views of the same ones every step.
    assert len(storages) == 6, storages
    _sums_arrive_during_the_backward_pass(model, replicas)
    _a_stage_left_out_is_refused(model, replicas)
    dist.destroy_process_group()


def _sums_arrive_during_the_backward_pass(model: Branches, replicas: Replicas) -> None:
    """The first layer's gradient is withheld until the sum of the last layer's is there."""
    orders = [["left", "right"]] * 2
    totals = []
    for rank, order in enumerate(orders):
        alone = Branches()
        alone(inputs(9, rank)[0], order).backward()
        totals.append(alone.last.weight.grad)
    total = totals[0] + totals[1]
    arrived = []

    def wait(*_: object) -> None:
        deadline_s = time.monotonic() + HANG_S
        while time.monotonic() < deadline_s:
            if torch.equal(model.last.weight.grad, total):  # type: ignore[arg-type]
                arrived.append(True)
                return
            time.sleep(0.001)

    rank = dist.get_rank()
    handle = model.first.register_full_backward_pre_hook(wait)
    loss = model(inputs(9, rank)[0], orders[rank])
    with replicas.summing(STAGE):
        loss.backward()
    replicas.finish()
    handle.remove()
    assert arrived, "the last layer's sum was not there before the first layer's gradient"
    model.zero_grad(set_to_none=True)


def _a_stage_left_out_is_refused(model: Branches, replicas: Replicas) -> None:
    model(inputs(0, 0)[0], []).backward()
    refused = ""
    try:
        replicas.finish()
    except RuntimeError as error:
        refused = str(error)
    assert f"gradients of stage {STAGE} were not summed" in refused
