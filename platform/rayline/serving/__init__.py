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
    from rayline.serving.deployment import Endpoint, deploy, render, undeploy
    from rayline.serving.director.status import ModelStatus
    from rayline.serving.publishing import publish, withdraw
    from rayline.serving.versions import canary, promote, roll_back, served_names, status

_HOMES = {
    "Endpoint": "deployment",
    "ModelStatus": "director.status",
    "canary": "versions",
    "deploy": "deployment",
    "promote": "versions",
    "publish": "publishing",
    "render": "deployment",
    "roll_back": "versions",
    "served_names": "versions",
    "status": "versions",
    "undeploy": "deployment",
    "withdraw": "publishing",
}

__all__ = [
    "Endpoint",
    "ModelStatus",
    "canary",
    "deploy",
    "promote",
    "publish",
    "render",
    "roll_back",
    "served_names",
    "status",
    "undeploy",
    "withdraw",
]


def __getattr__(name: str) -> object:
    """Import Ray when the first of these names is asked for (PEP 562)."""
    if name in _HOMES:
        return getattr(import_module(f"rayline.serving.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
