"""The pods of a Ray cluster on Kubernetes: one template for the head, one for each group."""

from __future__ import annotations

from typing import Any

from rayline.launch.clusters import network
from rayline.launch.clusters.catalogue import Machine, group_machine
from rayline.launch.clusters.pins import image_of
from rayline.launch.clusters.writing import Tree
from rayline.spec import ClusterSpec, NodeGroup

_SHARED_MEMORY_SHARE = 4
"""NCCL and Ray's object store both live in /dev/shm; a pod's default is 64 MiB. A quarter of the
memory counts against the pod's limit as it fills."""
_SHARED_MEMORY_MOST_GIB = 256
_LEFT_TO_SYSTEM = 0.9
"""Part of a machine that pods may ask for: the rest is the kubelet's and the daemons'."""
_PORTS = {"gcs-server": 6379, "dashboard": 8265, "client": 10001}
_SPOT_NODES = {
    "gke": {"cloud.google.com/gke-spot": "true"},
    "eks": {"eks.amazonaws.com/capacityType": "SPOT"},
    "aks": {"kubernetes.azure.com/scalesetpriority": "spot"},
}
_GKE_ACCELERATORS = {
    "L4": "nvidia-l4",
    "A100": "nvidia-tesla-a100",
    "A100-80GB": "nvidia-a100-80gb",
    "H100": "nvidia-h100-80gb",
    "H200": "nvidia-h200-141gb",
    "B200": "nvidia-b200",
}


def head_template(spec: ClusterSpec) -> Tree:
    """The head's pod: no task runs on it, and its memory is guaranteed."""
    assert spec.kubernetes is not None  # noqa: S101  the spec's own check
    ports = _PORTS | ({"serve": 8000} if spec.kubernetes.run is None else {})
    container: Tree = {
        "name": "ray-head",
        "image": image_of(spec),
        "imagePullPolicy": "IfNotPresent",
        "ports": [{"name": name, "containerPort": port} for name, port in ports.items()],
        "resources": _resources(spec.head.cpus, spec.head.memory_gib, {}),
    }
    volumes, mounts = _storage(spec)
    if mounts:
        container["volumeMounts"] = mounts
    return {"spec": {"containers": [container], **({"volumes": volumes} if volumes else {})}}


def group_template(spec: ClusterSpec, index: int, *, spot: bool) -> Tree:
    """A worker's pod. Raises SpecError where its machine or network is not to be had."""
    group, machine = spec.groups[index], group_machine(spec, index)
    if group.fast_network:
        network.refuse_without_fabric(spec, index, machine)
    cpus, memory_gib = pod_size(group, machine)
    more = {"nvidia.com/gpu": str(group.gpus_per_node)} if group.gpus_per_node else {}
    volumes, mounts = _storage(spec)
    if group.gpus_per_node:
        size_gib = min(memory_gib // _SHARED_MEMORY_SHARE, _SHARED_MEMORY_MOST_GIB)
        shared = {"medium": "Memory", "sizeLimit": f"{max(size_gib, 1)}Gi"}
        volumes = [{"name": "shared-memory", "emptyDir": shared}, *volumes]
        mounts = [{"name": "shared-memory", "mountPath": "/dev/shm"}, *mounts]  # noqa: S108
    container: Tree = {
        "name": "ray-worker",
        "image": image_of(spec),
        "imagePullPolicy": "IfNotPresent",
    }
    annotations: dict[str, str] = {}
    if group.fast_network and machine is not None:
        more |= network.pod_resources(machine)
        annotations = network.pod_annotations(machine)
        container["env"] = [
            {"name": name, "value": value}
            for name, value in network.pod_environment(machine).items()
        ]
        # Cards pin memory, which a container may not without this.
        container["securityContext"] = {"capabilities": {"add": ["IPC_LOCK"]}}
        host_volumes, host_mounts = network.pod_mounts(machine)
        volumes, mounts = [*volumes, *host_volumes], [*mounts, *host_mounts]
    container["resources"] = _resources(cpus, memory_gib, more)
    if mounts:
        container["volumeMounts"] = mounts
    pod: Tree = {"containers": [container], **({"volumes": volumes} if volumes else {})}
    pod |= _where(spec, group, machine, spot=spot)
    return {**({"metadata": {"annotations": annotations}} if annotations else {}), "spec": pod}


def pod_size(group: NodeGroup, machine: Machine | None) -> tuple[int, int]:
    """CPUs and GiB that a pod asks for: what the group says, else most of its machine."""
    cpus = group.cpus_per_node or (int(machine.cpus * _LEFT_TO_SYSTEM) if machine else 1)
    memory = group.memory_gib_per_node or (
        int(machine.memory_gib * _LEFT_TO_SYSTEM) if machine else 4
    )
    return cpus, memory


def _resources(cpus: int, memory_gib: int, more: dict[str, str]) -> Tree:
    """Memory and devices are guaranteed; CPU has no limit, which would only throttle."""
    memory = f"{memory_gib}Gi"
    return {
        "requests": {"cpu": str(cpus), "memory": memory, **more},
        "limits": {"memory": memory, **more},
    }


def _where(spec: ClusterSpec, group: NodeGroup, machine: Machine | None, *, spot: bool) -> Tree:
    """Which Kubernetes nodes a pod may lie on."""
    assert spec.kubernetes is not None  # noqa: S101  the spec's own check
    flavor = spec.kubernetes.flavor
    wanted: dict[str, str] = {}
    if group.gpu is not None and flavor == "gke" and group.gpu in _GKE_ACCELERATORS:
        wanted["cloud.google.com/gke-accelerator"] = _GKE_ACCELERATORS[group.gpu]
    if machine is not None and flavor in ("eks", "aks"):
        wanted["node.kubernetes.io/instance-type"] = machine.name
    if spot:
        wanted |= _SPOT_NODES.get(flavor, {})
    tolerated: list[dict[str, Any]] = []
    if group.gpu is not None:
        tolerated.append({"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"})
    if spot and flavor == "aks":
        tolerated.append({"key": "kubernetes.azure.com/scalesetpriority", "operator": "Exists"})
    return {
        **({"nodeSelector": wanted} if wanted else {}),
        **({"tolerations": tolerated} if tolerated else {}),
    }


def _storage(spec: ClusterSpec) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    volumes: list[dict[str, Any]] = []
    mounts: list[dict[str, Any]] = []
    for index, mount in enumerate(spec.storage):
        name = f"storage-{index}"
        if mount.claim is not None:
            volumes.append({"name": name, "persistentVolumeClaim": {"claimName": mount.claim}})
        else:
            server, _, export = (mount.nfs or "").partition(":")
            volumes.append({"name": name, "nfs": {"server": server, "path": export}})
        mounts.append({"name": name, "mountPath": mount.path})
    return volumes, mounts
