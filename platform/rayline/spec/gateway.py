"""GatewaySpec: what stands in front of every model of a cluster."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rayline.spec.document import Document


class GatewaySpec(Document):
    """Where HTTP is answered, who may ask, and where keys and usage are kept. One cluster has one
    gateway; every deployment on it names the same."""

    host: str = "127.0.0.1"
    """Address that HTTP listens on; 0.0.0.0 opens it to the network."""
    port: int = Field(default=8000, ge=1, le=65535)
    """TCP port that HTTP listens on."""
    replicas: int = Field(default=1, ge=1)
    """Processes that check requests and pass answers on; they hold no CPU of the cluster's."""
    keys: Literal["auto", "required", "open"] = "auto"
    """Whether an API key is asked for. auto: yes, unless the address is this machine's alone and no
    key has been made."""
    store: str = "sqlite:///serving.db"
    """Database of keys, usage and versions, as an SQLAlchemy address: one local file by default,
    postgresql+psycopg://user@host/name where gateways run on several nodes."""
    max_queued: int = Field(default=256, ge=0)
    """Requests for one model that wait while every replica is busy; more are refused with 429."""
    hold_s: float = Field(default=60.0, ge=0)
    """How long a request is held while no replica takes it."""
    drain_s: float = Field(default=60.0, ge=0)
    """How long answers may take to end when the gateway is taken away."""
    cors_origins: tuple[str, ...] = ()
    """Web pages that browsers may ask from; none by default."""
