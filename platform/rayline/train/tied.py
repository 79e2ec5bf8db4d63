"""Tied embeddings across a pipeline: one weight that lies on the first and on the last stage.

Both hold it in the same layout over data and tensor. The original's stage is the one that counts
and writes; after each backward pass both add up their gradients, so both take the same step and
stay equal (Megatron-LM does the same). Where both lie on one stage they are one parameter, and
nothing is left to do here. Where both stages lie on one worker (the stages of a V), the two talk to
each other without a group.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist

from rayline.parallel.layout import local_gradient, local_part
from rayline.parallel.mesh import GangMesh
from rayline.train.stages import WorkerStages


@dataclass(frozen=True, slots=True)
class TiedCopies:
    """The tied parameters that lie on this rank's stages while their twin lies on another stage."""

    here: dict[str, torch.nn.Parameter]
    """Name in the whole model, on this rank, to the parameter."""
    originals: dict[str, str]
    """Name of each copy to the name of its original."""
    group: dist.ProcessGroup | None
    """This rank and its counterpart on the other stage; the original's stage comes first. None
    where both stages lie on one rank, or this rank has neither."""

    @classmethod
    def find(cls, stages: WorkerStages, mesh: GangMesh) -> TiedCopies:
        """Every rank calls it: the groups of all pipelines are made by all ranks together."""
        originals = stages.tied
        if not originals or mesh.plan.pipeline == 1:
            return cls({}, {}, None)
        mine = None
        last = mesh.plan.worker_of_stage(mesh.plan.stages - 1)
        for pipeline in mesh.plan.groups("pipeline") if last else ():
            ends = [pipeline[0], pipeline[last]]
            group = dist.new_group(ends)
            if dist.get_rank() in ends:
                mine = group
        names = set(originals) | set(originals.values())
        here = {n: p for n, p in stages.parameters_by_whole_name() if n in names}
        return cls(here, originals, mine)

    @property
    def copied_names(self) -> frozenset[str]:
        """Names on this rank whose original lies on another stage."""
        return frozenset(name for name in self.here if name in self.originals)

    def sum_gradients(self) -> None:
        """Add up both stages' gradients, in place."""
        for copied, original in self._twins_here():
            total = local_gradient(self.here[original])
            total += local_gradient(self.here[copied])
            local_gradient(self.here[copied]).copy_(total)
        for _, parameter in self._in_order():
            dist.all_reduce(local_gradient(parameter), group=self.group)

    def copy_weights(self) -> None:
        """Let the copies take the originals' values."""
        self.copy_state(lambda name: local_part(self.here[name]))

    def copy_state(self, state: Callable[[str], torch.Tensor]) -> None:
        """Let the copies' `state(name)` take the values of the originals'."""
        for copied, original in self._twins_here():
            state(copied).copy_(state(original))
        for name, _ in self._in_order():
            dist.broadcast(state(name), group=self.group, group_src=0)

    def _twins_here(self) -> list[tuple[str, str]]:
        """Copies and originals that both lie on this rank."""
        return [pair for pair in self.originals.items() if self.here.keys() >= set(pair)]

    def _in_order(self) -> list[tuple[str, torch.nn.Parameter]]:
        """Those with a twin on another rank; both ranks go through them in the order of the
        originals' names."""
        if self.group is None:
            return []
        return sorted(self.here.items(), key=lambda item: self.originals.get(item[0], item[0]))
