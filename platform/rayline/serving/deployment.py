"""deploy, undeploy, render: one ServeSpec on a Ray cluster.

`deploy` refuses first what cannot work (model, port, room), then starts Serve, the gateway and the
director where they do not run, hands the version to the director, and returns when it answers. What
it started and could not finish, it ends.
"""

from __future__ import annotations

import contextlib
import logging
import time
from dataclasses import dataclass

import httpx
import ray
from ray import serve
from ray.serve.config import ProxyLocation
from ray.serve.exceptions import RayServeException

from rayline.errors import RaylineError, ServingError
from rayline.serving.access.store import anchored
from rayline.serving.app import FRONT_IMPORT_PATH, IMPORT_PATH, asked, build_front, draw
from rayline.serving.director import applications
from rayline.serving.director.blueprint import Blueprint
from rayline.serving.director.status import ModelStatus, VersionStatus
from rayline.serving.preflight import check_cache, check_port
from rayline.serving.publishing import wait_for_adapters
from rayline.serving.requests import Tree
from rayline.serving.rollout.version import is_app_of
from rayline.serving.room import replicas_watch, reserve_room
from rayline.serving.settings import APP, CONTROLLER_ENVIRONMENT
from rayline.serving.versions import ask_director, front, status
from rayline.spec import GatewaySpec, ServeSpec
from rayline.spec.rollout import WHOLE_PERCENT

POLL_S = 0.5
_EVERY_INTERFACE = ("0.0.0.0", "::")  # noqa: S104 - compared, not bound
_HEAD_RESOURCE = "node:__internal_head__"
_GONE_TIMEOUT_S = 120.0
"""How long a model may take to go, beside what its answers may take to end."""
_GATEWAY_TIMEOUT_S = 60.0
"""How long a gateway may take to answer once the version is up."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a deployment answers."""

    name: str
    """Name of the deployment."""
    url: str
    """Base URL for OpenAI clients, up to and with /v1."""
    model: str
    """The model id that clients send."""
    version: int
    """The version that was deployed, from 1."""


def deploy(spec: ServeSpec, *, address: str | None = None) -> Endpoint:
    """Serve a model and return when it has generated a token.

    Called by the driver; `address` is the Ray cluster to join where this process has joined none
    (None starts one here). Deploying an equal spec again changes nothing; what differs only in how
    it is scaled and rolled out, or in its adapters, changes that at once. Otherwise a new version
    comes up beside the one that serves and takes over as `rollout` says: this returns once it is
    the stable one or, where it is watched on its way there, once it has its first share.

    Raises SpecError or CheckpointError for the model, PlacementError for room, ServingError for the
    port, for another version that is taking over, and for an engine that does not come up, with its
    own last words; what served before then goes on.
    """
    _join(address)
    blueprint = draw(spec)
    wanted = asked(spec, blueprint)
    found = front()
    known = None if found is None else _known(spec.name)
    if _on_head():
        own = None if found is None else (found.host, found.port)
        check_port(spec.gateway.host, spec.gateway.port, own)
    if known is None or blueprint.revision not in _revisions(known):
        _check_room(blueprint, update=known is not None)
    number = None
    try:
        if found is None:
            _start_front(spec.gateway)
        number = ask_director("begin", wanted, blueprint)
        _wait_until_up(blueprint, number)
        wait_for_adapters(spec.name, spec.ready_timeout_s, number)
        return Endpoint(spec.name, _url(spec), spec.name, number)
    except BaseException:
        with contextlib.suppress(RayServeException, RaylineError):
            _take_back(spec.name, number, with_serve=found is None)
        raise


def undeploy(name: str) -> None:
    """Take a deployment away once its open streams have finished, or drain_s has passed; Serve goes
    with the last one. Called by the driver, on a joined cluster. Raises ServingError where there is
    none of that name, and where it does not go."""
    served = [] if front() is None else ask_director("models")
    if name not in served:
        raise ServingError(
            "name",
            "no such deployment on this cluster",
            value=name,
            allowed=", ".join(served) or "none is deployed",
        )
    ask_director("stop", name)
    drain_s: float = ask_director("drain_s", name)
    deadline_s = time.monotonic() + drain_s + _GONE_TIMEOUT_S
    while name in ask_director("models") or _applications_of(name):
        if time.monotonic() > deadline_s:
            raise ServingError(name, f"has not gone within {drain_s + _GONE_TIMEOUT_S:g} s")
        time.sleep(POLL_S)
    _end_serve_with_the_last()


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


