"""How evenly a step's tokens went to experts, over the whole gang, and the pull to even it out."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist

from rayline.errors import SpecError
from rayline.models.stage import ModelStage
from rayline.parallel.mesh import GangMesh
from rayline.parallel.routing import RoutedLayer, find_routed_layers
from rayline.spec import JobSpec, ModelShape, ObjectiveSpec, RoutingReport
from rayline.train.objective import count_targets


class Routing:
    """The routed layers of one rank's stages, seen together with those of all ranks."""

    def __init__(
        self,
        layers: Mapping[str, RoutedLayer],
        names: list[str],
        experts: int,
        mesh: GangMesh,
        objective: ObjectiveSpec,
        device: torch.device,
    ) -> None:
        """`layers`: this rank's, by name; `names`: those of all stages, in the same order on every
        rank; `experts`: how many each layer has."""
        self._layers = layers
        self._places = {name: place for place, name in enumerate(names)}
        self._experts = experts
        self._mesh = mesh
        self._coefficient = objective.router_aux_loss
        self._drops = objective.expert_capacity_factor is not None
        self._device = device
        for layer in layers.values():
            layer.watch()

    @classmethod
    def find(
        cls, stages: Mapping[int, ModelStage], job: JobSpec, mesh: GangMesh, device: torch.device
    ) -> Routing | None:
        """Every rank calls it; None where the model is no mixture whose choices can be seen. Raises
        SpecError where a balance loss or a capacity is asked for that cannot be had."""
        objective = job.objective
        coefficient = objective.router_aux_loss
        count = ModelShape.from_config(next(iter(stages.values())).model.config.to_dict()).experts
        layers = {
            stage.whole_name(name): layer
            for stage in stages.values()
            for name, layer in find_routed_layers(
                stage.model,
                stage.expert_words,
                count,
                job.data.sequence_tokens // mesh.plan.context,
                mesh.context_group,
                mesh.context_part,
                objective.expert_capacity_factor,
            )
        }
        found: list[list[str]] = [[] for _ in range(dist.get_world_size())]
        dist.all_gather_object(found, list(layers) if count else [])
        names = sorted({name for some in found for name in some})
        if coefficient and (not names or any(not layer.router for layer in layers.values())):
            raise SpecError(
                "objective.router_aux_loss",
                "the model has no routers whose logits are known",
                value=coefficient,
                allowed="0",
                fix="--set objective.router_aux_loss=0",
            )
        if objective.expert_capacity_factor is not None and not names:
            raise SpecError(
                "objective.expert_capacity_factor",
                "the model's experts are not called with what a router chose, so no choice can be "
                "dropped",
                value=objective.expert_capacity_factor,
                allowed="null",
                fix="--set objective.expert_capacity_factor=null",
            )
        return cls(layers, names, count, mesh, objective, device) if names else None

    def begin(self, labels: torch.Tensor, own: torch.Tensor, multiplier: float) -> None:
        """Before the passes of a step; every rank calls it. `labels`: of this data rank's whole
        sequences; `own`: the part of them that this rank holds; `multiplier`: the loss's own."""
        scale = 0.0
        if self._coefficient:
            # Gradients are sums over target tokens, which the engine divides by their number.
            targets = torch.zeros((), dtype=torch.float64, device=self._device)
            if self._mesh.coordinate.pipeline == self._mesh.coordinate.tensor == 0:
                targets += count_targets(own)
            dist.all_reduce(targets)
            shares = len(labels) * self._mesh.plan.data * len(self._places)
            scale = self._coefficient * float(targets) / shares * multiplier
        for layer in self._layers.values():
            layer.begin(scale)

    def report(self) -> RoutingReport:
        """What the passes since `begin` chose; every rank calls it and gets the same."""
        layers = len(self._places)
        total = torch.zeros(layers * self._experts + 2, dtype=torch.float64, device=self._device)
        chosen, (balance, dropped) = total[:-2].view(layers, self._experts), total[-2:].split(1)
        # Tensor ranks route alike: the first one counts.
        for name, layer in self._layers.items() if self._mesh.coordinate.tensor == 0 else ():
            if layer.chosen is not None:
                chosen[self._places[name]] = layer.chosen / layer.calls
            if layer.balance is not None:
                balance += layer.balance / layer.calls
            if layer.dropped is not None:
                dropped += layer.dropped / layer.calls
        dist.all_reduce(total)
        loads = chosen / chosen.mean(dim=1, keepdim=True)
        mean = float(balance) / (self._mesh.plan.data * layers)
        microbatches = self._mesh.plan.microbatches
        return RoutingReport(
            max_load=float(loads.max()),
            balance_loss=mean if self._coefficient else None,
            choices=round(float(chosen.sum()) * microbatches),
            dropped=round(float(dropped) * microbatches) if self._drops else None,
        )
