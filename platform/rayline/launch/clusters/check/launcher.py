"""What is wrong at the top of a `ray up` file: its keys, its provider, its sizes."""

from __future__ import annotations

from collections.abc import Iterator

from rayline.errors import meant
from rayline.launch.clusters.check.flaw import NEAR, Flaw, Tree, mapping, sequence, unknown_key
from rayline.launch.clusters.check.flaw import whole as whole_number

_TOP = frozenset(
    {
        *("cluster_name", "max_workers", "upscaling_speed", "idle_timeout_minutes", "provider"),
        *("auth", "docker", "head_node_type", "available_node_types", "file_mounts"),
        *("cluster_synced_files", "file_mounts_sync_continuously", "rsync_exclude"),
        *("rsync_filter", "metadata", "initialization_commands", "setup_commands"),
        *("head_setup_commands", "worker_setup_commands", "head_start_ray_commands"),
        *("worker_start_ray_commands", "head_node", "worker_nodes", "no_restart", "min_workers"),
    }
)
_PROVIDER_KEYS = {
    "aws": {
        *("type", "region", "availability_zone", "cache_stopped_nodes", "use_internal_ips"),
        *("security_group", "cloudwatch", "aws_credentials", "disable_launch_config_check"),
        *("worker_liveness_check", "worker_rpc_drain"),
    },
    "gcp": {
        *("type", "region", "availability_zone", "project_id", "gcp_credentials"),
        *("use_internal_ips", "cache_stopped_nodes"),
    },
    "azure": {
        *("type", "location", "resource_group", "subscription_id", "availability_zone", "tags"),
        *("cache_stopped_nodes", "use_internal_ips", "subnet_mask", "msi_name", "vnet_name"),
        *("msi_resource_group", "msi_identity_id", "msi_identity_principal_id", "unique_id"),
        *("use_external_head_ip", "vnet_resource_group"),
    },
    "local": {"type", "head_ip", "worker_ips", "external_head_ip", "coordinator_address"},
}
_REGION_KEY = {"aws": "region", "gcp": "region", "azure": "location"}
_TYPES = (*_PROVIDER_KEYS, "external", "vsphere", "aliyun", "readonly", "spark", "kuberay")
_PLACEHOLDERS = ("your-", "subnet-0000000", "sg-0000000", "00000000-0000-0000-0000-000000000000")


def top_flaws(tree: Tree) -> Iterator[Flaw]:
    """Keys that are missing, unknown or dropped."""
    for key in tree:
        if key not in _TOP:
            yield unknown_key("", str(key), _TOP - {"head_node", "worker_nodes", "min_workers"})
    for key in ("cluster_name", "provider"):
        if key not in tree:
            yield Flaw("missing-key", key, "required, but not given", f"give {key}")
    if _kind(tree) != "local" and "min_workers" in tree:
        yield Flaw(
            "min-workers-at-top",
            "min_workers",
            "Ray drops it without a word: no worker would be kept",
            "write min_workers in a node type of available_node_types",
            value=str(tree["min_workers"]),
        )
    for key in ("head_node", "worker_nodes"):
        if tree.get(key):
            yield Flaw(
                "legacy-node",
                key,
                "of a form that Ray no longer reads",
                "describe the node in available_node_types",
            )


def provider_flaws(tree: Tree) -> Iterator[Flaw]:
    """A provider that does not exist, keys that it does not read, places that do not agree."""
    provider, kind = mapping(tree.get("provider")), _kind(tree)
    if kind not in _TYPES:
        yield Flaw(
            "provider-type",
            "provider.type",
            "no such provider",
            meant(kind, _PROVIDER_KEYS, otherwise="take one of these", cutoff=NEAR),
            value=repr(kind),
            allowed=", ".join(_PROVIDER_KEYS),
        )
    known = _PROVIDER_KEYS.get(kind)
    for key in provider if known else ():
        if known and key not in known:
            yield unknown_key("provider", str(key), known)
    if kind in _REGION_KEY and not provider.get(_REGION_KEY[kind]):
        key = _REGION_KEY[kind]
        yield Flaw(
            "no-region",
            f"provider.{key}",
            "required, but not given: Ray would take its default's",
            f"give provider.{key}",
        )
    yield from _zone_flaws(kind, provider)
    yield from _stopped_flaws(kind, provider)
    for key, value in provider.items():
        if is_placeholder(value):
            yield placeholder(f"provider.{key}", value)


def placeholder(field: str, value: str) -> Flaw:
    """A value that was only put there to be replaced."""
    return Flaw("placeholder", field, "only holds the place", "put your own here", value=value)


def is_placeholder(value: object) -> bool:
    """Whether a value was only put there to be replaced."""
    return isinstance(value, str) and value.startswith(_PLACEHOLDERS)