def _start_front(gateway: GatewaySpec) -> None:
    """Serve, the director and the gateways."""
    serve.start(
        proxy_location=ProxyLocation.Disabled,
        controller_options={"runtime_env": {"env_vars": CONTROLLER_ENVIRONMENT}},
    )
    spec = gateway.model_copy(update={"store": anchored(gateway.store)})
    applications.run(APP, build_front(spec.model_dump(mode="json")))


def _head() -> Tree:
    """Ray's description of the head node, which the first gateway runs on."""
    return next(node for node in ray.nodes() if _HEAD_RESOURCE in node["Resources"])


def _on_head() -> bool:
    """Whether this process runs on the head node, and so can try its ports."""
    return bool(ray.get_runtime_context().get_node_id() == _head()["NodeID"])


def _known(name: str) -> ModelStatus | None:
    """The model as it is served now; None where it is not."""
    return status(name) if name in ask_director("models") else None


def _revisions(known: ModelStatus) -> list[str]:
    """Of the versions that serve or are about to."""
    return [one.revision for one in known.versions if one.number in (known.stable, known.canary)]


def _check_room(blueprint: Blueprint, *, update: bool) -> None:
    spec = blueprint.spec
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    check_cache(spec, blueprint.device, nodes)
    split = spec.engine.split
    prefill = 0 if split is None else split.prefill_replicas
    least = max(1, spec.scale.min_replicas)
    # An update starts one replica before it stops one.
    now = prefill + (1 if update else least)
    reserve_room(spec, blueprint.device, prefill + least, now)


def _wait_until_up(blueprint: Blueprint, number: int) -> None:
    """Until the version answers, with all or with its first share. Raises ServingError with the
    reason where it does not come up; the director gives it up after ready_timeout_s."""
    spec = blueprint.spec
    say_why_it_waits = replicas_watch(spec, blueprint.device)
    while True:
        known = status(spec.name)
        version = known.version(number)
        if version.state in ("failed", "stopped", "draining"):
            raise ServingError(
                spec.name, f"version {number} did not come up. {version.reason}".rstrip()
            )
        if _has_arrived(known, version, blueprint):
            break
        say_why_it_waits()
        time.sleep(POLL_S)
    _wait_for_gateway(spec)


def _has_arrived(known: ModelStatus, version: VersionStatus, blueprint: Blueprint) -> bool:
    if version.number == known.stable:
        # Of a model that has gone to zero nothing is up, and it answers.
        return version.up > 0 or version.wanted == 0
    rollout = blueprint.spec.rollout
    watched = rollout.bake_s > 0 or rollout.steps[0] < WHOLE_PERCENT
    if rollout.shadow_percent > 0 or rollout.evaluation is not None:
        return version.state in ("ready", "serving")
    return watched and version.state == "serving"


def _wait_for_gateway(spec: ServeSpec) -> None:
    """Until every gateway knows it, and one answers."""
    url = _url(spec).removesuffix("/v1") + "/health"
    deadline_s = time.monotonic() + _GATEWAY_TIMEOUT_S
    while True:
        with contextlib.suppress(httpx.HTTPError):
            # Whatever it says: of a model that has gone to zero no replica is up.
            httpx.get(url, timeout=5)
            if ask_director("is_told", spec.name):
                return
        if time.monotonic() > deadline_s:
            raise ServingError("gateway", "does not answer", value=url)
        time.sleep(POLL_S / 5)


def _url(spec: ServeSpec) -> str:
    everywhere = spec.gateway.host in _EVERY_INTERFACE
    host = str(_head()["NodeManagerAddress"]) if everywhere else spec.gateway.host
    return f"http://{host}:{spec.gateway.port}/v1"


def _take_back(name: str, number: int | None, *, with_serve: bool) -> None:
    """End what a deployment that failed, or was interrupted, has started. A version before it goes
    on."""
    if number is not None:
        known = status(name)
        if known.canary == number:
            ask_director("roll_back", name, None, "its deployment was given up")
    if with_serve:
        serve.shutdown()


def _applications_of(name: str) -> list[str]:
    """Of the versions of a model, those that Serve has not taken away yet."""
    return [app for app in serve.status().applications if is_app_of(name, app)]


def _end_serve_with_the_last() -> None:
    if set(serve.status().applications) <= {APP}:
        serve.shutdown()
