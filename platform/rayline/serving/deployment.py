"""deploy, undeploy, status, render: one ServeSpec on a Ray cluster.

`deploy` refuses first what cannot work (model, port, room), then starts Serve and the application,
and returns when a token has come back over HTTP. What it started and could not finish, it ends.
"""

from __future__ import annotations

import contextlib
import logging
import time
from dataclasses import dataclass

import ray
from ray import serve
from ray.serve.config import ProxyLocation
from ray.serve.exceptions import RayServeException
from ray.serve.schema import ApplicationStatus, ApplicationStatusOverview

from rayline.errors import PlacementError, RaylineError, ServingError
from rayline.serving import client
from rayline.serving.app import (
    FRONT_IMPORT_PATH,
    IMPORT_PATH,
    build,
    build_front,
    device_for,
    fingerprint,
    pin,
)
from rayline.serving.preflight import check_cache, check_port, check_room, missing_now
from rayline.serving.requests import Tree
from rayline.serving.settings import APP, CONTROLLER_ENVIRONMENT, DIRECTOR, REPLICA, replica_bundles
from rayline.spec import GatewaySpec, ServeSpec

FREE_WAIT_S = 8.0
"""How long to wait for resources that something else is about to give back, such as a job that
has just ended."""
FRONT_TIMEOUT_S = 30.0
"""How long to wait for the director, which may be starting."""
POLL_S = 0.5
_EVERY_INTERFACE = ("0.0.0.0", "::")  # noqa: S104 - compared, not bound
_HEAD_RESOURCE = "node:__internal_head__"
_MORE = ("allowed:", "to do:")
"""How the further lines of a RaylineError begin."""
_NODE_GROUP_LABEL = "ray.io/node-group"
"""Ray gives it to nodes that an autoscaler started."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a deployment answers."""

    name: str
    """Name of the deployment."""
    url: str
    """Base URL for OpenAI clients, up to and with /v1."""
    model: str
    """The model id that clients send."""


@dataclass(frozen=True, slots=True)
class DeploymentState:
    """How a deployment is doing."""

    name: str
    status: str
    """Serve's word: DEPLOYING, RUNNING, UNHEALTHY, DEPLOY_FAILED, DELETING."""
    message: str
    """What is wrong, where something is."""
    replicas: int
    """Engines that are up."""


def deploy(spec: ServeSpec, *, address: str | None = None) -> Endpoint:
    """Serve a model and return when it has generated a token.

    Called by the driver; `address` is the Ray cluster to join where this process has joined none
    (None starts one here). Deploying an equal spec again changes nothing; a changed one replaces
    the replicas one after another while the old ones serve.

    Raises SpecError or CheckpointError for the model, PlacementError for room, ServingError for the
    port and for an engine that does not come up, with its own last words.
    """
    _join(address)
    pinned = pin(spec)
    front = _front()
    present = front is not None and spec.name in _models()
    if present and _is_deployed(pinned):
        return _when_ready(spec)
    if _on_head():
        own = None if front is None else (front.host, front.port)
        check_port(spec.gateway.host, spec.gateway.port, own)
    _check_room(pinned, update=present)
    try:
        _run(pinned)
        return _when_ready(spec)
    except BaseException:
        # An update that failed leaves the version before it in place, which goes on serving.
        if not present:
            _take_back(spec.name, with_serve=front is None)
        raise


def undeploy(name: str) -> None:
    """Take a deployment away once its open streams have finished, or drain_s has passed; Serve goes
    with the last one. Called by the driver, on a joined cluster. Raises ServingError where there is
    none of that name."""
    _application(name)
    serve.delete(name)
    if set(serve.status().applications) <= {APP}:
        serve.shutdown()


def status(name: str) -> DeploymentState:
    """How the deployment `name` is doing. Called by the driver, on a joined cluster. Raises
    ServingError where there is none of that name."""
    found = _application(name)
    replicas = found.deployments.get(REPLICA)
    states = {} if replicas is None else replicas.replica_states
    return DeploymentState(
        name=name,
        status=found.status.value,
        message=_why(found),
        replicas=sum(count for state, count in states.items() if state == "RUNNING"),
    )


def render(spec: ServeSpec) -> Tree:
    """The spec as Ray Serve's own config file: for `serve deploy`, and for KubeRay's serveConfigV2
    (where gateway.host has to be 0.0.0.0). Needs no cluster."""
    parts = (
        (APP, FRONT_IMPORT_PATH, spec.gateway.model_dump(mode="json")),
        (spec.name, IMPORT_PATH, spec.model_dump(mode="json")),
    )
    return {
        # The gateway answers HTTP itself.
        "proxy_location": ProxyLocation.Disabled.value,
        "applications": [
            {"name": name, "route_prefix": None, "import_path": path, "args": args}
            for name, path, args in parts
        ],
    }


def _join(address: str | None) -> None:
    # Its INFO lines tell the story of a deployment a second time.
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    if not ray.is_initialized():
        ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)


def _run(pinned: ServeSpec) -> None:
    serve.start(
        proxy_location=ProxyLocation.Disabled,
        controller_options={"runtime_env": {"env_vars": CONTROLLER_ENVIRONMENT}},
    )
    if APP not in serve.status().applications:
        _run_application(APP, build_front(pinned.gateway.model_dump(mode="json")))
    _run_application(pinned.name, build(pinned.model_dump(mode="json")))


