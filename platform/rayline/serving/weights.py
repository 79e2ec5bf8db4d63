"""What a replica's engine reads, on the replica's node."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rayline.planner import Quantization, read_model_config, read_quantization
from rayline.spec import ServeSpec
from rayline.tracking import resolve_model


@dataclass(frozen=True, slots=True)
class LocalWeights:
    """Folders on this machine."""

    folder: Path
    """The model, in Hugging Face's layout."""
    quantization: Quantization | None
    """As its config.json says; None for a plain checkpoint."""
    draft: Path | None
    """speculation.model; None where nothing is guessed with weights."""


def local_weights(spec: ServeSpec) -> LocalWeights:
    """Fetch what is not on this machine. Called by each replica, which waits for it; raises what
    `resolve_model` does."""
    folder = resolve_model(spec.model, spec.tracking)
    speculation = spec.engine.speculation
    guessing = None if speculation is None else speculation.model
    return LocalWeights(
        folder=folder,
        quantization=read_quantization(read_model_config(folder)),
        draft=None if guessing is None else resolve_model(guessing, spec.tracking),
    )
