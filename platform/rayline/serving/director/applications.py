"""The Ray Serve application of a version: started, counted anew, looked at, taken away.

Serve 2.60 has three ways to give a running deployment another number of replicas.

- An AutoscalingPolicy of one's own runs in Serve's controller and sees what replicas push there
  (`record_autoscaling_stats`, every 10 s by default). Where no replica is nothing is pushed, so a
  model that has gone to zero never comes back.
- `run_many` with another `num_replicas`: it gives every deployment a new random code version, so
  all replicas are replaced, and 0 is refused.
- The external scaler: an application that is started with `external_scaler_enabled` takes a number,
  0 too, by POST /api/v1/applications/{app}/deployments/{deployment}/scale. It is a checkpointed
  target that the controller's next turn (0.4 s) works towards; no replica that stays is touched.

The last is used. Its route is the dashboard's, which need not run and asks for Ray's token, so the
controller is asked directly for what that route asks of it; it has no other name that is public.
tests/serving/test_rollout_live.py holds this.

Every function blocks, and raises what Ray raises where Serve does not answer.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from threading import Lock
from typing import Any, Literal

import ray
from ray import serve
from ray.serve._private.common import DeploymentID
from ray.serve.context import _get_global_client
from ray.serve.schema import ApplicationStatus, ApplicationStatusOverview

from rayline.errors import ServingError
from rayline.serving.director.blueprint import Blueprint
from rayline.serving.director.fleet import Served
from rayline.serving.director.served_model import AppState
from rayline.serving.replica.actor import Replica
from rayline.serving.settings import APP, PREFILL, REPLICA, replica_options

_GONE_TIMEOUT_S = 120.0
"""How long an application of the same name may take to go before another is started."""
_POLL_S = 0.5
_MORE = ("allowed:", "to do:")
"""How the further lines of a RaylineError begin."""
_ONE_AT_A_TIME = Lock()
"""To write or read a deployment's config, Serve has a module of its own pickled by value for a
moment, which fails where two threads do."""
_GOING = ("STOPPING", "STOPPED")
_STATES: Mapping[ApplicationStatus, Literal["failed", "up"]] = {
    ApplicationStatus.DEPLOY_FAILED: "failed",
    ApplicationStatus.UNHEALTHY: "failed",
    ApplicationStatus.RUNNING: "up",
}


def replica_application(blueprint: Blueprint, number: int, replicas: int) -> serve.Application:
    """The application of a version: `replicas` actors that each hold an engine, and where
    engine.split parts them those that compute prompts."""
    options = replica_options(blueprint.spec, blueprint.device)
    actor = options["ray_actor_options"]
    environment = _merged(blueprint.runtime_env, actor["runtime_env"])
    options |= {
        "num_replicas": replicas,
        "ray_actor_options": {**actor, "runtime_env": environment},
    }
    made_of = (
        blueprint.spec.model_dump(mode="json"),
        blueprint.device,
        served_as(blueprint, number),
    )
    answering = serve.deployment(**options)(Replica)
    split = blueprint.spec.engine.split
    if split is None:
        return answering.bind(*made_of)
    options |= {"name": PREFILL, "num_replicas": split.prefill_replicas}
    # An application is what its first deployment is bound to; they do not call each other.
    prefill = serve.deployment(**options)(Replica).bind(*made_of, "prefill")
    return answering.bind(*made_of, "decode", prefill)


def served_as(blueprint: Blueprint, number: int) -> Served:
    """What replicas and gateways call the version."""
    spec = blueprint.spec
    return Served(
        model=spec.name,
        version=number,
        max_model_len=spec.engine.max_model_len,
        revision=blueprint.revision,
        limits=spec.limits,
        created_s=blueprint.written_s,
        adapters=tuple(adapter.name for adapter in spec.engine.adapters),
        split_from=None if spec.engine.split is None else spec.engine.split.min_prompt_tokens,
    )


def start(app: str, blueprint: Blueprint, number: int, replicas: int) -> None:
    """Start the application, once one of the same name that is being taken away has gone. Returns
    before its replicas are up."""
    deadline_s = time.monotonic() + _GONE_TIMEOUT_S
    while app in _running():
        if time.monotonic() > deadline_s:
            raise ServingError(app, f"has not gone within {_GONE_TIMEOUT_S:g} s")
        time.sleep(_POLL_S)
    with _ONE_AT_A_TIME:
        run(app, replica_application(blueprint, number, replicas), scaled=True)


def run(app: str, application: serve.Application, *, scaled: bool = False) -> None:
    """Run an application that answers no HTTP through Serve; `scaled` where `scale` is to work."""
    target = serve.RunTarget(
        target=application, name=app, route_prefix=None, external_scaler_enabled=scaled
    )
    serve.run_many([target], wait_for_applications_running=False)


def scale(app: str, replicas: int) -> None:
    """Keep so many replicas from now on."""
    client: Any = _get_global_client()
    controller = client._controller
    ray.get(controller.update_deployment_replicas.remote(DeploymentID(REPLICA, app), replicas))


def stop(app: str) -> None:
    """Take the application away. Its replicas end what they have first; that is not waited for
    longer than a minute."""
    if app in _running():
        with contextlib.suppress(TimeoutError):
            serve.delete(app)


def states() -> dict[str, AppState]:
    """Every application of a version, by name; those that are going are gone."""
    return {
        name: _state(found)
        for name, found in _running().items()
        if name != APP and found.status != ApplicationStatus.DELETING
    }


def _running() -> dict[str, ApplicationStatusOverview]:
    with _ONE_AT_A_TIME:
        return serve.status().applications


def _state(found: ApplicationStatusOverview) -> AppState:
    deployment = found.deployments.get(REPLICA)
    counts = {} if deployment is None else deployment.replica_states
    return AppState(
        state=_STATES.get(found.status, "starting"),
        why=last_words(found),
        replicas=sum(count for state, count in counts.items() if state not in _GOING),
    )


def last_words(found: ApplicationStatusOverview) -> str:
    """Of what failed: the end of the replica's traceback, without the way there."""
    messages = [deployment.message for deployment in found.deployments.values()]
    text = "\n".join(message for message in [*messages, found.message] if message)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    for place, line in enumerate(lines):
        if line.startswith("rayline.errors."):
            more = [text for text in lines[place + 1 : place + 3] if text.startswith(_MORE)]
            return " ".join([line.partition(": ")[2], *more])
    return " ".join(lines[-3:])


def _merged(given: Mapping[str, Any] | None, own: Mapping[str, Any]) -> dict[str, Any]:
    """A runtime environment with our own variables in it."""
    variables = {**(given or {}).get("env_vars", {}), **own["env_vars"]}
    return {**(given or {}), **own, "env_vars": variables}
