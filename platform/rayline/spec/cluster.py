"""ClusterSpec: the machines to run on, written once for every way to get them.

launch/clusters renders it to what `ray up` or KubeRay reads. Nothing here knows their file formats.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from rayline.spec.document import Document
from rayline.spec.kubernetes import KubernetesSpec

Provider = Literal["aws", "gcp", "azure", "on-premises", "kuberay", "fake"]
CLOUDS = ("aws", "gcp", "azure")

_SECTIONS = {
    "aws": {"cloud"},
    "gcp": {"cloud"},
    "azure": {"cloud"},
    "on-premises": {"machines"},
    "kuberay": {"kubernetes"},
    "fake": set[str](),
}


class NodeGroup(Document):
    """Nodes that are alike, between a fewest and a most."""

    name: str = Field(pattern=r"^[a-z]([a-z0-9-]{0,28}[a-z0-9])?$")
    """Name of the group; the autoscaler's node type."""
    machine: str | None = None
    """The provider's machine type, such as p5.48xlarge; null takes the catalogue's with
    `gpus_per_node` GPUs of type `gpu`. Not for on-premises and fake."""
    gpu: str | None = None
    """GPU type as the catalogue calls it, such as H100; null is a group without GPUs."""
    gpus_per_node: int = Field(default=0, ge=0, le=16)
    """GPUs of each node."""
    cpus_per_node: int | None = Field(default=None, ge=1)
    """CPUs of each node; null takes the machine's. KubeRay and fake need it where no machine is
    named."""
    memory_gib_per_node: int | None = Field(default=None, ge=1)
    """Memory of each node in GiB; as for cpus_per_node."""
    min_nodes: int = Field(default=0, ge=0)
    """Nodes that are kept even when idle."""
    max_nodes: int = Field(ge=1)
    """Nodes that the autoscaler may have of this group."""
    spot_share: float = Field(default=0.0, ge=0.0, le=1.0)
    """Part of max_nodes that is spot: cheaper, and taken away at short notice."""
    disk_gb: int = Field(default=300, ge=30)
    """Size of each node's disk in GB. Clouds only."""
    fast_network: bool = False
    """True asks for the network that GPUs of several nodes talk over: EFA on AWS and EKS, GPUDirect
    RDMA on GKE, InfiniBand on AKS."""
    labels: dict[str, str] = {}
    """Ray labels of each node, for jobs that ask for them."""

    @model_validator(mode="after")
    def _counts_agree(self) -> Self:
        if self.min_nodes > self.max_nodes:
            raise ValueError(f"min_nodes {self.min_nodes} is above max_nodes {self.max_nodes}")
        if (self.gpu is None) != (self.gpus_per_node == 0):
            raise ValueError("gpu and gpus_per_node come together: give both or neither")
        return self

    @property
    def spot_nodes(self) -> int:
        """How many of max_nodes are spot."""
        return round(self.max_nodes * self.spot_share)


class HeadSpec(Document):
    """The head: control store, job drivers and the gateway; no training and no engine."""

    machine: str | None = None
    """The provider's machine type; null takes one of 8 CPUs without a GPU."""
    cpus: int = Field(default=8, ge=1)
    """CPUs, for KubeRay and fake."""
    memory_gib: int = Field(default=32, ge=1)
    """Memory in GiB, for KubeRay."""
    disk_gb: int = Field(default=200, ge=30)
    """Size of the disk in GB. Clouds only."""


class CloudSpec(Document):
    """Where in a cloud, and under whose account."""

    region: str = Field(min_length=1)
    """Region (AWS, GCP) or location (Azure)."""
    zones: list[str] = Field(default=[], max_length=4)
    """Availability zones, best first; GCP needs exactly one."""
    project_id: str | None = None
    """GCP's project."""
    subscription_id: str | None = None
    """Azure's subscription."""
    resource_group: str | None = None
    """Azure's resource group; made where it does not exist."""
    subnet: str | None = None
    """AWS's subnet for the workers; null lets Ray choose. A fast network needs one with a NAT
    gateway, for a node with several cards gets no public address."""
    head_subnet: str | None = None
    """AWS's subnet for the head, in the same network and reached by ssh."""
    security_group: str | None = None
    """AWS's security group for all nodes; null lets Ray make one. A fast network needs one that
    lets through everything to and from itself, and ssh from outside."""
    placement_group: str | None = None
    """AWS's cluster placement group that keeps them close; it must exist."""


class OnPremisesSpec(Document):
    """Machines of one's own, reached by ssh."""

    head: str = Field(min_length=1)
    """Address of the head."""
    workers: list[str] = Field(min_length=1)
    """Addresses of the workers; all of them are always part of the cluster."""
    ssh_private_key: str = "~/.ssh/id_ed25519"
    """Key that logs in on every machine without a password."""
    python: str = "python3.12"
    """Python on the machines: 3.11 or 3.12."""


