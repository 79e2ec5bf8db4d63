"""One optimizer over what a rank holds: its rule, its state, and what checkpoints see of them.

The rules lie in train/rules. A rule gets plain tensors that share storage with the rank's shards,
so the same code runs under every plan.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch

from rayline.errors import SpecError
from rayline.spec import OptimSpec
from rayline.train.offload import HostState
from rayline.train.rules import Member, Rule, State, make_rule
from rayline.train.shards import Shards

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

    def __init__(
        self,
        shards: Shards,
        spec: OptimSpec,
        average_decay: float | None = None,
        *,
        on_host: bool = False,
    ) -> None:
        """`average_decay`: decay of a running mean of the weights, kept as one more slot; None
        keeps none. `on_host`: whether the state stays in the host's memory between steps."""
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
        self._host_state = HostState(self._tensors()) if on_host else None

    def _tensors(self) -> Iterator[torch.Tensor]:
        for own in self._state.values():
            yield from own.values()
        yield from self._averages.values()

    def on_device(self) -> AbstractContextManager[None]:
        """While it lasts, the state is on the parameters' device, whatever `on_host` says."""
        return nullcontext() if self._host_state is None else self._host_state.on_device()

    def step(self, gradients: Mapping[str, torch.Tensor], lr: float) -> None:
        """One update in place from this rank's gradients, by parameter name, float32, laid out as
        the parameters. Collective within the stage for rules that are not element by element."""
        self.steps_done += 1
        with self.on_device():
            self._rule.step(self._members, self._state, gradients, lr, self.steps_done)
            if self._averages and self._decay is not None:
                weights = [self._members[name].local for name in self._averages]
                torch._foreach_lerp_(list(self._averages.values()), weights, 1 - self._decay)

    def slot(self, slot: str, name: str) -> torch.Tensor:
        """Live storage of one tensor of a parameter's state."""
        tensor = self._averages[name] if slot == AVERAGE else self._state[name][slot]
        return tensor if self._host_state is None else self._host_state.live(tensor)

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
        for name in self._averages:
            self.slot(AVERAGE, name).copy_(self._members[name].local)

    def take_averages(self) -> None:
        """Put the running means of the weights in place of the weights."""
        for name in self._averages:
            self._members[name].local.copy_(self.slot(AVERAGE, name))


def _member(name: str, shards: Shards, spec: OptimSpec) -> Member:
    holding = shards.holdings[name]
    ruled_as = holding.ruled_as or name
    lr_scale, decay = rate_and_decay(ruled_as, len(holding.shape), spec)
    return Member(name, ruled_as, holding.local, holding.shape, lr_scale, decay)


def rate_and_decay(name: str, dims: int, spec: OptimSpec) -> tuple[float, float]:
    """What the first matching group, or the common rule, makes of a parameter of so many dims: the
    factor of its learning rate, and its weight decay."""
    decay = spec.weight_decay if dims >= 2 else 0.0
    for group in spec.groups:
        if fnmatchcase(name, group.match):
            kept = decay if group.weight_decay is None else group.weight_decay
            return group.lr_scale, kept
    return 1.0, decay


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
