"""The whole model on each rank, as DeepSpeed wants it: a module from ids to logits."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rayline.models.skeleton import skeleton_of
from rayline.models.stage import transformer_layers
from rayline.models.stored import StoredNames
from rayline.models.weights import draw_random, read_pretrained
from rayline.parallel.attention import check_packing, documents_mask
from rayline.parallel.piece import Piece
from rayline.spec import JobSpec
from rayline.train.recompute import recompute_layers
from rayline.train.stages import COMPUTE_DTYPE


class WholeModel(nn.Module):
    """Maps int64 ids [sequences, tokens], and each token's place in its document where documents
    are packed, to logits [sequences, tokens, vocab]."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: torch.Tensor, positions: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Logits in the type of the weights."""
        logits: torch.Tensor = self.model(**self._inputs(input_ids, positions)).logits
        return logits

    def _inputs(self, input_ids: torch.Tensor, positions: torch.Tensor | None) -> dict[str, Any]:
        inputs: dict[str, Any] = {"input_ids": input_ids, "use_cache": False}
        if positions is not None:
            inputs["position_ids"] = positions
            inputs["attention_mask"] = documents_mask(positions)
        return inputs

    @property
    def parameters_by_name(self) -> dict[str, nn.Parameter]:
        """Each parameter once, tied ones by their first name: its Hugging Face name to it."""
        return dict(self.model.named_parameters())

    @property
    def tensor_words(self) -> dict[str, str]:
        """The model's tensor plan: pattern of a module's Hugging Face name to its word."""
        whole: Any = self.model
        return dict(whole.tp_plan)


class CastWholeModel(WholeModel):
    """The same, computed in 16 bits from weights that stay in float32.

    Casting is part of the graph, so gradients come back, and add up, in float32. It serves ZeRO
    stage 0, for which DeepSpeed itself has no 16 bits with sums in float32."""

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        super().__init__(model)
        self._dtype = dtype

    def forward(
        self, input_ids: torch.Tensor, positions: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Logits in 16 bits."""
        cast = {name: weight.to(self._dtype) for name, weight in self.model.named_parameters()}
        inputs = self._inputs(input_ids, positions)
        logits: torch.Tensor = torch.func.functional_call(self.model, cast, (), inputs).logits
        return logits


def build_whole_model(job: JobSpec, model_directory: Path) -> WholeModel:
    """The model on CPU with weights of no value: `initial_weights` has them. Raises SpecError."""
    model = skeleton_of(model_directory)
    check_packing(model, job.data.packing)
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model.to_empty(device="cpu")
    for name, buffer in model.named_buffers():
        buffer.copy_(buffers[name])
    model.tie_weights()
    recompute_layers(transformer_layers(model), job.recompute)
    if job.precision != "fp32" and job.plan.zero_stage == 0:
        return CastWholeModel(model, COMPUTE_DTYPE[job.precision])
    return WholeModel(model)


def initial_weights(
    job: JobSpec, model_directory: Path, wanted: Collection[str]
) -> Iterator[tuple[str, torch.Tensor]]:
    """Name and initial value of each parameter whose name is wanted, whole, float32, on CPU; one
    module in memory at a time. Read from the folder or drawn from the job's seed: bit by bit those
    that the native engine begins with. Raises SpecError, CheckpointError."""
    skeleton = skeleton_of(model_directory)
    names = {name: name for name, _ in skeleton.named_parameters()}
    stored = StoredNames(skeleton.config.model_type)
    modules: dict[str, list[str]] = defaultdict(list)
    for name in (name for name in names if name in wanted):
        modules[name.rpartition(".")[0]].append(name)
    for own in modules.values():
        pieces = [_whole_piece(name, skeleton.get_parameter(name).shape) for name in own]
        if job.init == "weights":
            read_pretrained(model_directory, pieces, stored)
        else:
            draw_random(skeleton, names, pieces, job.seed)
        for name, piece in zip(own, pieces, strict=True):
            yield name, piece.data


def _whole_piece(name: str, shape: torch.Size) -> Piece:
    return Piece(f"weight/{name}", tuple(shape), (0,) * len(shape), torch.empty(shape), owner=True)