def _zone_flaws(kind: str, provider: Tree) -> Iterator[Flaw]:
    region, zones = provider.get("region"), provider.get("availability_zone")
    if kind in ("aws", "gcp") and isinstance(region, str) and isinstance(zones, str):
        for zone in zones.split(","):
            if not zone.strip().startswith(region):
                yield Flaw(
                    "zone-of-another-region",
                    "provider.availability_zone",
                    f"not a zone of {region}",
                    f"take a zone of {region}, or change provider.region",
                    value=zone.strip(),
                    allowed=f"{region}a, ..." if kind == "aws" else f"{region}-a, ...",
                )
    if kind == "gcp" and not provider.get("project_id"):
        yield Flaw(
            "no-project",
            "provider.project_id",
            "required, but not given",
            "give your project's id",
        )


def _stopped_flaws(kind: str, provider: Tree) -> Iterator[Flaw]:
    if kind in ("aws", "azure") and provider.get("cache_stopped_nodes", True):
        yield Flaw(
            "stopped-nodes-kept",
            "provider.cache_stopped_nodes",
            "nodes that are scaled down would be stopped, not ended: their disks go on costing",
            "cache_stopped_nodes: false",
            value=str(provider.get("cache_stopped_nodes", "")),
            allowed="false",
        )


def size_flaws(tree: Tree) -> Iterator[Flaw]:
    """Numbers at the top that are not numbers, or that nothing could reach."""
    idle = tree.get("idle_timeout_minutes", 5)
    if not isinstance(idle, int | float) or isinstance(idle, bool) or idle <= 0:
        yield Flaw(
            "idle-timeout",
            "idle_timeout_minutes",
            "a node would be given back as soon as it is idle"
            if idle == 0
            else "not a number of minutes",
            "idle_timeout_minutes: 10",
            value=repr(idle),
            allowed="a number above 0",
        )
    most = tree.get("max_workers")
    if most is not None and whole_number(most) is None:
        yield Flaw(
            "max-workers",
            "max_workers",
            "not a whole number",
            "max_workers: 4",
            value=repr(most),
            allowed="0 or more",
        )
    if _kind(tree) != "local":
        yield from _sum_flaws(tree)


def _sum_flaws(tree: Tree) -> Iterator[Flaw]:
    types = mapping(tree.get("available_node_types"))
    workers = [mapping(each) for name, each in types.items() if name != tree.get("head_node_type")]
    least = sum(whole_number(each.get("min_workers")) or 0 for each in workers)
    reach = sum(whole_number(each.get("max_workers")) or 0 for each in workers)
    most = whole_number(tree.get("max_workers"))
    if workers and most is None:
        yield Flaw(
            "no-max-workers",
            "max_workers",
            "not given: Ray takes its default, 2, whatever the node types say",
            f"max_workers: {reach}",
            allowed=str(reach),
        )
    elif workers and most is not None and most < least:
        yield Flaw(
            "fewer-than-kept",
            "max_workers",
            f"fewer than the {least} workers that the node types keep",
            f"max_workers: {reach}",
            value=str(most),
            allowed=f"{least} or more",
        )
    elif workers and most is not None and most != reach:
        lack = "some could never start" if most < reach else "more than there could ever be"
        yield Flaw(
            "max-workers-sum",
            "max_workers",
            f"the node types allow {reach} workers together: {lack}",
            f"max_workers: {reach}, or change a node type's",
            value=str(most),
            allowed=str(reach),
        )


def local_flaws(tree: Tree) -> Iterator[Flaw]:
    """Machines of one's own: addresses and counts."""
    provider = mapping(tree.get("provider"))
    if _kind(tree) != "local" or "coordinator_address" in provider:
        return
    if "available_node_types" in tree:
        yield Flaw(
            "node-types-on-premises",
            "available_node_types",
            "not for machines of one's own: Ray finds what each has",
            "remove it",
        )
    head, workers = provider.get("head_ip"), sequence(provider.get("worker_ips"))
    if not head or not workers:
        missing = "head_ip" if not head else "worker_ips"
        yield Flaw("no-address", f"provider.{missing}", "no address is given", "give it")
    if head in workers:
        yield Flaw(
            "head-among-workers",
            "provider.worker_ips",
            "the head is a worker too: starting it there would end the head's Ray",
            "remove it from worker_ips",
            value=str(head),
        )
    for address in sorted({str(each) for each in workers if workers.count(each) > 1}):
        yield Flaw(
            "address-twice", "provider.worker_ips", "stands twice", "keep one", value=address
        )
    for key in ("min_workers", "max_workers"):
        count = whole_number(tree.get(key, len(workers)))
        if workers and count != len(workers):
            yield Flaw(
                "own-machines-count",
                key,
                f"there are {len(workers)} worker_ips, all always there",
                f"{key}: {len(workers)}",
                value=str(tree.get(key)),
                allowed=str(len(workers)),
            )


def _kind(tree: Tree) -> str:
    return str(mapping(tree.get("provider")).get("type", ""))
