"""DataSpec: where the training text comes from and how it becomes token sequences."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from rayline.spec.document import Document


class MixturePart(Document):
    """One source of a mixture."""

    files: list[str] = Field(min_length=1)
    """What data.files would be, for this source."""
    weight: float = Field(default=1.0, gt=0)
    """The source's share of the training sequences is weight / sum of all weights; a source that is
    used up begins anew, in a new order, while the others go on."""


class DataSpec(Document):
    """Where the training text comes from and how it becomes token sequences."""

    kind: Literal["chat", "text"]
    """chat: a line is {"messages": [{"role", "content"}, ...]}, the loss is on the assistant's
    words only. text: a line is {"text": "..."} (or a line of a .txt file), packed without gaps."""
    files: list[str] | None = Field(default=None, min_length=1)
    """Paths or fsspec addresses (s3://, gs://, memory://, ...) of .jsonl, .parquet or .txt (text)
    files, or of folders that a Hugging Face dataset was saved to; read in this order. A table has
    its lines' keys, messages or text, as columns."""
    mixture: list[MixturePart] | None = Field(default=None, min_length=1)
    """Several sources with weights, instead of files."""
    sequence_tokens: int = Field(ge=2)
    """Length of every training sequence, in tokens; longer chats are cut, shorter ones padded."""
    packing: Literal["dense", "documents"] = "dense"
    """dense: texts follow each other and a text sees those before it in its sequence; a chat has a
    sequence of its own. documents: texts or whole chats share sequences, attention stays within
    each of them and positions count from its first token."""
    cache_dir: str | None = None
    """Folder of token shards, kept by content, that later jobs read instead of tokenizing; on
    storage that all nodes see. null: .tokens, beside output_dir."""

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if (self.files is None) == (self.mixture is None):
            raise ValueError("give exactly one of files and mixture")
        return self

    @property
    def sources(self) -> list[MixturePart]:
        """The parts of the mixture; files are one part."""
        return self.mixture or [MixturePart(files=self.files or [])]
