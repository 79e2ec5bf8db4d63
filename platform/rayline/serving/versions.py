"""canary, promote, roll_back, status: what a person says about the versions of a served model.

Each asks the cluster's director. Called by the driver, on a joined cluster.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ray import serve
from ray.exceptions import RayActorError, RayTaskError
from ray.serve.handle import DeploymentHandle

from rayline.errors import RaylineError, ServingError
from rayline.serving.director.status import ModelStatus
from rayline.serving.settings import APP, DIRECTOR
from rayline.spec import GatewaySpec

DIRECTOR_TIMEOUT_S = 60.0
"""How long to wait for the director, which may be starting."""
_AGAIN_S = 0.5
_NOT_TWICE = ("roll_back",)
"""Said twice, it would go back by two versions."""


def canary(name: str, percent: float) -> None:
    """Give the version that takes over this share of the requests, 0 to 100, and keep it there. A
    lower share holds within a second, a higher one once its replicas can carry it; a broken gate
    still rolls it back. Raises ServingError where no version is taking over."""
    if not 0 <= percent <= 100:
        raise ServingError("percent", "no share", value=percent, allowed="0 to 100")
    ask_about(name, "aim", percent)


def promote(name: str) -> None:
    """Give everything to the version that takes over, as soon as its replicas can carry it,
    whatever the gates say. Raises ServingError where no version is taking over."""
    ask_about(name, "promote")


def roll_back(name: str, *, to: int | None = None) -> None:
    """Go back: from a version that takes over to the stable one, else from the stable one to the
    one before it, or to `to`. One that is up has everything within a second; one that was stopped
    starts first, and what serves goes on until it is up. Raises ServingError where there is
    none."""
    ask_about(name, "roll_back", to, "asked for")


def status(name: str) -> ModelStatus:
    """How a model is doing, and why. Raises ServingError where it was never deployed here."""
    found: ModelStatus = ask_about(name, "status")
    return found


def served_names() -> list[str]:
    """The models of this cluster, by name; none where nothing is served."""
    if APP not in serve.status().applications:
        return []
    found: list[str] = ask_director("models")
    return found


def front() -> GatewaySpec | None:
    """What stands before the cluster's models, None where nothing is served."""
    if APP not in serve.status().applications:
        return None
    found: GatewaySpec = ask_director("gateway")
    return found


def ask_director(method: str, *arguments: object) -> Any:
    """What the director answers. Raises what it raises, and ServingError where it does not answer.
    Where it dies meanwhile, the next one is asked; only what would do more the second time is
    not."""
    handle = serve.get_deployment_handle(DIRECTOR, APP)
    deadline_s = time.monotonic() + DIRECTOR_TIMEOUT_S
    while True:
        left_s = max(1.0, deadline_s - time.monotonic())
        try:
            return _answer(handle, method, arguments, left_s)
        except RayTaskError as wrong:
            if isinstance(wrong.cause, RaylineError):
                raise wrong.cause from None
            raise
        except (TimeoutError, RayActorError) as wrong:
            died = isinstance(wrong, RayActorError)
            if died and method not in _NOT_TWICE and time.monotonic() < deadline_s:
                time.sleep(_AGAIN_S)
                continue
            raise ServingError(
                "director",
                "has died" if died else f"has not answered within {DIRECTOR_TIMEOUT_S:g} s",
                fix="see its log in the Ray dashboard",
            ) from None


def ask_about(name: str, method: str, *arguments: object) -> Any:
    """The same of one deployment, where anything is served at all."""
    if APP not in serve.status().applications:
        raise ServingError(
            "name",
            "no such deployment on this cluster",
            value=name,
            allowed="none is deployed",
            fix="rayline deploy serve/chat.yaml",
        )
    return ask_director(method, name, *arguments)


def _answer(
    handle: DeploymentHandle[Any], method: str, arguments: tuple[object, ...], timeout_s: float
) -> object:
    """Asked by a thread of its own: a notebook's cells run within an event loop, and there Serve
    refuses to wait."""

    def ask() -> object:
        return getattr(handle, method).remote(*arguments).result(timeout_s=timeout_s)

    with ThreadPoolExecutor(max_workers=1) as waiting:
        return waiting.submit(ask).result()
