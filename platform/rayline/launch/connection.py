"""Ray's dashboard, where jobs are submitted: reached, or a message that says why not.

Ray lets RAY_API_SERVER_ADDRESS and RAY_ADDRESS override an address that is given; a job would
silently go to another cluster than the one named. Here the two may not differ.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient

from rayline.errors import PlacementError, RaylineError
from rayline.launch.addresses import OVERRIDING, address_conflict, token_file


def connect(address: str | None) -> JobSubmissionClient:
    """A client of the dashboard at `address`, such as http://head:8265; None takes RAY_ADDRESS, or
    the cluster on this machine. Raises PlacementError where it cannot be reached or asks for a
    token, SpecError where the environment names another cluster."""
    conflict = address_conflict(address, os.environ)
    if conflict is not None:
        raise conflict
    with reaching(address):
        return JobSubmissionClient(address)


@contextmanager
def reaching(address: str | None) -> Iterator[None]:
    """Turn what a client raises into an error that names the cluster and the way to it."""
    shown = address or next((os.environ[name] for name in OVERRIDING if name in os.environ), None)
    try:
        yield
    except RaylineError:
        raise
    except AuthenticationError as wrong:
        raise PlacementError(
            "cluster",
            "it is protected by a token, and "
            + ("the token sent is wrong" if "403" in str(wrong) else "none was sent"),
            value=shown,
            fix="export RAY_AUTH_MODE=token, with the cluster's token in RAY_AUTH_TOKEN or in "
            f"{token_file(os.environ)} (mode 600)",
        ) from None
    except (ConnectionError, requests.exceptions.RequestException) as wrong:
        raise PlacementError(
            "cluster",
            f"its dashboard cannot be reached: {_first_line(wrong)}",
            value=shown,
            fix="check that the cluster runs and that the address is the dashboard's, such as "
            "http://127.0.0.1:8265 (`ray dashboard CLUSTER.yaml` forwards it)",
        ) from None
    except (RuntimeError, ValueError) as wrong:
        raise PlacementError(
            "cluster", f"its dashboard refused: {_first_line(wrong)}", value=shown
        ) from None


def _first_line(wrong: BaseException) -> str:
    lines = str(wrong).strip().splitlines()
    return lines[0][:300] if lines else type(wrong).__name__
