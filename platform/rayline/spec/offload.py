"""OffloadSpec: what leaves the device's memory until it is needed again."""

from __future__ import annotations

from typing import Literal

from pydantic import field_validator

from rayline.spec.document import Document

Place = Literal["none", "cpu"]
"""Where something stays between uses: on the device, or in the host's memory."""


class OffloadSpec(Document):
    """What stays outside the device's memory between uses. It changes where numbers lie, not what
    they are."""

    optimizer: Place = "none"
    """Where optimizer states stay; under deepspeed the fp32 weights too, and the host steps."""
    parameters: Place = "none"
    """Where the weights that compute stay; engine deepspeed, plan.zero_stage 3."""
    activations: Place = "none"
    """Where what layers save for the backward pass stays until then; engine native."""

    @field_validator("optimizer", "parameters", "activations", mode="before")
    @classmethod
    def _no_nvme(cls, place: object) -> object:
        if place == "nvme":
            raise ValueError(
                "nvme is not offered: DeepSpeed would keep states in swap files that checkpoints, "
                "snapshots and verify can't see; use cpu, or more data ranks to share the states"
            )
        return place
