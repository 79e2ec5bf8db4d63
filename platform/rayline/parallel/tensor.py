"""Tensor parallelism from the model's own plan.

transformers' configs name, for each layer, one word out of eleven (`base_model_tp_plan`). Each
word is translated here into torch's parallel styles (Megatron-LM, Shoeybi et al. 2019: split the
first matrix of a pair by columns, the second by rows, one all-reduce a pair and direction). A word
that is not translated is refused by name: never guessed, because a wrong guess trains wrongly
without a sign.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    RowwiseParallel,
    parallelize_module,
)

from rayline.errors import SpecError
from rayline.parallel.layout import local_gradient

PARTIAL_GRADIENT = "replicated_with_grad_allreduce"
"""Whole on every rank, but each rank's gradient counts its own heads only."""


def split_over_tensor_axis(
    model: nn.Module, words: Mapping[str, str], mesh: DeviceMesh, embedding: str | None
) -> list[str]:
    """Apply the model's tensor plan in place; every rank of the tensor group calls it.

    `words` maps module name patterns (`*` stands for a layer number) to the config's words;
    `embedding` names the token embedding in this module, which is split by vocabulary.
    Returns the names of the parameters whose gradients must be summed over the tensor group (see
    `sum_partial_gradients`). Raises SpecError for a word that isn't known.
    """
    styles: dict[str, ParallelStyle] = {}
    partial: list[str] = []
    for name, module in model.named_modules():
        word = _word_for(name, words)
        if word == PARTIAL_GRADIENT:
            partial += [f"{name}.{own}" for own, _ in module.named_parameters(recurse=False)]
        elif word is not None:
            styles[name] = _style(name, word)
    if embedding is not None and embedding not in styles:
        styles[embedding] = RowwiseParallel(input_layouts=Replicate())
    parallelize_module(model, mesh, styles)
    return partial


def sum_partial_gradients(parameters: Iterable[nn.Parameter], group: dist.ProcessGroup) -> None:
    """Sum, in place, the gradients of `parameters` over the tensor group."""
    pending = [
        dist.all_reduce(local_gradient(parameter), group=group, async_op=True)
        for parameter in parameters
    ]
    for work in pending:
        if work is not None:
            work.wait()


def _word_for(name: str, words: Mapping[str, str]) -> str | None:
    for pattern, word in words.items():
        if re.fullmatch(re.escape(pattern).replace(r"\*", r"\d+"), name):
            return word
    return None


def _style(name: str, word: str) -> ParallelStyle:
    if word == "colwise":
        return ColwiseParallel()
    if word == "rowwise":
        return RowwiseParallel()
    if word == "colwise_gather_output":
        return ColwiseParallel(output_layouts=Replicate())
    if word == "embedding_rowwise":
        return RowwiseParallel(input_layouts=Replicate())
    raise SpecError(
        "plan.tensor",
        f"the model's tensor plan asks for {word!r} at {name}, which cannot be split here",
        allowed="colwise, rowwise, colwise_gather_output, embedding_rowwise, " + PARTIAL_GRADIENT,
        fix="set plan.tensor to 1 and use plan.data and plan.pipeline",
    )