class MountSpec(Document):
    """A file system that every node sees: checkpoints must lie on one, or in an object store."""

    path: str = Field(pattern=r"^/[\w./-]+$")
    """Where the nodes find it."""
    nfs: str | None = Field(default=None, pattern=r"^[\w.-]+:/[\w./-]*$")
    """Server and export, such as fs-0123.efs.us-west-2.amazonaws.com:/."""
    claim: str | None = None
    """A Kubernetes claim that several nodes may write. KubeRay only."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.nfs is None) == (self.claim is None):
            raise ValueError("give either nfs or claim")
        return self


class HeadRecoverySpec(Document):
    """What the head's control store is kept in, so that a new head knows the cluster again."""

    store: Literal["rocksdb", "redis"]
    """rocksdb on a disk that outlives the head's process (alpha in Ray 2.60), or a Redis."""
    size_gb: int = Field(default=10, ge=1)
    """rocksdb: size of the claim in GB. KubeRay only."""
    redis_address: str | None = None
    """redis: host:port."""
    redis_secret: str | None = None
    """redis: Kubernetes secret whose key `password` holds the password."""

    @model_validator(mode="after")
    def _address_for_redis(self) -> Self:
        if (self.store == "redis") != (self.redis_address is not None):
            raise ValueError("redis_address comes with store redis, and only with it")
        return self


class ClusterSpec(Document):
    """One cluster, whatever it runs on."""

    name: str = Field(pattern=r"^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$")
    """Name of the cluster; nodes, disks and pods bear it."""
    provider: Provider
    """Who gives the machines: a cloud, ssh to one's own, Kubernetes, or `fake`: several nodes with
    made-up GPUs on this machine, to try scaling."""
    head: HeadSpec = HeadSpec()
    """The head node."""
    groups: list[NodeGroup] = Field(default=[], max_length=16)
    """The workers."""
    cloud: CloudSpec | None = None
    """aws, gcp, azure."""
    machines: OnPremisesSpec | None = None
    """on-premises."""
    kubernetes: KubernetesSpec | None = None
    """kuberay."""
    image: str | None = None
    """The nodes' image: an AMI, a GCP image, Azure's publisher:offer:sku:version, or for KubeRay a
    container image with a tag. null takes the pinned one."""
    ssh_user: str = "ubuntu"
    """Whom ssh logs in as. Clouds and on-premises."""
    storage: list[MountSpec] = []
    """File systems that every node mounts."""
    idle_timeout_minutes: float = Field(default=10.0, gt=0.0)
    """A worker that was idle so long is given back, down to min_nodes."""
    autoscaler: Literal["v1", "v2"] = "v2"
    """Ray's autoscaler. on-premises needs v1: v2 starts one worker too few there."""
    token: bool = True
    """Ray's token authentication. false lets whoever reaches the ports run code; only for fake."""
    head_recovery: HeadRecoverySpec | None = None
    """null: a lost head is a lost cluster."""

    @model_validator(mode="after")
    def _sections_are_the_providers(self) -> Self:
        wanted = _SECTIONS[self.provider]
        for section in ("cloud", "machines", "kubernetes"):
            given = getattr(self, section) is not None
            if given and section not in wanted:
                raise ValueError(f"{section} is not for provider {self.provider}: remove it")
            if not given and section in wanted:
                raise ValueError(f"provider {self.provider} needs the section {section}")
        return self

    @model_validator(mode="after")
    def _groups_are_the_providers(self) -> Self:
        names = [group.name for group in self.groups]
        if len(set(names)) < len(names):
            raise ValueError("two groups bear one name")
        if self.provider == "on-premises":
            if self.groups:
                raise ValueError("on-premises has no groups: Ray finds what each machine has")
            if self.autoscaler == "v2":
                raise ValueError("on-premises needs autoscaler: v1")
        elif not self.groups:
            raise ValueError("no groups: a cluster needs workers")
        if not self.token and self.provider != "fake":
            raise ValueError("token: false is only for provider fake")
        if self.provider == "fake" and any(group.machine for group in self.groups):
            raise ValueError("provider fake has no machines: give cpus_per_node instead")
        return self

    @model_validator(mode="after")
    def _account_is_complete(self) -> Self:
        cloud = self.cloud
        if cloud is None:
            return self
        if self.provider == "gcp" and (cloud.project_id is None or len(cloud.zones) != 1):
            raise ValueError("gcp needs cloud.project_id and exactly one of cloud.zones")
        if self.provider == "azure" and None in (cloud.subscription_id, cloud.resource_group):
            raise ValueError("azure needs cloud.subscription_id and cloud.resource_group")
        return self
