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
    """Database of keys, usage and versions: one local file by default, postgresql://user@host/name
    where gateways run on several nodes. Its password is best left to ~/.pgpass or PGPASSWORD: what
    stands here is shown wherever the spec is."""
    spool: str | None = None
    """Folder in which usage waits while the store is away; by default beside a local store, else
    ~/.rayline/spool."""
    spool_mib: int = Field(default=256, ge=1)
    """Most that one gateway keeps there, in MiB; 256 hold about half a million requests."""
    bad_keys_per_min: int = Field(default=20, ge=1)
    """Wrong keys a minute from one address; what is tried beyond is answered 429."""
    trusted_proxies: tuple[str, ...] = ()
    """Addresses whose X-Forwarded-For is believed, such as a load balancer's."""
    held_answer_tokens: int = Field(default=1024, ge=1)
    """Most tokens of an answer that are held against a key's tokens a minute and its budget when
    its request is let in; what the answer takes beyond is charged when it ends."""
    max_waiting_per_key: int = Field(default=64, ge=1)
    """Requests of one key that may wait for an engine; more are refused with 429."""
    max_queued: int = Field(default=256, ge=0)
    """Requests for one model that wait while every replica is busy; more are refused with 429."""
    hold_s: float = Field(default=60.0, ge=0)
    """How long a request is held while no replica takes it."""
    notice_s: float = Field(default=5.0, ge=0)
    """How long a gateway that is taken away says so on /health (503) and answers on before it takes
    no more connections: what a load balancer needs to notice."""
    drain_s: float = Field(default=60.0, ge=0)
    """How long answers may take to end when the gateway is taken away."""
    otlp_endpoint: str | None = None
    """OpenTelemetry collector that traces are sent to, over HTTP: http://collector:4318. null: no
    traces."""
    cors_origins: tuple[str, ...] = ()
    """Web pages that browsers may ask from; none by default."""