def _run_application(name: str, application: serve.Application) -> None:
    target = serve.RunTarget(target=application, name=name, route_prefix=None)
    serve.run_many([target], wait_for_applications_running=False)


def _head() -> Tree:
    """Ray's description of the head node, where Serve's first proxy listens."""
    return next(node for node in ray.nodes() if _HEAD_RESOURCE in node["Resources"])


def _on_head() -> bool:
    """Whether this process runs on the head node, and so can try its ports."""
    return bool(ray.get_runtime_context().get_node_id() == _head()["NodeID"])


def _front() -> GatewaySpec | None:
    """What stands before the cluster's models, None where nothing is served."""
    if APP not in serve.status().applications:
        return None
    director = serve.get_deployment_handle(DIRECTOR, APP)
    found: GatewaySpec = director.gateway.remote().result(timeout_s=FRONT_TIMEOUT_S)
    return found


def _application(name: str) -> ApplicationStatusOverview:
    running = {} if _front() is None else _models()
    if name not in running:
        raise ServingError(
            "name",
            "no such deployment on this cluster",
            value=name,
            allowed=", ".join(running) or "none is deployed",
        )
    return running[name]


def _models() -> dict[str, ApplicationStatusOverview]:
    """The applications that are models."""
    return {name: one for name, one in serve.status().applications.items() if name != APP}


def _is_deployed(pinned: ServeSpec) -> bool:
    """Whether just this is up or coming up. One that failed is made anew."""
    if _application(pinned.name).status not in (
        ApplicationStatus.RUNNING,
        ApplicationStatus.DEPLOYING,
    ):
        return False
    # The gateway says which revision it is as soon as it is up, long before the engine.
    with contextlib.suppress(ServingError):
        cards = client.model_cards(_url(pinned))
        return fingerprint(pinned) in [card.get("revision") for card in cards]
    return False


def _check_room(spec: ServeSpec, *, update: bool) -> None:
    nodes = [node for node in ray.nodes() if node["Alive"]]
    check_cache(spec, device_for(spec), [node["Resources"] for node in nodes])
    if any(node.get("Labels", {}).get(_NODE_GROUP_LABEL) for node in nodes):
        # The cluster grows: what no node holds now, one may hold soon.
        return
    bundles = replica_bundles(spec, device_for(spec))
    check_room(bundles, spec.scale.min_replicas, [node["Resources"] for node in nodes])
    # An update starts one replica before it stops one.
    wanted = 1 if update else spec.scale.min_replicas
    deadline_s = time.monotonic() + FREE_WAIT_S
    while short := missing_now(bundles, wanted, ray.available_resources()):
        if time.monotonic() > deadline_s:
            raise PlacementError(
                "cpus_per_replica" if spec.device != "gpu" else "engine.tensor_parallel_size",
                f"something else holds the cluster's resources: {short}",
                value=spec.name,
                fix="end what runs there (ray status shows it), or lower what a replica takes",
            )
        time.sleep(POLL_S)


def _when_ready(spec: ServeSpec) -> Endpoint:
    """The endpoint, once a token has come out of it. Raises ServingError with the reason where
    none has within ready_timeout_s."""
    deadline_s = time.monotonic() + spec.ready_timeout_s
    endpoint = Endpoint(name=spec.name, url=_url(spec), model=spec.name)
    while True:
        found = _application(spec.name)
        reason = _why(found)
        if found.status == ApplicationStatus.DEPLOY_FAILED:
            raise ServingError(spec.name, f"did not come up. {reason}")
        left_s = deadline_s - time.monotonic()
        if found.status == ApplicationStatus.RUNNING:
            # Serve's proxy hears of a new route a moment after the application runs.
            try:
                client.complete(
                    endpoint.url, spec.name, "Hello", max_tokens=1, timeout_s=max(1.0, left_s)
                )
                return endpoint
            except ServingError as wrong:
                reason = wrong.problem
        if left_s <= 0:
            raise ServingError(
                "ready_timeout_s",
                f"it is {found.status.value} and has generated no token yet. {reason}".rstrip(),
                value=spec.ready_timeout_s,
                fix="raise it, or see the replica's log in the Ray dashboard",
            )
        time.sleep(POLL_S)


def _url(spec: ServeSpec) -> str:
    everywhere = spec.gateway.host in _EVERY_INTERFACE
    host = str(_head()["NodeManagerAddress"]) if everywhere else spec.gateway.host
    return f"http://{host}:{spec.gateway.port}/v1"


def _why(found: ApplicationStatusOverview) -> str:
    """The last words of what failed: the end of the replica's traceback, without the way there."""
    messages = [deployment.message for deployment in found.deployments.values()]
    text = "\n".join(message for message in [*messages, found.message] if message)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    for place, line in enumerate(lines):
        if line.startswith("rayline.errors."):
            more = [text for text in lines[place + 1 : place + 3] if text.startswith(_MORE)]
            return " ".join([line.partition(": ")[2], *more])
    return " ".join(lines[-3:])


def _take_back(name: str, *, with_serve: bool) -> None:
    """End what a deployment that failed has started."""
    with contextlib.suppress(RayServeException, RaylineError):
        serve.delete(name)
        if with_serve:
            serve.shutdown()
