"""What the routers of a mixture of experts choose, and the loss that evens it out.

The balance loss is that of Switch Transformers (Fedus et al. 2021, section 2.2), taken over each
sequence by itself, as DeepSeek-V3 takes it (2024, section 2.1.2), and averaged over sequences and
layers: for one sequence in one layer it is the number of experts times the sum over them of

    (choices of the expert / tokens) x (mean over tokens of its probability)

which comes to the number of choices that each token has where all experts are chosen alike, and is
transformers' load_balancing_loss_func for that layer and sequence alone. No plan cuts a sequence
but along the context axis, whose ranks add up their choices; so the number is the same under every
plan. All places of a sequence count, those without a target too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import nn
from torch.autograd import Function

from rayline.parallel.capacity import Capacity, apply_kept
from rayline.parallel.experts import Forward, find_experts, takes_choices
from rayline.parallel.sequence import SequencePart


@dataclass(slots=True)
class RoutedLayer:
    """The experts of one layer and what was chosen of them since `begin`.

    Where layers are computed again in the backward pass, each of them counts twice; so only shares
    and means are told."""

    experts: nn.Module
    router: nn.Module | None
    """What makes the router's logits; None where the model does not name it."""
    count: int
    """Experts of the layer, on all ranks."""
    sequence_tokens: int
    """Tokens that this rank holds of each sequence."""
    context: dist.ProcessGroup | None
    """The ranks that hold the other parts of these sequences."""
    capacity: Capacity | None = None
    """What the experts take at most; None drops nothing."""
    scale: float = 0.0
    """What each sequence's balance loss is multiplied with, into the gradients; at 0 it is not
    computed."""
    chosen: torch.Tensor | None = None
    """Choices of each expert, dropped or not, float64 [count]."""
    dropped: torch.Tensor | None = None
    """How many of them were dropped, float64; None without a capacity."""
    balance: torch.Tensor | None = None
    """This rank's part of the microbatches' mean balance losses, added up."""
    calls: int = 0
    _logits: torch.Tensor | None = None

    def begin(self, scale: float) -> None:
        """Forget what was chosen."""
        self.scale, self.chosen, self.balance, self.calls = scale, None, None, 0
        self.dropped = None

    def watch(self) -> None:
        """See every training pass from now on, and drop what finds experts full."""
        if self.router is not None:
            self.router.register_forward_hook(self._keep_logits)
        self.experts.register_forward_pre_hook(self._enter)
        if self.capacity is not None:
            module: Any = self.experts
            module.forward = self._dropping(module.forward, self.capacity)

    def _dropping(self, compute: Forward, capacity: Capacity) -> Forward:
        """The experts' forward pass that leaves out, while training, what finds them full."""

        def forward(
            tokens: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor
        ) -> torch.Tensor:
            if not self.experts.training:
                return compute(tokens, chosen, weights)
            kept = capacity.kept(chosen)
            missed = (~kept).sum().double()
            self.dropped = missed if self.dropped is None else self.dropped + missed
            return apply_kept(compute, kept, tokens, chosen, weights)

        return forward

    def _keep_logits(self, module: nn.Module, _: Any, output: Any) -> None:
        if module.training and self.scale:
            self._logits = output[0] if isinstance(output, tuple) else output

    def _enter(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if not module.training:
            return None
        tokens, chosen, weights, *more = args
        sequences = len(chosen) // self.sequence_tokens
        choices = count_choices(chosen.detach().view(sequences, -1), self.count)
        seen = choices.sum(0).double()
        self.chosen = seen if self.chosen is None else self.chosen + seen
        self.calls += 1
        if self._logits is None:
            return None
        logits, self._logits = self._logits.view(sequences, self.sequence_tokens, -1), None
        whole = self.sequence_tokens
        if self.context is not None:
            dist.all_reduce(choices, group=self.context)
            whole *= dist.get_world_size(self.context)
        loss = balance_loss(logits, choices, whole)
        mean = loss.detach().double() / sequences
        self.balance = mean if self.balance is None else self.balance + mean
        return (tokens, chosen, attach_loss(weights, loss * self.scale), *more)


def find_routed_layers(
    model: nn.Module,
    words: Mapping[str, str],
    count: int,
    sequence_tokens: int,
    context: dist.ProcessGroup | None,
    part: SequencePart,
    capacity_factor: float | None,
) -> Iterator[tuple[str, RoutedLayer]]:
    """The layers of a stage whose experts are called with what a router chose, by the names of the
    experts' modules. `count`: experts of a layer; `capacity_factor`: that of `Capacity`, None for
    none; for the others see `RoutedLayer` and `Capacity`."""
    capacity = None
    if capacity_factor is not None:
        capacity = Capacity(capacity_factor, count, sequence_tokens, part, context)
    # What transformers' own output_router_logits goes by: a class, or a class and a place.
    told = (getattr(model, "_can_record_outputs", None) or {}).get("router_logits")
    kind = getattr(told, "target_class", told)
    for name, experts in find_experts(model, words):
        if not takes_choices(experts):
            continue
        block = model.get_submodule(name.rpartition(".")[0])
        routers = [child for child in block.children() if kind and isinstance(child, kind)]
        router = routers[0] if len(routers) == 1 else None
        yield name, RoutedLayer(experts, router, count, sequence_tokens, context, capacity)


def count_choices(chosen: torch.Tensor, experts: int) -> torch.Tensor:
    """How often each expert was chosen in each sequence: int64 [sequences, choices] to float32
    [sequences, experts]."""
    counts = torch.zeros(len(chosen), experts, device=chosen.device)
    return counts.scatter_add_(1, chosen, torch.ones_like(chosen, dtype=counts.dtype))


def balance_loss(logits: torch.Tensor, choices: torch.Tensor, tokens: int) -> torch.Tensor:
    """Sum over sequences of the balance loss, float32; see the head of this file. `logits`
    [sequences, own tokens, experts]; `choices` [sequences, experts], over all `tokens` tokens of a
    sequence. Ranks that hold parts of sequences get parts of the sum."""
    probabilities = logits.float().softmax(-1).sum(1)
    return logits.shape[-1] * (choices / tokens * (probabilities / tokens)).sum()


def attach_loss(carrier: torch.Tensor, loss: torch.Tensor) -> torch.Tensor:
    """`carrier` as it is; once its gradient comes by, that of `loss` sets off with it (a loss that
    is made in the middle of a stage needs no way to its end)."""
    return cast(torch.Tensor, _AttachLoss.apply(carrier, loss))


class _AttachLoss(Function):
    @staticmethod
    def forward(ctx: Any, carrier: torch.Tensor, loss: torch.Tensor) -> torch.Tensor:
        ctx.like = loss.new_ones(())
        return carrier.view_as(carrier)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
        return grad, ctx.like
