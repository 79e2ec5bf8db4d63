"""A ClusterSpec as the YAML that `ray up` reads: clouds and machines of one's own.

Everything that Ray would fill in by default and get wrong is said in full: its default commands
install a nightly build, its default images have no driver, and what it leaves out of a node type it
takes from the file's top.
"""

from __future__ import annotations

from rayline.errors import SpecError
from rayline.launch.clusters.catalogue import Machine, group_machine, head_machine
from rayline.launch.clusters.cloud_nodes import node_config
from rayline.launch.clusters.network import EFA_ENVIRONMENT, refuse_without_fabric
from rayline.launch.clusters.pins import PYTHON_ON_NODES, RAY_VERSION, lock_of
from rayline.launch.clusters.writing import Section, Tree, short_number
from rayline.spec import ClusterSpec, MountSpec, NodeGroup

_TRAVELLING = (
    *("LICENSE", "Makefile", "README.md", "cluster", "jobs", "platform", "pyproject.toml"),
    *("serve", "tune"),
)
_APT = "-o DPkg::Lock::Timeout=300"
_BASHRC = "~/.bashrc"
HEAD_TYPE = "head"


def launcher_sections(spec: ClusterSpec) -> list[Section]:
    """The file's sections for a cloud or machines of one's own. Raises SpecError."""
    if spec.provider == "on-premises":
        sections = [_own_machines_size(spec), Section({"provider": _provider(spec)})]
        sections.append(Section({"auth": _auth(spec)}))
    else:
        types, comment = _node_types(spec), "Nodes: what each has, and how many there may be."
        workers = sum(int(str(each["max_workers"])) for each in types.values())
        sections = [
            _size(spec, workers),
            Section({"provider": _provider(spec)}),
            Section({"auth": _auth(spec)}),
            Section({"head_node_type": HEAD_TYPE, "available_node_types": types}, comment),
        ]
    return [*sections, _mounts(), _setup(spec), *_starts(spec)]


def _size(spec: ClusterSpec, workers: int) -> Section:
    return Section(
        {
            "cluster_name": spec.name,
            "max_workers": workers,
            "upscaling_speed": 1.0,
            "idle_timeout_minutes": short_number(spec.idle_timeout_minutes),
        }
    )


def _own_machines_size(spec: ClusterSpec) -> Section:
    assert spec.machines is not None  # noqa: S101  the spec's own check
    count = len(spec.machines.workers)
    size = _size(spec, count).tree
    return Section(
        {"cluster_name": size["cluster_name"], "min_workers": count, **size},
        "All machines are always there: fewest and most workers are the number of worker_ips.",
    )


def _provider(spec: ClusterSpec) -> Tree:
    if spec.machines is not None:
        machines = spec.machines
        return {"type": "local", "head_ip": machines.head, "worker_ips": list(machines.workers)}
    assert spec.cloud is not None  # noqa: S101  the spec's own check
    cloud = spec.cloud
    zones = {"availability_zone": ",".join(cloud.zones)} if cloud.zones else {}
    # Stopped GPU machines still cost their disks: they are terminated.
    stopped = {"cache_stopped_nodes": False}
    if spec.provider == "aws":
        return {"type": "aws", "region": cloud.region, **zones, **stopped}
    if spec.provider == "gcp":
        return {"type": "gcp", "region": cloud.region, **zones, "project_id": cloud.project_id}
    return {
        "type": "azure",
        "location": cloud.region,
        "resource_group": cloud.resource_group,
        "subscription_id": cloud.subscription_id,
        **(zones or {"availability_zone": "auto"}),
        **stopped,
    }


def _auth(spec: ClusterSpec) -> Tree:
    key = {} if spec.machines is None else {"ssh_private_key": spec.machines.ssh_private_key}
    return {"ssh_user": spec.ssh_user, **key}


def _node_types(spec: ClusterSpec) -> dict[str, Tree]:
    head = head_machine(spec)
    assert head is not None  # noqa: S101  clouds have one
    config = node_config(spec, head, spec.head.disk_gb, head=True, spot=False, fast=False)
    types = {
        HEAD_TYPE: {
            "min_workers": 0,
            "max_workers": 0,
            "resources": {"CPU": head.cpus},
            "node_config": config,
        }
    }
    for index, group in enumerate(spec.groups):
        machine = group_machine(spec, index)
        assert machine is not None  # noqa: S101  clouds have one
        if group.fast_network:
            refuse_without_fabric(spec, index, machine)
        _refuse_other_cpus(f"groups.{index}", group, machine)
        for suffix, spot, least, most in shares(group):
            types[f"{group.name}{suffix}"] = _node_type(spec, group, machine, spot, least, most)
    return types


def shares(group: NodeGroup) -> list[tuple[str, bool, int, int]]:
    """The group's on-demand and its spot part: name's end, whether spot, fewest, most nodes. The
    nodes that are always kept are on-demand as far as those reach."""
    spot = group.spot_nodes
    lasting = group.max_nodes - spot
    kept = min(group.min_nodes, lasting)
    parts = []
    if lasting:
        parts.append(("", False, kept, lasting))
    if spot:
        parts.append(("-spot", True, group.min_nodes - kept, spot))
    return parts


