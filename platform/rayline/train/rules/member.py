"""What an update rule is: parameters and state in, both changed in place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch

State = dict[str, torch.Tensor]
"""Slot to live storage, for one parameter."""


@dataclass(frozen=True, slots=True)
class Member:
    """One parameter as a rule sees it."""

    name: str
    ruled_as: str
    """Name that patterns go by."""
    local: torch.Tensor
    """What this rank holds of it, float32, live."""
    shape: tuple[int, ...]
    """Shape of the whole parameter."""
    lr_scale: float
    weight_decay: float


class Rule(Protocol):
    """One kind of optimizer. It keeps nothing that a checkpoint would miss: what it remembers is
    in the state, or follows from the step's number."""

    @property
    def whole_slots(self) -> frozenset[str]:
        """Slots that are whole on every rank of the stage; the others are cut as the parameter."""
        ...

    def begin(self, member: Member) -> State:
        """The state before the first step. Called once for each parameter."""
        ...

    def step(
        self,
        members: Mapping[str, Member],
        state: Mapping[str, State],
        gradients: Mapping[str, torch.Tensor],
        lr: float,
        number: int,
    ) -> None:
        """Step `number` (counted from 1) of all parameters, in place."""
        ...


def alike(members: Mapping[str, Member]) -> list[list[Member]]:
    """The members in groups of equal rate and decay, in which they can be stepped together."""
    groups: dict[tuple[float, float], list[Member]] = {}
    for member in members.values():
        groups.setdefault((member.lr_scale, member.weight_decay), []).append(member)
    return list(groups.values())
