"""OffloadSpec: what leaves the device's memory until it is needed again."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from rayline.spec.document import Document

Place = Literal["none", "cpu", "nvme"]
"""Where something stays between uses: on the device, in the host's memory, in files."""


class OffloadSpec(Document):
    """What stays outside the device's memory between uses. It changes where numbers lie, not what
    they are."""

    optimizer: Place = "none"
    """Where optimizer states, and the fp32 copies of the weights, stay."""
    parameters: Place = "none"
    """Where the weights that compute stay; needs plan.zero_stage 3."""
    nvme_dir: str | None = Field(default=None, min_length=1)
    """Folder for what goes to nvme, best on a fast local disk; each worker writes files of its own
    there, which are worth nothing once the run is over."""

    @model_validator(mode="after")
    def _has_a_folder(self) -> Self:
        to_files = [name for name in ("optimizer", "parameters") if getattr(self, name) == "nvme"]
        if to_files and self.nvme_dir is None:
            raise ValueError(f"{to_files[0]} nvme needs a folder: set nvme_dir")
        if self.nvme_dir is not None and not to_files:
            raise ValueError(
                f"nvme_dir {self.nvme_dir} is given, but nothing goes there; set optimizer: nvme, "
                "or leave it out"
            )
        return self