def _node_type(
    spec: ClusterSpec, group: NodeGroup, machine: Machine, spot: bool, least: int, most: int
) -> Tree:
    resources = {"CPU": machine.cpus} | ({"GPU": machine.gpus} if machine.gpus else {})
    market = {"ray.io/market-type": "spot"} if spot else {}
    labels = {**market, **group.labels}
    made: Tree = {
        "min_workers": least,
        "max_workers": most,
        "resources": resources,
        **({"labels": labels} if labels else {}),
        "node_config": node_config(
            spec, machine, group.disk_gb, head=False, spot=spot, fast=group.fast_network
        ),
    }
    if group.fast_network:
        # A type's own list takes the place of the common one, so that stands in it as well.
        made["worker_setup_commands"] = [*_setup_commands(spec), _exported(EFA_ENVIRONMENT)]
    return made


def _refuse_other_cpus(field: str, group: NodeGroup, machine: Machine) -> None:
    if group.cpus_per_node not in (None, machine.cpus):
        raise SpecError(
            f"{field}.cpus_per_node",
            f"{machine.name} has another number",
            value=group.cpus_per_node,
            allowed=str(machine.cpus),
            fix="remove it: the machine says it",
        )


def _mounts() -> Section:
    mounts = {"~/.ray/auth_token": "~/.ray/auth_token"}
    mounts |= {f"~/rayline/{name}": name for name in _TRAVELLING}
    return Section(
        {"file_mounts": mounts, "rsync_exclude": ["**/__pycache__", "**/.git"]},
        "The code and the token; nothing else of the checkout travels (a mounted .venv would be "
        "hashed and copied on every `ray up`). The token file must exist: the command above makes "
        "it.",
    )


def _setup(spec: ClusterSpec) -> Section:
    why = (
        "for machines of your own Ray installs nothing."
        if spec.machines is not None
        else "left out, Ray's defaults install a nightly build of Ray (a .whl of 3.0.0.dev0)."
    )
    return Section(
        {
            "setup_commands": _setup_commands(spec),
            "head_setup_commands": [],
            "worker_setup_commands": [],
        },
        f"Said in full: {why} Every node gets the same locked packages (ray {RAY_VERSION}).",
    )


def _setup_commands(spec: ClusterSpec) -> list[str]:
    python = PYTHON_ON_NODES if spec.machines is None else spec.machines.python
    # Machines of one's own may or may not have GPUs: the set-up looks.
    lock = "" if spec.machines is not None else f" LOCK={lock_of(spec)}"
    nfs = [mount for mount in spec.storage if mount.nfs is not None]
    packages = f"make {python}-venv" + (" nfs-common" if nfs else "")
    install = (
        f"sudo apt-get {_APT} update -qq && "
        f"sudo DEBIAN_FRONTEND=noninteractive apt-get {_APT} install -y -qq {packages}"
    )
    found_later = (
        '\'export PATH="$HOME/rayline/.venv/bin:$PATH" RAY_AUTH_MODE=token '
        "RAY_USAGE_STATS_ENABLED=0'"
    )
    return [
        f"dpkg -s {packages} > /dev/null 2>&1 || ({install})",
        "chmod 600 ~/.ray/auth_token",
        *(_mounted(mount) for mount in nfs),
        f"cd ~/rayline && make setup PYTHON={python}{lock}",
        f"grep -q rayline/.venv {_BASHRC} || echo {found_later} >> {_BASHRC}",
    ]


def _mounted(mount: MountSpec) -> str:
    made = f"sudo mkdir -p {mount.path} && sudo mount -t nfs {mount.nfs} {mount.path}"
    return f"mountpoint -q {mount.path} || ({made})"


def _exported(environment: dict[str, str]) -> str:
    settings = " ".join(f'{name}="{value}"' for name, value in environment.items())
    first = next(iter(environment))
    return f"grep -q {first} {_BASHRC} || echo 'export {settings}' >> {_BASHRC}"


def _starts(spec: ClusterSpec) -> list[Section]:
    recovery = ""
    if spec.head_recovery is not None and spec.head_recovery.store == "rocksdb":
        recovery = "RAY_gcs_storage=rocksdb RAY_gcs_storage_path=$HOME/ray-control-store "
    redis = ""
    if spec.head_recovery is not None and spec.head_recovery.store == "redis":
        redis = f"RAY_REDIS_ADDRESS={spec.head_recovery.redis_address} "
    start = (
        f"export RAY_AUTH_MODE=token {recovery}{redis}".rstrip()
        + "; ulimit -n 65536; ray start --head --port=6379 --dashboard-host=127.0.0.1 "
        "--autoscaling-config=~/ray_bootstrap_config.yaml"
    )
    head = {"head_start_ray_commands": ["ray stop", start]}
    worker = {
        "worker_start_ray_commands": [
            "ray stop",
            "export RAY_AUTH_MODE=token; ulimit -n 65536; ray start --address=$RAY_HEAD_IP:6379",
        ]
    }
    comment = (
        "The dashboard and the job server listen on the head's loopback only; `ray dashboard` "
        "tunnels to them."
    )
    return [Section({**head, **worker}, comment)]
