"""DeepSpeed's AutoTP (https://www.deepspeed.ai/tutorials/autotp-training/): which matrices are cut
over the tensor axis, and whole tensors in and out of ranks that hold parts of them.

AutoTP is told the model's own tensor plan, of which it can train four words. Embedding and head
stay whole on every tensor rank: their cut forms want a loss of DeepSpeed's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from rayline.errors import SpecError
from rayline.train.deepspeed_masters import Masters
from rayline.train.deepspeed_state import ScatteredState

_KINDS: dict[str, dict[str, Any]] = {
    "colwise": {"partition_type": "column"},
    "rowwise": {"partition_type": "row"},
    "replicated_with_grad_allreduce": {"partition_type": "skip", "grad_allreduce": True},
}
_STAYS_WHOLE = frozenset({"colwise_gather_output", "colwise_rep", "embedding_rowwise"})
_CUT_DIM = {"colwise": {"weight": 0, "bias": 0}, "rowwise": {"weight": 1}}


def layer_specs(words: Mapping[str, str]) -> list[dict[str, Any]]:
    """The model's tensor plan (pattern of a module's name to its word) as AutoTP's layer_specs.
    Raises SpecError naming a word that AutoTP can't train."""
    specs = []
    for pattern, word in words.items():
        if word in _STAYS_WHOLE:
            continue
        if word not in _KINDS:
            raise SpecError(
                "plan.tensor",
                f"the model's tensor plan says {word} of {pattern}, which engine deepspeed can't "
                "train",
                allowed=", ".join((*_KINDS, *sorted(_STAYS_WHOLE))),
                fix="use engine: native",
            )
        specs.append({"patterns": [rf"(.*\.)?{_regex(pattern)}\.\w+$"], **_KINDS[word]})
    if not specs:
        raise SpecError("plan.tensor", "the model has no tensor plan", fix="use plan.tensor: 1")
    return specs


def cut_dims(words: Mapping[str, str], names: list[str]) -> dict[str, int]:
    """Parameter name to the dim along which tensor ranks hold parts of it; the others are whole."""
    found = {}
    for pattern, word in words.items():
        matcher = re.compile(rf"{_regex(pattern)}\.(\w+)")
        for name in names:
            match = matcher.fullmatch(name)
            dim = _CUT_DIM.get(word, {}).get(match[1]) if match else None
            if dim is not None:
                found[name] = dim
    return found


def _regex(pattern: str) -> str:
    return re.escape(pattern).replace(r"\*", r"\d+")


class OverTensorAxis:
    """A ScatteredState of cut parameters that speaks of whole ones."""

    def __init__(
        self,
        inner: ScatteredState,
        dims: Mapping[nn.Parameter, int],
        group: dist.ProcessGroup,
    ) -> None:
        """`dims`: cut parameters to the dim they are cut along; `group`: the tensor ranks."""
        self._inner = inner
        self._dims = dims
        self._group = group
        self.masters: Masters = inner.masters

    @property
    def loss_factor(self) -> float:
        """What the loss is to be multiplied by, besides what DeepSpeed multiplies it by."""
        return self._inner.loss_factor

    def set_loss_scale(self, scale: float) -> None:
        """The scale of the next backward passes."""
        self._inner.set_loss_scale(scale)

    def whole(self, parameter: nn.Parameter, slot: str | None) -> torch.Tensor:
        """The whole tensor, on every rank."""
        return self._joined(parameter, self._inner.whole(parameter, slot))

    def put(self, parameter: nn.Parameter, slot: str | None, whole: torch.Tensor) -> None:
        """Take over a whole tensor: this rank's part of it."""
        if parameter in self._dims:
            parts = whole.chunk(self._group.size(), dim=self._dims[parameter])
            whole = parts[self._group.rank()].contiguous()
        self._inner.put(parameter, slot, whole)

    def publish(self) -> None:
        """Let what computes follow what was put."""
        self._inner.publish()

    def settle(self) -> None:
        """Called once after the last microbatch, before anything asks for gradients."""
        self._inner.settle()

    def gradient(self, parameter: nn.Parameter) -> torch.Tensor:
        """The whole reduced gradient, on every rank."""
        return self._joined(parameter, self._inner.gradient(parameter))

    def gradient_norm(self) -> float:
        """Global 2-norm; DeepSpeed counts what tensor ranks hold alike once."""
        return self._inner.gradient_norm()

    def drop_gradients(self) -> None:
        """Forget gradients as if no backward pass had been."""
        self._inner.drop_gradients()

    def _joined(self, parameter: nn.Parameter, part: torch.Tensor) -> torch.Tensor:
        if parameter not in self._dims:
            return part
        parts = [torch.empty_like(part) for _ in range(self._group.size())]
        dist.all_gather(parts, part.contiguous(), group=self._group)
        return torch.cat(parts, dim=self._dims[parameter])
