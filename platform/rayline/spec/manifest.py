"""CheckpointManifest: what a checkpoint holds, written last, so that without it there is none."""

from __future__ import annotations

from pydantic import Field

from rayline.spec.document import Document
from rayline.spec.plan import ParallelPlan

FORMAT_VERSION = 1


class ShardFile(Document):
    """One file of a checkpoint."""

    name: str
    """File name inside the checkpoint's folder."""
    size_bytes: int = Field(ge=0)
    """Exact length."""
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    """Hash of the whole content."""


class TensorPiece(Document):
    """A rectangle of one whole tensor, and the key under which a file holds it."""

    tensor: str
    """Name of the whole tensor: weight/NAME, or optimizer/SLOT/NAME."""
    shape: list[int]
    """Shape of the whole tensor."""
    offset: list[int]
    """Where the rectangle begins, along each dim."""
    extent: list[int]
    """Its size along each dim."""
    file: str
    """Name of the file that holds it."""
    key: str
    """Its key in that file."""


class CheckpointManifest(Document):
    """Everything needed to verify a checkpoint and to load it under any plan."""

    format_version: int = FORMAT_VERSION
    step: int = Field(ge=0)
    """Optimizer steps done."""
    samples_consumed: int = Field(ge=0)
    """Sequences used: the whole state of the data order."""
    plan: ParallelPlan
    """Plan of the run that wrote it."""
    engine: str
    """Engine that wrote it."""
    spec_fingerprint: str
    """Fingerprint of the job that wrote it."""
    model_fingerprint: str
    """Fingerprint of the model's shape: a checkpoint of another model is refused."""
    files: list[ShardFile]
    pieces: list[TensorPiece]
    scalars: dict[str, float | int] = {}
    """Small state that is no tensor, such as the optimizer's step count."""
