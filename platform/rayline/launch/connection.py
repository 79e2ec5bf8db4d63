"""The way to a cluster's dashboard: its address, and the token that opens it.

Ray lets RAY_API_SERVER_ADDRESS and RAY_ADDRESS override an address that is given; a job would
silently go to another cluster than the one named. Here the two may not differ.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from rayline.errors import SpecError
from rayline.launch.addresses import OVERRIDING, address_conflict, token_file
from rayline.launch.dashboard import Dashboard, closed, first_line, unreachable

USUAL = "http://127.0.0.1:8265"
"""Where Ray's dashboard listens unless it is told otherwise."""


def connect(address: str | None) -> Dashboard:
    """The dashboard at `address`, such as http://head:8265; None takes RAY_ADDRESS, or the cluster
    on this machine. Raises PlacementError where it cannot be reached or asks for a token, SpecError
    where the environment names another cluster."""
    conflict = address_conflict(address, os.environ)
    if conflict is not None:
        raise conflict
    named = next((os.environ[name] for name in OVERRIDING if os.environ.get(name)), address)
    is_url = named is not None and named.startswith(("http://", "https://"))
    url = named.rstrip("/") if named is not None and is_url else _found_by_ray(named)
    dashboard = Dashboard(url, auth_headers(os.environ))
    dashboard.ray_version()
    return dashboard


def auth_headers(environment: Mapping[str, str]) -> dict[str, str]:
    """The token's header, where RAY_AUTH_MODE asks for it; the token is looked for as Ray does."""
    if environment.get("RAY_AUTH_MODE", "").lower() != "token":
        return {}
    token = environment.get("RAY_AUTH_TOKEN", "").strip()
    if not token:
        try:
            token = token_file(environment).read_text(encoding="utf-8").strip()
        except OSError:
            return {}
    return {"Authorization": f"Bearer {token}"}


def _found_by_ray(address: str | None) -> str:
    """The dashboard of the cluster that Ray finds on this machine, or behind another kind of
    address than the dashboard's. Without Ray there is only the usual place to look at."""
    try:
        from ray.exceptions import AuthenticationError
        from ray.job_submission import JobSubmissionClient
    except ModuleNotFoundError:
        if address is None:
            return USUAL
        raise SpecError(
            "--address",
            "without Ray installed a cluster is only reached by its dashboard's address",
            value=address,
            allowed="http://HOST:PORT or https://HOST:PORT",
            fix=f"--address {USUAL}, or pip install 'rayline[train]'",
        ) from None
    try:
        return str(JobSubmissionClient(address).get_address())
    except AuthenticationError as wrong:
        raise closed(address, token_was_wrong="403" in str(wrong)) from None
    # Of requests, gRPC and Ray: whatever it is, there is no dashboard.
    except (OSError, RuntimeError, ValueError) as wrong:
        raise unreachable(address, first_line(wrong)) from None
