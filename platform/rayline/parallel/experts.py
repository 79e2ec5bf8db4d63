"""Expert parallelism: each rank holds some of a mixture's experts, and tokens travel to them.

A rank that has a token sends it to the ranks that hold the experts which the router chose for it,
once for each choice, and gets back what they made of it (an all-to-all there and one back: GShard,
Lepikhin et al. 2020, section 3). Nothing is padded: as many rows travel as there are choices (but
for those that a capacity drops before, see `rayline.parallel.capacity`), and ranks first tell each
other how many. The router's weights are applied where
the token came from. Experts compute with the model's own code, of which only the number of experts
is told.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from rayline.errors import SpecError
from rayline.parallel.collectives import exchange_rows
from rayline.parallel.tensor import EXPERTS, word_of
from rayline.parallel.waiting import to_host

SPREAD = "ep_dispatch_experts"
"""The word by which transformers' expert plans (`base_model_ep_plan`) name a module of experts."""
_TAKES = 3
"""Tokens, the experts chosen for each, and their weights."""

Forward = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def find_experts(model: nn.Module, words: Mapping[str, str]) -> Iterator[tuple[str, nn.Module]]:
    """The modules that hold a layer's experts, with their names. `words` maps patterns of names to
    the words of the model's tensor and expert plans."""
    for name, module in model.named_modules():
        if word_of(name, words) in (EXPERTS, SPREAD):
            yield name, module


def spread_experts(
    model: nn.Module, words: Mapping[str, str], group: dist.ProcessGroup
) -> list[str]:
    """Leave this rank its part of every layer's experts, in place, on the meta device, and let
    tokens travel over `group`, of which every rank calls it. Call it once the tensor axis has cut
    what there is. Returns the names of the parameters that were cut, along their first dim. Raises
    SpecError for experts of a build that is not known."""
    ranks = dist.get_world_size(group)
    if not {EXPERTS, SPREAD} & set(words.values()):
        raise SpecError(
            "plan.expert",
            "the model's tensor and expert plans name no module that holds its experts",
            value=ranks,
            allowed="1",
            fix="--set plan.expert=1",
        )
    names = []
    for name, experts in find_experts(model, words):
        count = _count(name, experts)
        if count % ranks:
            raise SpecError(
                "plan.expert", f"does not divide the {count} experts of {name}", value=ranks
            )
        own = count // ranks
        for parameter_name, whole in list(experts.named_parameters(recurse=False)):
            part = torch.empty((own, *whole.shape[1:]), dtype=whole.dtype, device=whole.device)
            kept = nn.Parameter(part, requires_grad=whole.requires_grad)
            experts.register_parameter(parameter_name, kept)
            names.append(f"{name}.{parameter_name}")
        module: Any = experts
        module.num_experts = own
        # Hooks stay outside: what they do to tokens and results, they do where the tokens are.
        module.forward = _dispatching(module.forward, own, group)
    return names


def takes_choices(experts: nn.Module) -> bool:
    """Whether the module is called with tokens, the experts chosen for each, and their weights."""
    return len(inspect.signature(experts.forward).parameters) == _TAKES


def _count(name: str, experts: nn.Module) -> int:
    """Experts that the module holds. Raises SpecError where it isn't a stack of them that is called
    with tokens, choices and weights."""
    count: Any = getattr(experts, "num_experts", None)
    shapes = [tuple(parameter.shape) for parameter in experts.parameters()]
    stacked = shapes and all(shape and shape[0] == count for shape in shapes)
    if not stacked or not takes_choices(experts):
        raise SpecError(
            "plan.expert",
            f"{name} is a {type(experts).__name__}, whose experts cannot be spread here",
            value=type(experts).__name__,
            allowed="experts stacked along the first dim of each parameter, which are called with "
            "tokens, choices and weights",
            fix="--set plan.expert=1",
        )
    return int(count)


def _dispatching(compute: Forward, own: int, group: dist.ProcessGroup) -> Forward:
    """The forward pass of all experts, where `compute` is that of this rank's `own` ones."""
    ranks = dist.get_world_size(group)

    def forward(tokens: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """`tokens` [tokens, hidden]; `chosen`, `weights` [tokens, choices]: numbers of experts, and
        what their results are multiplied with. Returns [tokens, hidden]."""
        choices = chosen.shape[-1]
        order = chosen.flatten().argsort(stable=True)
        counts = torch.bincount(chosen.flatten(), minlength=own * ranks).view(ranks, own)
        arrived = torch.empty_like(counts)
        dist.all_to_all_single(arrived, counts, group=group)
        sent, received = to_host(counts.sum(1)), to_host(arrived.sum(1))
        rows = exchange_rows(tokens[order // choices], sent, received, group)
        numbers = torch.arange(own, device=rows.device).repeat(ranks)
        made = compute_rows(compute, rows, numbers.repeat_interleave(arrived.flatten()))
        back = exchange_rows(made, received, sent, group)
        results = back[order.argsort()].view(*chosen.shape, -1)
        return (results * weights.unsqueeze(-1)).sum(dim=1).to(tokens.dtype)

    return forward


def compute_rows(compute: Forward, rows: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """What experts make of `rows` [rows, hidden], of which there may be none; `numbers` int64
    [rows]: whose row each is. `compute`: the experts' forward pass."""
    if len(rows):
        return compute(rows, numbers.unsqueeze(1), rows.new_ones(len(rows), 1))
    # The backward pass has collectives that every rank must come to, by way of a row of zeros.
    row = torch.cat([rows, rows.new_zeros(1, rows.shape[1])])
    return compute(row, numbers.new_zeros(1, 1), row.new_zeros(1, 1))[:0]
