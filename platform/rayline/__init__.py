"""rayline: one line from a training spec to a served model, on Ray.

The names below are the notebook's whole vocabulary. They are imported on first use, so that
`import rayline` costs milliseconds and a thin client needs neither torch nor Ray.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rayline.sdk import AsyncClient as AsyncClient
    from rayline.sdk import Client as Client
    from rayline.spec import JobSpec as JobSpec
    from rayline.spec import ModelRef as ModelRef
    from rayline.spec import ParallelPlan as ParallelPlan
    from rayline.spec import ServeSpec as ServeSpec
    from rayline.spec import TuneSpec as TuneSpec

__version__ = "0.1.0"

_HOME = {
    "AsyncClient": "rayline.sdk",
    "Client": "rayline.sdk",
    "JobSpec": "rayline.spec",
    "ModelRef": "rayline.spec",
    "ParallelPlan": "rayline.spec",
    "ServeSpec": "rayline.spec",
    "TuneSpec": "rayline.spec",
}
__all__ = [
    "AsyncClient",
    "Client",
    "JobSpec",
    "ModelRef",
    "ParallelPlan",
    "ServeSpec",
    "TuneSpec",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'rayline' has no attribute {name!r}")
