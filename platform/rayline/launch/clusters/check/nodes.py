"""What is wrong in a node type of a `ray up` file: counts, resources, image, market, network."""

from __future__ import annotations

from collections.abc import Iterator

from rayline.errors import meant, nearest
from rayline.launch.clusters.catalogue import BY_NAME, Machine
from rayline.launch.clusters.check.flaw import NEAR, Flaw, Tree, mapping, sequence, whole
from rayline.launch.clusters.check.launcher import is_placeholder, placeholder

_KEYS = frozenset(
    {
        *("node_config", "resources", "min_workers", "max_workers", "labels", "docker"),
        *("initialization_commands", "worker_setup_commands", "idle_timeout_s", "priority"),
    }
)
_TYPED_LIKE = 0.9
"""How alike two machines' names must be for one to be the other, misspelt."""


def node_type_flaws(tree: Tree) -> Iterator[Flaw]:
    """Every node type by itself."""
    kind = str(mapping(tree.get("provider")).get("type", ""))
    types = mapping(tree.get("available_node_types"))
    head = tree.get("head_node_type")
    if types and str(head) not in types:
        near = nearest(str(head), types, NEAR)
        yield Flaw(
            "head-type",
            "head_node_type",
            "no such node type" if head else "not given",
            f"head_node_type: {near or next(iter(types))}",
            value=str(head or ""),
            allowed=", ".join(types),
        )
    for name, node in types.items():
        field = f"available_node_types.{name}"
        yield from _count_flaws(field, mapping(node), is_head=name == head)
        if kind in ("aws", "gcp", "azure"):
            yield from _cloud_flaws(field, kind, mapping(node))


def _count_flaws(field: str, node: Tree, *, is_head: bool) -> Iterator[Flaw]:
    for key in node:
        if key not in _KEYS:
            fix = meant(str(key), _KEYS, otherwise="remove it", cutoff=NEAR)
            yield Flaw("unknown-key", f"{field}.{key}", "nothing reads this key", fix)
    for key in ("min_workers", "max_workers"):
        if key not in node:
            default = "0" if key == "min_workers" else "the file's max_workers"
            yield Flaw(
                "count-not-said",
                f"{field}.{key}",
                f"not given: Ray would take {default}",
                f"{key}: 0" if is_head else f"write {key}",
            )
        elif (whole(node[key]) or 0) < 0 or whole(node[key]) is None:
            yield Flaw(
                "count", f"{field}.{key}", "no count of nodes", f"{key}: 0", value=repr(node[key])
            )
    least, most = whole(node.get("min_workers")), whole(node.get("max_workers"))
    if least is not None and most is not None and least > most:
        yield Flaw(
            "min-above-max",
            f"{field}.min_workers",
            f"above max_workers {most}",
            f"lower it to {most}, or raise max_workers to {least}",
            value=str(least),
            allowed=f"0 to {most}",
        )
    if is_head and most:
        yield Flaw(
            "head-as-worker",
            f"{field}.max_workers",
            "the autoscaler would rent machines of the head's type as workers",
            "max_workers: 0, and a node type of its own for workers",
            value=str(most),
            allowed="0",
        )
    for name, amount in mapping(node.get("resources")).items():
        if whole(amount) is None:
            yield Flaw(
                "resource-amount",
                f"{field}.resources.{name}",
                "not a whole number",
                f"write {name}: a number without quotes or unit",
                value=repr(amount),
            )


def _cloud_flaws(field: str, kind: str, node: Tree) -> Iterator[Flaw]:
    config = mapping(node.get("node_config"))
    name, image = machine_and_image(config)
    where = _machine_field(config)
    machine = BY_NAME.get(name)
    if not name:
        yield Flaw(
            "no-machine", f"{field}.node_config", "names no machine type", "give the machine type"
        )
    elif machine is not None and machine.provider != kind:
        yield Flaw(
            "machine-of-another-cloud",
            f"{field}.node_config.{where}",
            f"{machine.provider} rents it, {kind} does not",
            f"take a machine of {kind}",
            value=name,
        )
    elif machine is None:
        yield from _misspelt(field, where, kind, name)
    else:
        yield from _resource_flaws(field, mapping(node.get("resources")), machine)
        yield from _efa_flaws(f"{field}.node_config", config, machine)
    if not image:
        yield Flaw(
            "no-image",
            f"{field}.node_config",
            "names no image (or the newest of a family by a moving name): Ray's default would be "
            "taken, without the driver or the Python that the lock needs",
            "give the image as cluster/aws.yaml, gcp.yaml and azure.yaml do",
        )
    yield from _market_flaws(field, kind, node, config)
    if kind == "gcp":
        yield from _gcp_flaws(field, config, machine)


def machine_and_image(config: Tree) -> tuple[str, str]:
    """The machine type and the image of one node, whatever the cloud calls them."""
    azure = mapping(config.get("azure_arm_parameters"))
    if "vmSize" in azure:
        version = azure.get("imageVersion", "latest")
        pinned = azure.get("imageId") or (version != "latest" and azure.get("imageOffer"))
        return str(azure["vmSize"]), str(pinned or "")
    if "machineType" in config:
        disk = mapping(next(iter(sequence(config.get("disks"))), None))
        image = mapping(disk.get("initializeParams")).get("sourceImage", "")
        return str(config["machineType"]), str(image)
    return str(config.get("InstanceType", "")), str(config.get("ImageId", ""))


