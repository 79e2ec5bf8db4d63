"""The Serve applications: one that stands before every model, and one a version of a model.

`rayline.serving.app:build_front` and `rayline.serving.app:build` are the import paths that `serve
deploy` files and KubeRay's serveConfigV2 name; their arguments are a GatewaySpec and a ServeSpec as
trees.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import ray
from ray import serve

from rayline.serving.director.actor import Director
from rayline.serving.director.fleet import Served
from rayline.serving.gateway.actor import Gateway
from rayline.serving.replica.actor import Replica
from rayline.serving.requests import Tree
from rayline.serving.settings import Device, director_options, gateway_options, replica_options
from rayline.spec import GatewaySpec, ModelRef, ServeSpec
from rayline.tracking import resolve_model

IMPORT_PATH = "rayline.serving.app:build"
FRONT_IMPORT_PATH = "rayline.serving.app:build_front"


def build_front(args: Tree) -> serve.Application:
    """The gateway and the director. `args` is a GatewaySpec as a tree."""
    spec = GatewaySpec.parse(args)
    director = serve.deployment(**director_options())(Director).bind(spec)
    return serve.deployment(**gateway_options(spec))(Gateway).bind(spec, director)


def build(args: Tree) -> serve.Application:
    """The replicas of the model that `args`, a ServeSpec as a tree, describes.

    Called by Serve (with the arguments of a config file) or by `deploy`, in a process that has
    joined Ray. Raises SpecError for a wrong spec and a model that cannot be used.
    """
    spec = pin(ServeSpec.parse(args))
    device = device_for(spec)
    served = Served(
        model=spec.name,
        version=1,
        max_model_len=spec.engine.max_model_len,
        revision=fingerprint(spec),
        limits=spec.limits,
        created_s=_created_s(spec),
    )
    return serve.deployment(**replica_options(spec, device))(Replica).bind(
        spec.model_dump(mode="json"), device, served
    )


def pin(spec: ServeSpec) -> ServeSpec:
    """The spec with its model fixed: an alias that moves later must not give the replicas that are
    started later another model. Every node has to see the folder.

    A hub id stays one; each node fetches it for itself. What is rehearsed is not opened. Raises
    SpecError, or CheckpointError where a file differs from its hash.
    """
    if spec.model.hub is not None or spec.rehearsal is not None:
        return spec
    folder = resolve_model(spec.model, spec.tracking)
    return spec.model_copy(update={"model": ModelRef(directory=str(folder))})


def fingerprint(spec: ServeSpec) -> str:
    """Equal for deployments that need nothing done: the spec, and its folder's files by name, size
    and time of change."""
    seen = hashlib.sha256(spec.fingerprint().encode())
    folder = _folder(spec)
    if folder is not None:
        for file in sorted(folder.iterdir()):
            found = file.stat()
            seen.update(f"{file.name} {found.st_size} {found.st_mtime_ns}\n".encode())
    return seen.hexdigest()[:16]


def _created_s(spec: ServeSpec) -> int:
    """Unix time at which the model's folder was written; 0 where there is none."""
    folder = _folder(spec)
    return 0 if folder is None else int(folder.stat().st_mtime)


def _folder(spec: ServeSpec) -> Path | None:
    """Where a pinned spec's model lies; None for one on a hub, and for one that is rehearsed."""
    if spec.model.directory is None or spec.rehearsal is not None:
        return None
    return Path(spec.model.directory)


def device_for(spec: ServeSpec) -> Device:
    """What the engines run on: as the spec says, or GPUs where the cluster has any."""
    if spec.device != "auto":
        return spec.device
    return "gpu" if ray.cluster_resources().get("GPU", 0) > 0 else "cpu"
