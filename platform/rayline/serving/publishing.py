"""publish, withdraw: adapters of a model while it serves.

Called by the driver, on a joined cluster. No engine starts anew and no request fails: each replica
loads the adapter beside its reports, and is asked for it once it has.
"""

from __future__ import annotations

import contextlib
import time

from rayline.errors import RaylineError, ServingError
from rayline.planner import read_model_shape
from rayline.serving.adapters import check_publishable, pinned
from rayline.serving.versions import ask_about, ask_director, status
from rayline.spec import AdapterSpec, ServeSpec
from rayline.tracking import resolve_model

_POLL_S = 0.3


def publish(name: str, adapter: AdapterSpec) -> None:
    """Answer to `adapter`'s name too, and return once every replica does. One of that name is
    replaced. It stays until it is withdrawn or the model is deployed with another list.

    Raises SpecError for an adapter that is none of this model, or has no place; ServingError where
    the engine does not take it, which then is not published.
    """
    spec: ServeSpec = ask_about(name, "spec")
    before = {one.name: one for one in spec.engine.adapters}
    check_publishable(adapter, name, spec.engine, before)
    ask_about(name, "publish", checked(adapter, spec))
    try:
        wait_for_adapters(name, spec.ready_timeout_s)
    except ServingError:
        with contextlib.suppress(RaylineError):
            if adapter.name in before:
                ask_about(name, "publish", before[adapter.name])
            else:
                ask_about(name, "withdraw", adapter.name)
        raise


def withdraw(name: str, adapter: str) -> None:
    """Answer no new request to the name of an adapter; gateways hear of it within half a second,
    and requests under way end as they began. Raises SpecError where there is no such adapter."""
    ask_about(name, "withdraw", adapter)


def checked(adapter: AdapterSpec, spec: ServeSpec) -> AdapterSpec:
    """`adapter` with the hash of what was found to be one of the model of `spec`. What is rehearsed
    is not opened, and a model on a hub is looked at where it is served. Raises SpecError."""
    if spec.rehearsal is not None or spec.model.hub is not None:
        return adapter
    folder = resolve_model(spec.model, spec.tracking, need_weights=False)
    return pinned(adapter, read_model_shape(folder), spec.engine, spec.tracking)


def wait_for_adapters(name: str, timeout_s: float, number: int | None = None) -> None:
    """Until every replica that is up answers with what is published with its version, and every
    gateway knows; of version `number` alone where that is given. Raises ServingError with the
    reason where one does not load."""
    deadline_s = time.monotonic() + timeout_s
    while True:
        known = status(name)
        live = (known.stable, known.canary) if number is None else (number,)
        missing = [
            (one, version)
            for version in known.versions
            if version.number in live
            for one in version.adapters
            if one.up < version.up or (one.up and not ask_director("is_told", one.name))
        ]
        for one, _ in missing:
            if one.reason:
                raise ServingError(f"adapter {one.name}", one.reason)
        if not missing:
            return
        if time.monotonic() > deadline_s:
            one, version = missing[0]
            raise ServingError(
                f"adapter {one.name}",
                f"{one.up} of {version.up} replicas have loaded it within {timeout_s:g} s",
            )
        time.sleep(_POLL_S)
