"""Where a step's chance (dropout) comes from: a pure function of seed, step and place, so that a
step that is done again, in another process or after a resume, draws the same."""

from __future__ import annotations

import hashlib

from rayline.spec import Coordinate


def step_seed(seed: int, step: int, place: Coordinate) -> int:
    """Seed of torch's generators for one step on one rank. Ranks that hold parts of the same layers
    and the same tokens (the tensor axis) share it; all others draw apart."""
    text = f"{seed} {step} {place.data} {place.context} {place.pipeline}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
