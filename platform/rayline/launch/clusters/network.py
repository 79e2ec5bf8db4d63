"""The fast network between GPU nodes: cards, environment and what a pod must ask for.

Sources: AWS's EC2 user guide (EFA on accelerated machines: card 0 carries IP, the others EFA only)
and EKS guide; Google's guide to GPUDirect RDMA on GKE (networks rdma-0 to rdma-7, gIB's NCCL
settings); AKS's RDMA device plugin. None of it could be measured here.
"""

from __future__ import annotations

import json
from typing import Any

from rayline.errors import SpecError
from rayline.launch.clusters.catalogue import Machine
from rayline.spec import CloudSpec, ClusterSpec

EFA_ENVIRONMENT = {
    "FI_PROVIDER": "efa",
    "FI_EFA_USE_DEVICE_RDMA": "1",
    # Huge pages do not survive a fork, and data is prepared in forked processes.
    "FI_EFA_USE_HUGE_PAGE": "0",
    "NCCL_SOCKET_IFNAME": "^lo,docker,veth",
}
GIB_ENVIRONMENT = {
    "LD_LIBRARY_PATH": "/usr/local/gib/lib64:/usr/local/nvidia/lib64",
    # bash reads it before the command that KubeRay gives: NCCL's settings are those of the node.
    "BASH_ENV": "/usr/local/gib/scripts/set_nccl_env.sh",
}
INFINIBAND_ENVIRONMENT = {"NCCL_IB_PCI_RELAXED_ORDERING": "1", "NCCL_SOCKET_IFNAME": "eth0"}

_GKE_HOST_FOLDERS = {
    "gib": ("/home/kubernetes/bin/gib", "/usr/local/gib"),
    "nvidia": ("/home/kubernetes/bin/nvidia", "/usr/local/nvidia"),
}


def refuse_without_fabric(spec: ClusterSpec, index: int, machine: Machine | None) -> None:
    """Raise SpecError where a group asks for a fast network that cannot be set up."""
    field = f"groups.{index}.fast_network"
    if machine is None or machine.fabric is None:
        found = "no machine of the catalogue" if machine is None else machine.words
        raise SpecError(
            field,
            f"{found} has no fast network that is known here",
            value=True,
            fix="name a machine that has one (p5.48xlarge on EKS and AWS, a3-ultragpu-8g on GKE, "
            "Standard_ND96isr_H100_v5 on AKS), or set fast_network: false",
        )
    if spec.provider in ("gcp", "azure"):
        raise SpecError(
            field,
            f"`ray up` on {spec.provider} cannot set it up: it needs networks or machine sets that "
            "Ray's launcher does not make",
            value=True,
            allowed="false",
            fix="use provider kuberay with kubernetes.flavor gke or aks, or go over TCP",
        )
    cloud = spec.cloud
    if spec.provider == "aws" and cloud is not None:
        for name in ("subnet", "head_subnet", "security_group", "placement_group"):
            if getattr(cloud, name) is None:
                raise SpecError(
                    f"cloud.{name}",
                    f"required by {field}: EFA works within one subnet, one placement group, and a "
                    "security group that lets through everything to and from itself",
                    fix=f"make one and set cloud.{name}",
                )


def efa_interfaces(machine: Machine, cloud: CloudSpec) -> list[dict[str, Any]]:
    """What EC2 is asked for: one device a network card, of which the first also carries IP."""
    return [
        {
            "NetworkCardIndex": card,
            "DeviceIndex": 0 if card == 0 else 1,
            "InterfaceType": "efa" if card == 0 else "efa-only",
            "SubnetId": cloud.subnet,
            "Groups": [cloud.security_group],
            "DeleteOnTermination": True,
        }
        for card in range(machine.network_cards)
    ]


def pod_environment(machine: Machine) -> dict[str, str]:
    """NCCL's and libfabric's settings in a pod on that machine."""
    return {
        "efa": EFA_ENVIRONMENT,
        "gpudirect-rdma": GIB_ENVIRONMENT,
        "infiniband": INFINIBAND_ENVIRONMENT,
    }[machine.fabric or "efa"]


def pod_resources(machine: Machine) -> dict[str, str]:
    """What a pod asks for besides GPUs; the same stands in requests and limits."""
    if machine.fabric == "efa":
        return {"vpc.amazonaws.com/efa": str(machine.network_cards), "hugepages-2Mi": "5120Mi"}
    if machine.fabric == "infiniband":
        return {"rdma/ib": str(machine.network_cards)}
    return {}


def pod_annotations(machine: Machine) -> dict[str, str]:
    """GKE: the pod's cards, one for the cluster's own network and one for each GPU."""
    if machine.fabric != "gpudirect-rdma":
        return {}
    cards = [{"interfaceName": "eth0", "network": "default"}]
    cards += [
        {"interfaceName": f"eth{card + 2}", "network": f"rdma-{card}"}
        for card in range(machine.network_cards)
    ]
    lines = ",\n".join(f"  {json.dumps(card)}" for card in cards)
    return {
        "networking.gke.io/default-interface": "eth0",
        "networking.gke.io/interfaces": f"[\n{lines}\n]\n",
    }


def pod_mounts(machine: Machine) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Volumes and mounts: on GKE the node's own NCCL and driver."""
    if machine.fabric != "gpudirect-rdma":
        return [], []
    volumes = [
        {"name": name, "hostPath": {"path": host}} for name, (host, _) in _GKE_HOST_FOLDERS.items()
    ]
    mounts = [
        {"name": name, "mountPath": inside} for name, (_, inside) in _GKE_HOST_FOLDERS.items()
    ]
    return volumes, mounts
