"""Which model, and what its shape is.

A ModelRef is the seam between training and serving: it names weights without saying how to fetch
them. A ModelShape is what arithmetic needs to know of a model, read from its `config.json`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from pydantic import model_validator

from rayline.errors import SpecError
from rayline.spec.document import Document

_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")
_KINDS = ("hub", "directory", "run", "registry")


class ModelRef(Document):
    """Exactly one address of a model: hub id, directory, run artifact or registry entry."""

    hub: str | None = None
    """Hugging Face hub id, such as HuggingFaceTB/SmolLM2-135M-Instruct."""
    directory: str | None = None
    """Folder in Hugging Face's layout: config.json, tokenizer files, *.safetensors."""
    run: str | None = None
    """Id of a tracked run; its exported model is meant."""
    registry: str | None = None
    """Registered name with its alias or version: name@alias, or name@3."""

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        given = [kind for kind in _KINDS if getattr(self, kind)]
        if len(given) != 1:
            found = ", ".join(given) or "none"
            raise ValueError(f"give exactly one of {', '.join(_KINDS)}, not {found}")
        if self.registry is not None:
            name, _, alias = self.registry.partition("@")
            if not name or not alias:
                raise ValueError("registry is written name@alias, such as support-bot@champion")
        return self

    @classmethod
    def from_text(cls, text: str) -> Self:
        """Read the command line's short form, `kind:address`: `registry:bot@champion`,
        `directory:models/x`, `hub:org/name`, `run:0a1b`. Raises SpecError."""
        kind, colon, address = text.partition(":")
        if not colon or kind not in _KINDS or not address:
            raise SpecError(
                "model",
                "not a model address",
                value=text,
                allowed="hub:ID, directory:PATH, run:ID, registry:NAME@ALIAS",
                fix=f"put what it is before it: hub:{text}, or directory:{text}",
            )
        return cls.parse({kind: address}, origin="model")

    def __str__(self) -> str:
        return next(f"{kind}:{getattr(self, kind)}" for kind in _KINDS if getattr(self, kind))


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The integers of a decoder-only transformer that plans and costs are computed from."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    tied_embeddings: bool
    max_positions: int
    experts: int = 0
    """Routed experts per layer; 0 for a dense model."""
    experts_per_token: int = 0
    """Experts that each token is sent to; 0 for a dense model."""
    expert_ffn: int = 0
    """Feed-forward width of one routed expert; 0 for a dense model."""
    architecture: str = ""

    @property
    def layer_matrices_per_token(self) -> int:
        """Weights of one layer's matrices that one token is multiplied with: attention, three
        feed-forward matrices, of a mixture those of the experts that it is sent to, and the
        router."""
        query, key_value = self.heads * self.head_dim, 2 * self.kv_heads * self.head_dim
        active = self.experts_per_token or max(1, self.experts)
        return self.hidden * (2 * query + key_value + 3 * self.ffn * active + self.experts)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Read a Hugging Face `config.json`; nested text configs are looked into.
        Raises SpecError naming the key that is missing."""
        text = config.get("text_config") or config

        def size(*names: str, default: int | None = None) -> int:
            for name in names:
                value = text.get(name)
                if value is None:
                    continue
                if type(value) is not int or value < 1:
                    raise SpecError(
                        f"model config.json, {name}",
                        "is no size",
                        value=value,
                        allowed="a whole number, 1 or more",
                    )
                return value
            if default is None:
                raise SpecError("model config.json", f"has no {' or '.join(names)}")
            return default

        heads = size("num_attention_heads", "n_head")
        hidden = size("hidden_size", "n_embd")
        named = (text.get(name) for name in _EXPERTS)
        experts = next((int(count) for count in named if count), 0)
        ffn = size("intermediate_size", "n_inner", default=4 * hidden)
        architectures = config.get("architectures") or [config.get("model_type", "")]
        return cls(
            layers=size("num_hidden_layers", "n_layer"),
            hidden=hidden,
            heads=heads,
            kv_heads=size("num_key_value_heads", default=heads),
            head_dim=size("head_dim", default=hidden // heads),
            ffn=ffn,
            vocab=size("vocab_size"),
            tied_embeddings=bool(
                config.get("tie_word_embeddings", text.get("tie_word_embeddings", False))
            ),
            max_positions=int(text.get("max_position_embeddings") or 0),
            experts=experts,
            experts_per_token=int(text.get("num_experts_per_tok") or 0) if experts else 0,
            expert_ffn=size("moe_intermediate_size", default=ffn) if experts else 0,
            architecture=str(architectures[0]),
        )
