"""One node as each cloud's launcher wants it: `node_config` of Ray's cluster YAML."""

from __future__ import annotations

from rayline.launch.clusters.catalogue import Machine
from rayline.launch.clusters.network import efa_interfaces
from rayline.launch.clusters.pins import image_of
from rayline.launch.clusters.writing import Tree
from rayline.spec import ClusterSpec


def node_config(
    spec: ClusterSpec, machine: Machine, disk_gb: int, *, head: bool, spot: bool, fast: bool
) -> Tree:
    """What the cloud of `spec` is asked for to make one node."""
    if spec.provider == "aws":
        return _aws(spec, machine, disk_gb, head=head, spot=spot, fast=fast)
    if spec.provider == "gcp":
        return _gcp(spec, machine, disk_gb, spot=spot)
    return _azure(spec, machine, disk_gb, head=head, spot=spot)


def _aws(
    spec: ClusterSpec, machine: Machine, disk_gb: int, *, head: bool, spot: bool, fast: bool
) -> Tree:
    assert spec.cloud is not None  # noqa: S101  the spec's own check
    cloud = spec.cloud
    config: Tree = {
        "InstanceType": machine.name,
        "ImageId": image_of(spec),
        "BlockDeviceMappings": [
            {"DeviceName": "/dev/sda1", "Ebs": {"VolumeSize": disk_gb, "VolumeType": "gp3"}}
        ],
    }
    if fast:
        config["NetworkInterfaces"] = efa_interfaces(machine, cloud)
        config["Placement"] = {"GroupName": cloud.placement_group}
    else:
        subnet = cloud.head_subnet if head else cloud.subnet
        if subnet is not None:
            config["SubnetIds"] = [subnet]
        if cloud.security_group is not None:
            config["SecurityGroupIds"] = [cloud.security_group]
    if spot:
        config["InstanceMarketOptions"] = {"MarketType": "spot"}
    return config


def _gcp(spec: ClusterSpec, machine: Machine, disk_gb: int, *, spot: bool) -> Tree:
    assert spec.cloud is not None  # noqa: S101  the spec's own check
    disk = {
        "diskSizeGb": disk_gb,
        "diskType": f"zones/{spec.cloud.zones[0]}/diskTypes/pd-balanced",
        "sourceImage": image_of(spec),
    }
    config: Tree = {
        "machineType": machine.name,
        "disks": [
            {"boot": True, "autoDelete": True, "type": "PERSISTENT", "initializeParams": disk}
        ],
    }
    if spot:
        config["scheduling"] = [{"preemptible": True}]
    elif machine.gpu is not None:
        # A machine with GPUs cannot be moved while it runs.
        config["scheduling"] = [{"onHostMaintenance": "TERMINATE"}]
    return config


def _azure(spec: ClusterSpec, machine: Machine, disk_gb: int, *, head: bool, spot: bool) -> Tree:
    publisher, offer, sku, version = image_of(spec).split(":")
    parameters: Tree = {
        "vmSize": machine.name,
        "imagePublisher": publisher,
        "imageOffer": offer,
        "imageSku": sku,
        "imageVersion": version,
        "osDiskSize": disk_gb,
    }
    if head:
        parameters["availability_zone"] = "none"
    if spot:
        parameters |= {"priority": "Spot", "billingProfile": {"maxPrice": -1}}
    return {"azure_arm_parameters": parameters}