def _machine_field(config: Tree) -> str:
    if "azure_arm_parameters" in config:
        return "azure_arm_parameters.vmSize"
    return "machineType" if "machineType" in config else "InstanceType"


def _misspelt(field: str, where: str, kind: str, name: str) -> Iterator[Flaw]:
    """A machine that is not in the catalogue may exist; one that looks like one that is may not."""
    known = [each.name for each in BY_NAME.values() if each.provider == kind]
    near = nearest(name, known, _TYPED_LIKE)
    if near is not None:
        yield Flaw(
            "machine-misspelt",
            f"{field}.node_config.{where}",
            "no machine of the catalogue, but almost one",
            f"did you mean {near!r}?",
            value=name,
            allowed=", ".join(known),
        )


def _resource_flaws(field: str, resources: Tree, machine: Machine) -> Iterator[Flaw]:
    for name, has in (("GPU", machine.gpus), ("CPU", machine.cpus)):
        said = resources.get(name, 0)
        if said == has or (name == "CPU" and said == 0):
            continue
        yield Flaw(
            f"{name.lower()}-count",
            f"{field}.resources.{name}",
            f"{machine.words} has {has}: Ray would "
            + ("wait for nodes that cannot be" if said and said > has else "not use what is paid")
            if isinstance(said, int)
            else f"{machine.words} has {has}",
            f"{name}: {has}" if has else f"remove {name}",
            value=str(said),
            allowed=str(has),
        )


def _efa_flaws(field: str, config: Tree, machine: Machine) -> Iterator[Flaw]:
    interfaces = [mapping(each) for each in sequence(config.get("NetworkInterfaces"))]
    efa = [each for each in interfaces if str(each.get("InterfaceType", "")).startswith("efa")]
    place = f"{field}.NetworkInterfaces"
    if interfaces and any(key in config for key in ("SubnetId", "SubnetIds", "SecurityGroupIds")):
        yield Flaw(
            "subnet-twice",
            field,
            "subnet and security group stand beside NetworkInterfaces: Ray refuses the node when "
            "it is to be made",
            "keep them in the interfaces only",
        )
    for index, each in enumerate(interfaces):
        for key in ("SubnetId", "Groups"):
            if not each.get(key):
                yield Flaw(
                    "interface-incomplete",
                    f"{place}[{index}].{key}",
                    "each interface needs its subnet and security group",
                    f"give {key}",
                )
                return
        if is_placeholder(each.get("SubnetId")):
            yield placeholder(f"{place}[{index}].SubnetId", str(each["SubnetId"]))
            break
    if machine.fabric != "efa" or not efa:
        return
    if len(efa) != machine.network_cards:
        yield Flaw(
            "efa-count",
            place,
            f"{machine.name} has {machine.network_cards} EFA devices: the others' bandwidth is lost"
            if len(efa) < machine.network_cards
            else f"{machine.name} has only {machine.network_cards} EFA devices",
            f"one interface for each card, 0 to {machine.network_cards - 1}",
            value=str(len(efa)),
            allowed=str(machine.network_cards),
        )
    if not mapping(config.get("Placement")).get("GroupName"):
        yield Flaw(
            "efa-no-placement-group",
            f"{field}.Placement.GroupName",
            "nodes with EFA may lie anywhere in the zone",
            "name a cluster placement group",
        )


def _market_flaws(field: str, kind: str, node: Tree, config: Tree) -> Iterator[Flaw]:
    label = mapping(node.get("labels")).get("ray.io/market-type")
    azure = mapping(config.get("azure_arm_parameters"))
    spot = {
        "aws": mapping(config.get("InstanceMarketOptions")).get("MarketType") == "spot",
        "gcp": any(mapping(each).get("preemptible") for each in _scheduling(config)),
        "azure": azure.get("priority") == "Spot",
    }[kind]
    if (label == "spot") != spot:
        yield Flaw(
            "market-label",
            f"{field}.labels",
            "the node is spot, and its label does not say so"
            if spot
            else "the label says spot, and the node is not",
            "write ray.io/market-type: spot where, and only where, the machine is spot",
            value=str(label or ""),
        )


def _gcp_flaws(field: str, config: Tree, machine: Machine | None) -> Iterator[Flaw]:
    gpus = machine is not None and machine.gpus > 0
    lasting = any(mapping(each).get("onHostMaintenance") for each in _scheduling(config))
    preemptible = any(mapping(each).get("preemptible") for each in _scheduling(config))
    if gpus and not lasting and not preemptible:
        yield Flaw(
            "gcp-maintenance",
            f"{field}.node_config.scheduling",
            "a machine with GPUs cannot be moved while it runs: Google refuses to make it",
            "scheduling: [{onHostMaintenance: TERMINATE}]",
        )


def _scheduling(config: Tree) -> list[object]:
    found = config.get("scheduling")
    return sequence(found) or ([found] if isinstance(found, dict) else [])
