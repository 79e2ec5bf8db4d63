"""From a ModelRef to an OpenAI-compatible address: Ray Serve, vLLM, and a gateway of our own.

One request, hop by hop:

    client --HTTP--> gateway/ --one socket a replica--> replica/ --> vLLM's engine client

- requests/ says what may be asked, and what a refusal looks like: pure functions of the body.
- access/ says who may ask and how much: keys, quotas, the usage ledger, the database under them.
- gateway/ holds the client's connection. It checks the request (requests/, access/), chooses a
  version and a replica (rollout/, gateway/choosing.py), passes pieces on unparsed, and goes on with
  another replica where one is lost.
- wire/ is that one socket: frames, many requests at once, all that one engine step made in one
  write. Neither Ray nor Serve's proxy lies on a request's way.
- replica/ is the other end: a Ray Serve deployment whose actor holds vLLM's engine client.
- director/ is one small Serve deployment that knows which replicas are up, deals out quota to the
  gateways, and carries out what rollout/ (weights, gates, versions) and scaling/ decide.

What is decided is a value from a pure function (requests/, access/quota, rollout/, scaling/,
settings.py, preflight.py); the rest carries it out.

Importing this room imports neither Ray nor vLLM: client.py must work where neither is installed.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rayline.serving.deployment import (
        DeploymentState,
        Endpoint,
        deploy,
        render,
        status,
        undeploy,
    )

_ROOM = "rayline.serving.deployment"

__all__ = ["DeploymentState", "Endpoint", "deploy", "render", "status", "undeploy"]


def __getattr__(name: str) -> object:
    """Import Ray when the first of these names is asked for (PEP 562)."""
    if name in __all__:
        return getattr(import_module(_ROOM), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
