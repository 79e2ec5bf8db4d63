"""ConsoleSettings: what a console looks at, where it is reached, what may be done through it."""

from __future__ import annotations

from dataclasses import dataclass, field

from rayline.sdk import DEFAULT_URL
from rayline.spec import TrackingSpec


@dataclass(frozen=True, slots=True)
class ConsoleSettings:
    """One console. What is None is not looked at, or is the command line's default."""

    tracking: TrackingSpec = field(default_factory=TrackingSpec)
    """Where runs and models are recorded."""
    store: str | None = None
    """Database of the gateway's keys and usage (GatewaySpec.store)."""
    url: str = DEFAULT_URL
    """Of the gateway, up to /v1: where the playground asks."""
    address: str | None = None
    """Ray cluster to join: auto, or host:port. Without one, deployments and jobs are not shown."""
    jobs_url: str | None = None
    """Ray's dashboard, where jobs are listed and stopped."""
    allow_changes: bool = False
    """Whether the console's own key may do more than look; an operator's API key always may."""
    host: str = "127.0.0.1"
    """Address that it listens on."""
    port: int = 0
    """TCP port; 0 takes a free one."""
    names: tuple[str, ...] = ()
    """Names, beside localhost and plain addresses, under which browsers may reach it."""
