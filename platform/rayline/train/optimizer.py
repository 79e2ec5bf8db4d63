"""One optimizer over what a rank holds: its rule, its state, and what checkpoints see of them.

The rules lie in train/rules. A rule gets plain tensors that share storage with the rank's shards,
so the same code runs under every plan.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

import torch

from rayline.errors import SpecError
from rayline.spec import OptimSpec
from rayline.train.rules import Member, Rule, State, make_rule
from rayline.train.shards import Shards

SLOTS = ("exp_avg", "exp_avg_sq")
"""AdamW's running means: of the gradient, and of its square."""
AVERAGE = "average"
"""Slot of the running mean of a weight itself."""


@dataclass(frozen=True, slots=True)
class StatePiece:
    """One rectangle of one tensor of a parameter's state, as a checkpoint cuts it."""

    slot: str
    data: torch.Tensor
    """Live storage."""
    shape: tuple[int, ...]
    """Shape of the whole of it."""
    offset: tuple[int, ...]
    writes: bool | None
    """Whether this rank writes it; None where whoever writes the parameter does."""


class ShardedOptimizer:
    """The optimizer that the spec asks for, on this rank's shards, by parameter name."""

    def __init__(self, shards: Shards, spec: OptimSpec, average_decay: float | None = None) -> None:
        """`average_decay`: decay of a running mean of the weights, kept as one more slot; None
        keeps none."""
        self._shards = shards
        self._members = {name: _member(name, shards, spec) for name in shards.holdings}
        self._rule: Rule = make_rule(spec, self._members, shards)
        self._state: dict[str, State] = {
            name: self._rule.begin(member) for name, member in self._members.items()
        }
        self._decay = average_decay
        self._averages = (
            {name: member.local.clone() for name, member in self._members.items()}
            if average_decay is not None
            else {}
        )
        self.steps_done = 0

    def step(self, gradients: Mapping[str, torch.Tensor], lr: float) -> None:
        """One update in place from this rank's gradients, by parameter name, float32, laid out as
        the parameters. Collective within the stage for rules that are not element by element."""
        self.steps_done += 1
        self._rule.step(self._members, self._state, gradients, lr, self.steps_done)
        if self._averages and self._decay is not None:
            weights = [self._members[name].local for name in self._averages]
            torch._foreach_lerp_(list(self._averages.values()), weights, 1 - self._decay)

    def slot(self, slot: str, name: str) -> torch.Tensor:
        """Live storage of one tensor of a parameter's state."""
        return self._averages[name] if slot == AVERAGE else self._state[name][slot]

    def slots(self, name: str) -> list[str]:
        """Names of the tensors of a parameter's state."""
        return [*self._state[name], *([AVERAGE] if self._averages else [])]

    def pieces(self, name: str) -> Iterator[StatePiece]:
        """The state of one parameter. What has the shape of its shard is cut as the parameter is,
        into one or more rectangles; all else is whole on every rank of the stage."""
        holding = self._shards.holdings[name]
        for slot in self.slots(name):
            data = self.slot(slot, name)
            if slot in self._rule.whole_slots:
                offset = (0,) * data.dim()
                yield StatePiece(slot, data, tuple(data.shape), offset, self._shards.is_first)
                continue
            for one in holding.rectangles:
                yield StatePiece(slot, data[one.view], holding.shape, one.offset, None)

    def resume_at(self, steps_done: int) -> None:
        """Take over the number of steps that the state has seen."""
        self.steps_done = steps_done

    def begin_averages(self) -> None:
        """Let the running means of the weights start at the weights, once those are filled in."""
        for name, average in self._averages.items():
            average.copy_(self._members[name].local)

    def take_averages(self) -> None:
        """Put the running means of the weights in place of the weights."""
        for name, average in self._averages.items():
            self._members[name].local.copy_(average)


def _member(name: str, shards: Shards, spec: OptimSpec) -> Member:
    """The parameter with the rate and the decay that the first matching group gives it."""
    holding = shards.holdings[name]
    ruled_as = holding.ruled_as or name
    decay = spec.weight_decay if len(holding.shape) >= 2 else 0.0
    member = Member(name, ruled_as, holding.local, holding.shape, 1.0, decay)
    for group in spec.groups:
        if fnmatchcase(ruled_as, group.match):
            kept = decay if group.weight_decay is None else group.weight_decay
            return replace(member, lr_scale=group.lr_scale, weight_decay=kept)
    return member


def check_groups(spec: OptimSpec, names: set[str]) -> None:
    """Refuse a group that matches no parameter. `names`: those of the whole model. Raises
    SpecError."""
    for number, group in enumerate(spec.groups):
        if not any(fnmatchcase(name, group.match) for name in names):
            raise SpecError(
                f"optim.groups.{number}.match",
                "matches no parameter of the model",
                value=group.match,
                fix=f"parameters are called such as {', '.join(sorted(names)[:3])}",
            )
