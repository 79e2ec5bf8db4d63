"""AdapterSpec: a LoRA adapter that a deployment answers with, under a name of its own."""

from __future__ import annotations

import re
from typing import Self

from pydantic import Field, model_validator

from rayline.errors import SpecError
from rayline.spec.document import Document

_KINDS = ("directory", "run", "bucket")
ADAPTER_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"
"""As a deployment's name: it is what clients send as `model`, and part of metrics and logs."""


class AdapterSource(Document):
    """Exactly one address of an adapter in PEFT's layout: adapter_config.json and
    adapter_model.safetensors."""

    directory: str | None = None
    """Folder that every node sees."""
    run: str | None = None
    """Id of a tracked run, whose artifact folder `adapter` is meant, or ID/FOLDER for another one:
    9f2c61d0, 9f2c61d0/adapters/legal."""
    bucket: str | None = None
    """Folder in an object store, as fsspec writes it: s3://bucket/adapters/legal."""

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        given = [kind for kind in _KINDS if getattr(self, kind)]
        if len(given) != 1:
            found = ", ".join(given) or "none"
            raise ValueError(f"give exactly one of {', '.join(_KINDS)}, not {found}")
        if self.run is not None and not _is_artifact_path(self.run):
            raise ValueError("run is written ID or ID/FOLDER, of letters, digits, . - and _")
        if self.bucket is not None and not re.match(r"^[a-z][a-z0-9+.-]*://[^/]", self.bucket):
            raise ValueError("bucket is written SCHEME://BUCKET/FOLDER, such as s3://models/legal")
        return self

    @classmethod
    def from_text(cls, text: str) -> Self:
        """Read the command line's short form, `kind:address`: `directory:adapters/legal`,
        `run:9f2c61d0`, `bucket:s3://models/legal`. Raises SpecError."""
        kind, colon, address = text.partition(":")
        if not colon or kind not in _KINDS or not address:
            raise SpecError(
                "adapter",
                "not an adapter's address",
                value=text,
                allowed="directory:PATH, run:ID or run:ID/FOLDER, bucket:SCHEME://BUCKET/FOLDER",
            )
        return cls.parse({kind: address}, origin="adapter")

    def __str__(self) -> str:
        return next(f"{kind}:{getattr(self, kind)}" for kind in _KINDS if getattr(self, kind))


class AdapterSpec(Document):
    """One adapter. Clients choose it by sending its name as `model`."""

    name: str = Field(pattern=ADAPTER_NAME)
    """What clients send; neither the deployment's name nor another adapter's."""
    source: AdapterSource
    """Where it lies."""
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    """Of adapter_model.safetensors; where given, a file with another one is refused."""


def _is_artifact_path(text: str) -> bool:
    run, *folders = text.split("/")
    plain = all(re.fullmatch(r"[A-Za-z0-9._-]+", part) for part in folders)
    return bool(re.fullmatch(r"[A-Za-z0-9-]+", run)) and plain and not {".", ".."} & set(folders)
