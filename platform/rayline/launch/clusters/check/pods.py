"""What is wrong in the pods of a KubeRay manifest: image, resources, memory, devices, start."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from rayline.launch.clusters.catalogue import BY_NAME
from rayline.launch.clusters.check.commands import pinned
from rayline.launch.clusters.check.flaw import Flaw, Tree, mapping, sequence
from rayline.launch.clusters.pins import RAY_VERSION

_GPU = "nvidia.com/gpu"
_EFA = "vpc.amazonaws.com/efa"
_QUANTITY = re.compile(r"^\d+(\.\d+)?(m|k|Ki|M|Mi|G|Gi|T|Ti|P|Pi|E|Ei|e\d+)?$")
_IMAGE_RAY = re.compile(r"-ray(\d+\.\d+\.\d+)|rayproject/ray(?:-ml)?:(\d+\.\d+\.\d+)")
_INTERFACES = "networking.gke.io/interfaces"


def pod_flaws(field: str, cluster: Tree) -> Iterator[Flaw]:
    """The head's pod and each group's."""
    groups = [(f"{field}.headGroupSpec", mapping(cluster.get("headGroupSpec")), True)]
    groups += [
        (f"{field}.workerGroupSpecs[{index}]", mapping(each), False)
        for index, each in enumerate(sequence(cluster.get("workerGroupSpecs")))
    ]
    images: dict[str, str] = {}
    for place, group, is_head in groups:
        yield from _start_flaws(place, group, is_head=is_head)
        pod = mapping(mapping(group.get("template")).get("spec"))
        containers = [mapping(each) for each in sequence(pod.get("containers"))]
        if not containers:
            where = f"{place}.template.spec.containers"
            yield Flaw("no-container", where, "the pod has no container", "add Ray's container")
            continue
        inside = f"{place}.template.spec.containers[0]"
        images[inside] = str(containers[0].get("image", ""))
        yield from _image_flaws(f"{inside}.image", images[inside])
        yield from _resource_flaws(f"{inside}.resources", containers[0])
        if is_head:
            yield from _head_flaws(place, group, containers[0])
        else:
            yield from _device_flaws(place, group, pod, containers[0])
    yield from _difference(images)


def _difference(images: dict[str, str]) -> Iterator[Flaw]:
    first = next(iter(images.values()), "")
    for field, image in images.items():
        if image != first:
            yield Flaw(
                "two-images",
                f"{field}.image",
                "another image than the head's: Ray and Python must be the same on every node",
                f"image: {first}",
                value=image,
                allowed=first,
            )


def _start_flaws(field: str, group: Tree, *, is_head: bool) -> Iterator[Flaw]:
    parameters = mapping(group.get("rayStartParams"))
    for name, value in parameters.items():
        if not isinstance(value, str):
            yield Flaw(
                "start-parameter",
                f"{field}.rayStartParams.{name}",
                "KubeRay takes text only: the API server refuses a number or a yes",
                f'{name}: "{str(value).lower()}"',
                value=repr(value),
                allowed="text in quotes",
            )
    if is_head and str(parameters.get("num-cpus")) != "0":
        yield Flaw(
            "work-on-head",
            f"{field}.rayStartParams.num-cpus",
            "tasks may run beside the control store: when they take its memory the cluster ends",
            'num-cpus: "0"',
            value=str(parameters.get("num-cpus", "")),
            allowed='"0"',
        )
    if is_head and parameters.get("dashboard-host") != "0.0.0.0":  # noqa: S104  inside the pod
        yield Flaw(
            "dashboard-unreachable",
            f"{field}.rayStartParams.dashboard-host",
            "in a pod the dashboard answers its service only where it listens on all addresses",
            "dashboard-host: 0.0.0.0",
            value=str(parameters.get("dashboard-host", "")),
            allowed="0.0.0.0",  # noqa: S104  inside the pod
        )


def _image_flaws(field: str, image: str) -> Iterator[Flaw]:
    if not image:
        yield Flaw("no-image", field, "names no image", "give the image of cluster/Dockerfile")
    elif not pinned(image):
        yield Flaw(
            "image-not-pinned",
            field,
            "without a tag of one build, pods made later run other software",
            f"name a tag, such as {image.partition(':')[0]}:0.1.0-ray{RAY_VERSION}-gpu",
            value=image,
        )
    found = _IMAGE_RAY.search(image)
    version = None if found is None else found[1] or found[2]
    if version not in (None, RAY_VERSION):
        yield Flaw(
            "another-ray",
            field,
            "another Ray than the one here: Ray refuses clients of another version",
            f"build the image from the lock, with ray {RAY_VERSION}",
            value=str(version),
            allowed=RAY_VERSION,
        )


def _resource_flaws(field: str, container: Tree) -> Iterator[Flaw]:
    resources = mapping(container.get("resources"))
    requests, limits = mapping(resources.get("requests")), mapping(resources.get("limits"))
    for part, amounts in (("requests", requests), ("limits", limits)):
        for name, amount in amounts.items():
            if not _QUANTITY.match(str(amount)):
                yield Flaw(
                    "quantity",
                    f"{field}.{part}.{name}",
                    "no quantity that Kubernetes reads",
                    "write it as 32Gi, 500m or 8",
                    value=str(amount),
                )
    if "memory" not in limits:
        yield Flaw(
            "memory-not-said",
            f"{field}.limits.memory",
            "Ray takes the whole machine's memory for its own, and the kernel ends some pod",
            "give memory in limits, and the same in requests",
        )
    for name in ("memory", _GPU, _EFA):
        if name in limits and name in requests and str(limits[name]) != str(requests[name]):
            yield Flaw(
                "requests-not-limits",
                f"{field}.requests.{name}",
                "not what limits say: not guaranteed, or refused",
                f"{name}: {limits[name]} in both",
                value=str(requests[name]),
                allowed=str(limits[name]),
            )
    for name in (_GPU, _EFA):
        if name in requests and name not in limits:
            yield Flaw(
                "device-without-limit",
                f"{field}.limits.{name}",
                "devices are given by limits: the API server refuses a request alone",
                f"{name}: {requests[name]}",
            )


def _head_flaws(field: str, group: Tree, container: Tree) -> Iterator[Flaw]:
    if _gpus(container):
        yield Flaw(
            "gpu-on-head",
            f"{field}.template.spec.containers[0].resources",
            "the head runs no training and no engine: its GPUs would idle and cost",
            f"remove {_GPU}",
            value=str(_gpus(container)),
        )
    ports = {str(mapping(each).get("containerPort")) for each in sequence(container.get("ports"))}
    for port, what in ((6379, "control store"), (8265, "dashboard")):
        if ports and str(port) not in ports:
            yield Flaw(
                "port-missing",
                f"{field}.template.spec.containers[0].ports",
                f"the head's service would not lead to the {what}",
                f"add containerPort: {port}",
                value=", ".join(sorted(ports)),
                allowed=str(port),
            )


def _device_flaws(field: str, group: Tree, pod: Tree, container: Tree) -> Iterator[Flaw]:
    gpus = _gpus(container)
    said = mapping(group.get("rayStartParams")).get("num-gpus")
    if said is not None and str(said) != str(gpus):
        yield Flaw(
            "gpu-count",
            f"{field}.rayStartParams.num-gpus",
            f"the container has {gpus} GPUs, and Ray would count on {said}",
            "remove it: Ray finds them",
            value=str(said),
            allowed=str(gpus),
        )
    if gpus:
        yield from _gpu_pod_flaws(field, pod, container)
    yield from _network_flaws(field, group, pod, container, gpus)


def _gpu_pod_flaws(field: str, pod: Tree, container: Tree) -> Iterator[Flaw]:
    mounts = [mapping(each) for each in sequence(container.get("volumeMounts"))]
    mounted = [each.get("mountPath") for each in mounts]
    if "/dev/shm" not in mounted:  # noqa: S108  where NCCL looks
        yield Flaw(
            "shared-memory",
            f"{field}.template.spec.volumes",
            "a pod has 64 MiB of /dev/shm: NCCL and Ray's object store need gibibytes",
            "mount an emptyDir of medium Memory at /dev/shm, as cluster/kuberay/raycluster.yaml",
        )
    tolerated = [mapping(each) for each in sequence(pod.get("tolerations"))]
    if not any(each.get("key") in (_GPU, None) for each in tolerated):
        yield Flaw(
            "no-toleration",
            f"{field}.template.spec.tolerations",
            "nodes with GPUs are usually tainted: the pod would stay pending",
            f"tolerations: [{{key: {_GPU}, operator: Exists, effect: NoSchedule}}]",
        )


def _network_flaws(
    field: str, group: Tree, pod: Tree, container: Tree, gpus: int
) -> Iterator[Flaw]:
    limits = mapping(mapping(container.get("resources")).get("limits"))
    name = mapping(pod.get("nodeSelector")).get("node.kubernetes.io/instance-type")
    machine = BY_NAME.get(str(name))
    where = f"{field}.template.spec.containers[0].resources.limits"
    cards = machine.network_cards if machine is not None and machine.fabric == "efa" else None
    if _EFA in limits and cards is not None and str(limits[_EFA]) != str(cards):
        yield Flaw(
            "efa-count",
            f"{where}.{_EFA}",
            f"{name} has {cards} EFA devices, and NCCL wants all",
            f"{_EFA}: {cards}",
            value=str(limits[_EFA]),
            allowed=str(cards),
        )
    if _EFA in limits and "hugepages-2Mi" not in limits:
        yield Flaw(
            "efa-huge-pages",
            f"{where}.hugepages-2Mi",
            "libfabric's EFA provider cannot start without them",
            "hugepages-2Mi: 5120Mi",
        )
    if machine is not None and gpus > machine.gpus:
        yield Flaw(
            "gpu-count",
            f"{where}.{_GPU}",
            f"{machine.words} has {machine.gpus}: the pod would stay pending",
            f"{_GPU}: {machine.gpus}",
            value=str(gpus),
            allowed=str(machine.gpus),
        )
    metadata = mapping(mapping(group.get("template")).get("metadata"))
    interfaces = mapping(metadata.get("annotations")).get(_INTERFACES)
    if interfaces is not None and not _is_list(interfaces):
        yield Flaw(
            "gke-interfaces",
            f"{field}.template.metadata.annotations.{_INTERFACES}",
            "not a JSON list: GKE would give the pod one card",
            'write [{"interfaceName": "eth0", "network": "default"}, ...]',
        )


def _is_list(text: object) -> bool:
    try:
        return isinstance(json.loads(str(text)), list)
    except ValueError:
        return False


def _gpus(container: Tree) -> int:
    limits = mapping(mapping(container.get("resources")).get("limits"))
    amount = str(limits.get(_GPU, "0"))
    return int(amount) if amount.isdigit() else 0
