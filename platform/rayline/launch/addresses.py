"""Which cluster a command goes to, and the token that opens it: read from the environment."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from rayline.errors import SpecError

OVERRIDING = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
"""In Ray's order (ray.dashboard.utils.get_address_for_submission_client, Ray 2.60)."""


def address_conflict(address: str | None, environment: Mapping[str, str]) -> SpecError | None:
    """The error for an address that the environment would silently override."""
    name = next((name for name in OVERRIDING if environment.get(name)), None)
    if name is None or address is None or _place(address) == _place(environment[name]):
        return None
    return SpecError(
        name,
        f"this environment variable overrides the address {address}",
        value=environment[name],
        allowed="the same cluster, or unset",
        fix=f"unset {name}",
    )


def token_file(environment: Mapping[str, str]) -> Path:
    """Where Ray looks for the cluster's token."""
    return Path(
        environment.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token"
    ).expanduser()


def _place(address: str) -> str:
    parts = urlsplit(address if "://" in address else f"//{address}")
    host = "127.0.0.1" if parts.hostname == "localhost" else parts.hostname
    return f"{host}:{parts.port}"
