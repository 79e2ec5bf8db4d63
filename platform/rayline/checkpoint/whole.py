"""Whole tensors of a checkpoint, one after another, in a process that has no plan."""

from __future__ import annotations

from collections import defaultdict

import torch

from rayline.checkpoint.location import Location
from rayline.checkpoint.reading import read_into
from rayline.errors import CheckpointError
from rayline.parallel.piece import Piece
from rayline.spec import CheckpointManifest, TensorPiece


class WholeTensors:
    """The float32 tensors of a verified checkpoint: weights and the means beside them."""

    def __init__(self, folder: Location, manifest: CheckpointManifest) -> None:
        self._folder = folder
        self._manifest = manifest
        # Once, and not for every tensor: the manifest of a thousand ranks has millions of pieces.
        self._pieces: dict[str, list[TensorPiece]] = defaultdict(list)
        for piece in manifest.pieces:
            self._pieces[piece.tensor].append(piece)

    def check(self, shapes: dict[str, tuple[int, ...]]) -> None:
        """Refuse a checkpoint that lacks one of these tensors, by name and shape. Raises
        CheckpointError."""
        for tensor, shape in shapes.items():
            found = [tuple(piece.shape) for piece in self._pieces.get(tensor, [])[:1]]
            if found != [shape]:
                raise CheckpointError(
                    f"{self._folder}, {tensor}",
                    "not in the checkpoint as the job's model and optimizer have it",
                    value=found[0] if found else None,
                    allowed=f"shape {shape}",
                    fix="give the spec that the checkpoint was trained with",
                )

    def read(self, tensor: str, shape: tuple[int, ...]) -> torch.Tensor:
        """One tensor, new and on the CPU. Raises CheckpointError."""
        own = self._manifest.model_copy(update={"pieces": self._pieces[tensor]})
        whole = torch.empty(shape)
        read_into(self._folder, own, [Piece(tensor, shape, (0,) * len(shape), whole, owner=False)])
        return whole
