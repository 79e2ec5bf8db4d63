"""RehearsalSpec: an engine that answers by rule, without a model."""

from __future__ import annotations

from pydantic import Field

from rayline.spec.document import Document


class RehearsalSpec(Document):
    """How a rehearsal's replicas behave. Everything around them is real: Ray, the gateway, keys,
    quotas, rollout, scaling; so a rollout, a client or a fault can be rehearsed on a cluster before
    a GPU is paid for. The model is named and not opened."""

    slots: int = Field(default=32, ge=1)
    """Requests that a replica computes at once; the rest waits."""
    first_token_ms: float = Field(default=20.0, ge=0)
    """From a slot to the first token."""
    token_ms: float = Field(default=10.0, ge=0)
    """From one token to the next."""
    answer_tokens: int = Field(default=64, ge=1)
    """Length of an answer whose request sets none."""
    kv_cache_tokens: int = Field(default=65_536, ge=1)
    """Tokens of prompts and answers that fill the KV cache; only told, as its share in use."""
    embedding_dims: int = Field(default=64, ge=1)
    """Length of an embedding."""
    start_s: float = Field(default=0.0, ge=0)
    """How long a replica takes to come up."""
    slow_factor: float = Field(default=1.0, gt=0)
    """Fault: every time of an answer is multiplied by it."""
    error_rate: float = Field(default=0.0, ge=0, le=1)
    """Fault: share of the requests that fail as if the engine had."""
    fails_at_start: bool = False
    """Fault: no replica comes up."""
