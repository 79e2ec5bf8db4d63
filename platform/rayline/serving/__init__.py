"""From a ModelRef to an OpenAI-compatible address: Ray Serve, vLLM, and a gateway of our own.

A request goes client, Serve's HTTP proxy, gateway.py (shapes and limits), replica.py (the vLLM
engine), and back as it is generated. `deploy` brings that up and returns once a token has come out.
What is decided stands in settings.py and preflight.py as plain values; the rest carries it out.

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
