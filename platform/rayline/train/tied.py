"""Tied embeddings across a pipeline: one weight that lies on the first and on the last stage.

Both hold it in the same layout over data and tensor. The original's stage is the one that counts
and writes; after each backward pass both add up their gradients, so both take the same step and
stay equal (Megatron-LM does the same). Where both lie on one stage they are one parameter, and
nothing is left to do here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist

from rayline.models.stage import ModelStage
from rayline.parallel.layout import local_gradient, local_part
from rayline.parallel.mesh import GangMesh


@dataclass(frozen=True, slots=True)
class TiedCopies:
    """The tied parameters that lie on this rank's stage while their twin lies on another."""

    here: dict[str, torch.nn.Parameter]
    """Name in the whole model, on this stage, to the parameter."""
    originals: dict[str, str]
    """Name of each copy to the name of its original."""
    group: dist.ProcessGroup | None
    """This rank and its counterpart on the other stage; the original's stage comes first."""

    @classmethod
    def find(cls, stage: ModelStage, mesh: GangMesh) -> TiedCopies:
        """Every rank calls it: the groups of all pipelines are made by all ranks together."""
        originals = stage.tied
        if not originals or mesh.plan.pipeline == 1:
            return cls({}, {}, None)
        mine = None
        for pipeline in mesh.plan.groups("pipeline"):
            ends = [pipeline[0], pipeline[-1]]
            group = dist.new_group(ends)
            if dist.get_rank() in ends:
                mine = group
        names = set(originals) | set(originals.values())
        here = {n: p for n, p in stage.parameters_by_whole_name() if n in names}
        return cls(here, originals, mine)

    @property
    def copied_names(self) -> frozenset[str]:
        """Names on this stage whose original lies on another stage."""
        return frozenset(name for name in self.here if name in self.originals)

    def sum_gradients(self) -> None:
        """Add up both stages' gradients, in place."""
        for _, parameter in self._in_order():
            dist.all_reduce(local_gradient(parameter), group=self.group)

    def copy_weights(self) -> None:
        """Let the copies take the originals' values."""
        self.copy_state(lambda name: local_part(self.here[name]))

    def copy_state(self, state: Callable[[str], torch.Tensor]) -> None:
        """Let the copies' `state(name)` take the values of the originals'."""
        for name, _ in self._in_order():
            dist.broadcast(state(name), group=self.group, group_src=0)

    def _in_order(self) -> list[tuple[str, torch.nn.Parameter]]:
        """Both stages go through their twins in the order of the originals' names."""
        return sorted(self.here.items(), key=lambda item: self.originals.get(item[0], item[0]))
