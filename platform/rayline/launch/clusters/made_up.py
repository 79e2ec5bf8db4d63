"""A ClusterSpec of provider `fake` as the YAML that Ray's autoscaler reads: several nodes with
made-up GPUs on this machine, started and ended by a real autoscaler.

Ray's provider for it is meant for Ray's own tests: it is private, so this file and fake_cluster.py
are the only ones that name it, and a test brings it up. Every optional key is there, because the
autoscaler without its launcher fills in none.
"""

from __future__ import annotations

from rayline.launch.clusters.launcher import shares
from rayline.launch.clusters.writing import Section, Tree, short_number
from rayline.spec import ClusterSpec

HEAD_NODE_ID = "f" * 51 + "00000"
"""The provider's name for the head, which the newer autoscaler must find in Ray's state."""
_STORE_BYTES = 100_000_000
"""Object store of each node: they all share this machine's memory."""
RAYS_HEAD_TYPE = "ray.head.default"
"""The provider gives the head this type whatever the file says."""


def made_up_sections(spec: ClusterSpec, gcs_address: str | None = None) -> list[Section]:
    """The file's sections; `gcs_address` is the head's control store where it is not on 6379."""
    address = {} if gcs_address is None else {"gcs_address": gcs_address}
    provider = {
        "type": "external",
        "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
        "use_node_id_as_ip": True,
        "disable_node_updaters": True,
        "disable_launch_config_check": True,
        "launch_multiple": True,
        "head_node_id": HEAD_NODE_ID,
        **address,
    }
    types = _node_types(spec)
    size = {
        "cluster_name": spec.name,
        "max_workers": sum(int(str(each["max_workers"])) for each in types.values()),
        "upscaling_speed": 10,
        "idle_timeout_minutes": short_number(spec.idle_timeout_minutes),
    }
    empty: Tree = {
        "auth": {},
        "docker": {},
        "initialization_commands": [],
        "setup_commands": [],
        "head_setup_commands": [],
        "worker_setup_commands": [],
        "head_start_ray_commands": [],
        "worker_start_ray_commands": [],
        "file_mounts": {},
        "cluster_synced_files": [],
        "file_mounts_sync_continuously": False,
        "rsync_exclude": [],
        "rsync_filter": [],
    }
    return [
        Section(size),
        Section({"provider": provider}, "Ray's provider of nodes that are processes here."),
        Section({"head_node_type": RAYS_HEAD_TYPE, "available_node_types": types}),
        Section(empty, "Without the launcher nothing fills these in."),
    ]


def _node_types(spec: ClusterSpec) -> dict[str, Tree]:
    types: dict[str, Tree] = {
        RAYS_HEAD_TYPE: {
            "min_workers": 0,
            "max_workers": 0,
            "resources": {"CPU": spec.head.cpus},
            "node_config": {},
        }
    }
    for group in spec.groups:
        resources = {"CPU": group.cpus_per_node or 1, "object_store_memory": _STORE_BYTES}
        if group.gpus_per_node:
            resources["GPU"] = group.gpus_per_node
        for suffix, spot, least, most in shares(group):
            market = {"ray.io/market-type": "spot"} if spot else {}
            labels = {**market, **group.labels}
            types[f"{group.name}{suffix}"] = {
                "min_workers": least,
                "max_workers": most,
                "resources": resources,
                "labels": labels,
                "node_config": {},
            }
    return types
