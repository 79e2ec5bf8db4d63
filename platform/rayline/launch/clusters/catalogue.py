"""The machines that clouds rent: what each has, which network its GPUs have, and what it costs.

Prices are on-demand list prices for Linux in US dollars an hour, without disks, traffic and taxes,
collected in November 2026 from public software that quotes the providers' lists, not from the
lists themselves; n2-standard-8, Standard_D8s_v5 and the second A100 size are rough. AWS: us-west-2
and us-east-2. Google Cloud: us-central1. Azure: eastus. They are for an estimate: a bill is the
provider's.

Other regions differ by up to a third. A machine without a price here is sold by quotation, or its
price was not found. Spot prices change by the hour and are not kept. CPUs are virtual ones; memory
and the number of EFA cards are those of the providers' machine lists.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rayline.errors import SpecError
from rayline.spec import ClusterSpec, NodeGroup

Fabric = Literal["efa", "gpudirect-rdma", "infiniband"]
PRICES_OF = "November 2026"
_TOP_PRICE_USD = 1000.0


@dataclass(frozen=True, slots=True)
class Machine:
    """One machine type."""

    provider: Literal["aws", "gcp", "azure"]
    name: str
    cpus: int
    memory_gib: int
    gpu: str | None = None
    """GPU type; null without GPUs."""
    gpus: int = 0
    gpu_memory_gb: int = 0
    """Memory of each GPU."""
    usd_per_hour: float | None = None
    """On-demand list price; null where none was found."""
    fabric: Fabric | None = None
    """The network that its GPUs talk to other nodes over, besides plain TCP."""
    network_cards: int = 1
    """Cards of that network: EFA devices, RDMA cards."""

    @property
    def words(self) -> str:
        """Such as p5.48xlarge (8 x H100 80 GB)."""
        if self.gpu is None:
            return f"{self.name} ({self.cpus} vCPU, no GPU)"
        return f"{self.name} ({self.gpus} x {self.gpu} {self.gpu_memory_gb} GB)"


_MACHINES = (
    Machine("aws", "m7i.2xlarge", 8, 32, usd_per_hour=0.4032),
    Machine("aws", "m7i.8xlarge", 32, 128, usd_per_hour=1.6128),
    Machine("aws", "g6.xlarge", 4, 16, "L4", 1, 24, 0.8048),
    Machine("aws", "g6.12xlarge", 48, 192, "L4", 4, 24, 4.6016),
    Machine("aws", "g5.12xlarge", 48, 192, "A10G", 4, 24, 5.672),
    Machine("aws", "p4d.24xlarge", 96, 1152, "A100", 8, 40, 21.95764, "efa", 4),
    Machine("aws", "p4de.24xlarge", 96, 1152, "A100-80GB", 8, 80, 27.44705, "efa", 4),
    Machine("aws", "p5.48xlarge", 192, 2048, "H100", 8, 80, 55.04, "efa", 32),
    Machine("aws", "p5en.48xlarge", 192, 2048, "H200", 8, 141, 63.296, "efa", 16),
    Machine("aws", "p6-b200.48xlarge", 192, 2048, "B200", 8, 179, 113.9328),
    Machine("gcp", "n2-standard-8", 8, 32, usd_per_hour=0.3885),
    Machine("gcp", "g2-standard-12", 12, 48, "L4", 1, 24),
    Machine("gcp", "g2-standard-48", 48, 192, "L4", 4, 24, 4.0),
    Machine("gcp", "a2-highgpu-8g", 96, 680, "A100", 8, 40, 29.3871),
    Machine("gcp", "a2-ultragpu-8g", 96, 1360, "A100-80GB", 8, 80, 40.5504),
    Machine("gcp", "a3-highgpu-8g", 208, 1872, "H100", 8, 80, 88.49),
    Machine("gcp", "a3-ultragpu-8g", 224, 2952, "H200", 8, 141, 84.8069, "gpudirect-rdma", 8),
    Machine("gcp", "a4-highgpu-8g", 224, 3968, "B200", 8, 180, None, "gpudirect-rdma", 8),
    Machine("azure", "Standard_D8s_v5", 8, 32, usd_per_hour=0.384),
    Machine("azure", "Standard_NC24ads_A100_v4", 24, 220, "A100-80GB", 1, 80, 3.673),
    Machine("azure", "Standard_NC48ads_A100_v4", 48, 440, "A100-80GB", 2, 80, 7.346),
    Machine("azure", "Standard_ND96asr_v4", 96, 900, "A100", 8, 40, 27.197, "infiniband", 8),
    Machine("azure", "Standard_ND96isr_H100_v5", 96, 1900, "H100", 8, 80, 98.32, "infiniband", 8),
)
BY_NAME = {machine.name: machine for machine in _MACHINES}

HEADS = {"aws": "m7i.2xlarge", "gcp": "n2-standard-8", "azure": "Standard_D8s_v5"}
"""A head where the spec names none."""
CLOUD_OF_KUBERNETES = {"eks": "aws", "gke": "gcp", "aks": "azure"}


def cloud_of(spec: ClusterSpec) -> str | None:
    """Whose machines a cluster's nodes are; null where the catalogue has no say."""
    if spec.kubernetes is not None:
        return CLOUD_OF_KUBERNETES.get(spec.kubernetes.flavor)
    return spec.provider if spec.cloud is not None else None


