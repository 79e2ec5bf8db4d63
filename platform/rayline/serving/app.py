"""The Serve applications: one that stands before every model, and one a version of a model.

`rayline.serving.app:build_front` and `rayline.serving.app:build` are the import paths that `serve
deploy` files and KubeRay's serveConfigV2 name; their arguments are a GatewaySpec and a ServeSpec as
trees. What such a file deploys is one version that stays: shares, rollbacks and scaling are for
what `deploy` brings.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import ray
from ray import serve

from rayline.serving.adapters import with_adapters, without_adapters
from rayline.serving.director.actor import Director
from rayline.serving.director.applications import replica_application
from rayline.serving.director.blueprint import Blueprint
from rayline.serving.gateway.actor import Gateway
from rayline.serving.publishing import checked
from rayline.serving.requests import Tree
from rayline.serving.rollout.questions import read_questions
from rayline.serving.rollout.version import Asked, Registered
from rayline.serving.settings import director_options, gateway_options
from rayline.spec import Device, EngineSpec, GatewaySpec, ModelRef, ServeSpec, TrackingSpec
from rayline.tracking import anchored, registered_version, resolve_model

IMPORT_PATH = "rayline.serving.app:build"
FRONT_IMPORT_PATH = "rayline.serving.app:build_front"
_AROUND = ("gateway", "scale", "rollout", "tracking", "ready_timeout_s")
"""Fields of a ServeSpec that replicas are not made of: to change them replaces nothing."""


def build_front(args: Tree) -> serve.Application:
    """The gateway and the director. `args` is a GatewaySpec as a tree."""
    spec = GatewaySpec.parse(args)
    director = serve.deployment(**director_options())(Director).bind(spec)
    return serve.deployment(**gateway_options(spec))(Gateway).bind(spec, director)


def build(args: Tree) -> serve.Application:
    """The replicas of the model that `args`, a ServeSpec as a tree, describes.

    Called by Serve with the arguments of a config file. Raises SpecError for a wrong spec and a
    model that cannot be used.
    """
    blueprint = draw(ServeSpec.parse(args))
    return replica_application(blueprint, 1, max(1, blueprint.spec.scale.min_replicas))


def draw(spec: ServeSpec) -> Blueprint:
    """All that a version of this spec is made of, with its model pinned.

    Called by the driver, which has joined Ray. Raises SpecError for a model or an evaluation set
    that cannot be used, or CheckpointError where a file differs from its hash.
    """
    fixed = pin(spec)
    folder = _folder(fixed)
    evaluation = spec.rollout.evaluation
    environment: Any = ray.get_runtime_context().runtime_env
    return Blueprint(
        spec=fixed.model_copy(update={"tracking": anchored(spec.tracking)}),
        device=device_for(spec),
        revision=revision(fixed),
        written_s=0 if folder is None else int(folder.stat().st_mtime),
        runtime_env=dict(environment) or None,
        questions=() if evaluation is None else read_questions(evaluation),
    )


def asked(spec: ServeSpec, blueprint: Blueprint) -> Asked:
    """What the deployment asks for, with the model's place in the registry. Called by the driver.
    Raises SpecError where the registry has no such model."""
    registered = None
    if spec.model.registry is not None and spec.rehearsal is None:
        found = registered_version(spec.model, spec.tracking)
        alias = spec.rollout.alias or found.alias
        registered = Registered(found.name, found.version, alias, found.run_id)
    return Asked(blueprint.revision, str(spec.model), registered)


def pin(spec: ServeSpec) -> ServeSpec:
    """The spec with its models and adapters fixed: an alias that moves later must not give the
    replicas that are started later another model. Every node has to see the folder.

    A hub id stays one; each node fetches it for itself. What is rehearsed is not opened. Raises
    SpecError, or CheckpointError where a file differs from its hash.
    """
    if spec.model.hub is not None or spec.rehearsal is not None:
        return spec
    folder = resolve_model(spec.model, spec.tracking)
    fixed = spec.model_copy(
        update={
            "model": ModelRef(directory=str(folder)),
            "engine": _with_fixed_draft(spec.engine, spec.tracking),
        }
    )
    adapters = tuple(checked(adapter, fixed) for adapter in spec.engine.adapters)
    return with_adapters(fixed, adapters)


def _with_fixed_draft(engine: EngineSpec, tracking: TrackingSpec) -> EngineSpec:
    guessing = engine.speculation
    if guessing is None or guessing.model is None or guessing.model.hub is not None:
        return engine
    model = ModelRef(directory=str(resolve_model(guessing.model, tracking)))
    fixed = guessing.model_copy(update={"model": model})
    return engine.model_copy(update={"speculation": fixed})


def revision(fixed: ServeSpec) -> str:
    """Equal for deployments whose replicas are the same: the spec without what is around them or
    changes while they serve, and the model's files by name, size and time of change."""
    fields = ServeSpec.model_fields
    plain = {name: fields[name].get_default(call_default_factory=True) for name in _AROUND}
    # Not checked again: what is around them need not go with the rest.
    alone = without_adapters(fixed).model_copy(update=plain)
    seen = hashlib.sha256(alone.fingerprint().encode())
    folder = _folder(fixed)
    if folder is not None:
        for file in sorted(folder.iterdir()):
            found = file.stat()
            seen.update(f"{file.name} {found.st_size} {found.st_mtime_ns}\n".encode())
    return seen.hexdigest()[:16]


def _folder(fixed: ServeSpec) -> Path | None:
    """Where a pinned spec's model lies; None for one on a hub, and for one that is rehearsed."""
    if fixed.model.directory is None or fixed.rehearsal is not None:
        return None
    return Path(fixed.model.directory)


def device_for(spec: ServeSpec) -> Device:
    """What the engines run on: as the spec says, or GPUs where the cluster has any."""
    if spec.device != "auto":
        return spec.device
    return "gpu" if ray.cluster_resources().get("GPU", 0) > 0 else "cpu"
