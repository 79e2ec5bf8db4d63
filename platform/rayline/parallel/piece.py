"""Piece: the rectangle of a whole tensor that one rank holds.

It is the common tongue of weights and checkpoints: whoever knows the whole tensor's name, its
shape and where the rectangle begins can read it from, or write it to, files made under any plan.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(slots=True)
class Piece:
    """A rectangle of the tensor `tensor`, held by this rank."""

    tensor: str
    """Name of the whole tensor: weight/NAME with the Hugging Face parameter name, or
    optimizer/SLOT/NAME, such as optimizer/exp_avg/model.norm.weight."""
    shape: tuple[int, ...]
    """Shape of the whole tensor."""
    offset: tuple[int, ...]
    """Where the rectangle begins, along each dim."""
    data: torch.Tensor
    """The rectangle. Where the engine can, it is the live storage, so that filling it in place
    restores the engine. Its dims may be empty (a rank without a share)."""
    owner: bool
    """True on exactly one of the ranks that hold this rectangle: the one that writes it."""