def head_machine(spec: ClusterSpec) -> Machine | None:
    """The head's machine type; null where the provider has none (or Kubernetes chooses)."""
    if spec.cloud is None:
        return None
    return _named("head.machine", spec.head.machine or HEADS[spec.provider], spec.provider)


def group_machine(spec: ClusterSpec, index: int) -> Machine | None:
    """The machine type of a group. Raises SpecError where the catalogue does not know it, or has
    none with such GPUs."""
    cloud, group = cloud_of(spec), spec.groups[index]
    if cloud is None:
        return None
    if group.machine is not None:
        machine = _named(f"groups.{index}.machine", group.machine, cloud)
        _refuse_other_gpus(f"groups.{index}", group, machine)
        return machine
    if group.gpu is None:
        if spec.kubernetes is not None:
            return None
        return _named(f"groups.{index}.machine", HEADS[cloud], cloud)
    fitting = [
        machine
        for machine in _MACHINES
        if (machine.provider, machine.gpu, machine.gpus) == (cloud, group.gpu, group.gpus_per_node)
    ]
    if not fitting:
        raise SpecError(
            f"groups.{index}",
            f"{cloud} has no machine with {group.gpus_per_node} x {group.gpu} in the catalogue",
            allowed=", ".join(
                f"{machine.gpus} x {machine.gpu}"
                for machine in _MACHINES
                if machine.provider == cloud and machine.gpu is not None
            ),
            fix="name a machine, or change gpu and gpus_per_node",
        )
    return min(fitting, key=lambda machine: machine.usd_per_hour or _TOP_PRICE_USD)


def _named(field: str, name: str, cloud: str) -> Machine:
    machine = BY_NAME.get(name)
    if machine is None or machine.provider != cloud:
        raise SpecError(
            field,
            f"no such machine of {cloud} in the catalogue",
            value=name,
            allowed=", ".join(each.name for each in _MACHINES if each.provider == cloud),
            fix="take one of these",
        )
    return machine


def _refuse_other_gpus(field: str, group: NodeGroup, machine: Machine) -> None:
    if (group.gpus_per_node, group.gpu) != (machine.gpus, machine.gpu):
        said = f"{group.gpus_per_node} x {group.gpu}" if group.gpu else "no GPU"
        raise SpecError(
            f"{field}.gpus_per_node",
            f"{machine.name} is not such a machine",
            value=said,
            allowed=machine.words,
            fix=f"set gpu: {machine.gpu} and gpus_per_node: {machine.gpus}",
        )
