"""Broken cluster files: each found with its place and its fix; Ray's own validator misses many."""

import contextlib
import copy
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from rayline.errors import SpecError
from rayline.launch.clusters.check import check, check_file

ROOT = Path(__file__).resolve().parents[3]
Tree = dict[str, Any]
DROP = object()
"""Stands for: take this key away."""
L4 = "available_node_types.gpu-l4"
H100 = "available_node_types.gpu-h100"
WORKERS = "spec.workerGroupSpecs.0"
JOB_WORKERS = "spec.rayClusterSpec.workerGroupSpecs.0"
CONTAINER = f"{WORKERS}.template.spec.containers.0"
HEAD_CONTAINER = "spec.headGroupSpec.template.spec.containers.0"

# kind, file, place that is edited, what is put there, the field that is named, part of the fix
LAUNCHER = [
    ("unknown-key", "aws.yaml", "max_worker", 4, "max_worker", "'max_workers'"),
    ("missing-key", "aws.yaml", "cluster_name", DROP, "cluster_name", "give cluster_name"),
    ("unknown-key", "aws.yaml", "provider.regoin", "eu-west-1", "provider.regoin", "'region'"),
    ("provider-type", "aws.yaml", "provider.type", "asw", "provider.type", "'aws'"),
    ("no-region", "aws.yaml", "provider.region", DROP, "provider.region", "provider.region"),
    (
        "zone-of-another-region",
        "aws.yaml",
        "provider.availability_zone",
        "us-east-1a",
        "provider.availability_zone",
        "us-west-2",
    ),
    (
        "stopped-nodes-kept",
        "aws.yaml",
        "provider.cache_stopped_nodes",
        DROP,
        "provider.cache_stopped_nodes",
        "false",
    ),
    ("no-project", "gcp.yaml", "provider.project_id", DROP, "provider.project_id", "project's id"),
    (
        "placeholder",
        "gcp.yaml",
        "provider.project_id",
        "your-project-id",
        "provider.project_id",
        "your own",
    ),
    ("min-workers-at-top", "aws.yaml", "min_workers", 2, "min_workers", "available_node_types"),
    ("idle-timeout", "aws.yaml", "idle_timeout_minutes", 0, "idle_timeout_minutes", "10"),
    ("max-workers-sum", "aws.yaml", "max_workers", 60, "max_workers", "max_workers: 4"),
    ("fewer-than-kept", "aws.yaml", f"{L4}.min_workers", 90, "max_workers", "max_workers: 4"),
    ("no-max-workers", "aws.yaml", "max_workers", DROP, "max_workers", "max_workers: 4"),
    ("head-type", "aws.yaml", "head_node_type", "haed", "head_node_type", "head"),
    ("count-not-said", "aws.yaml", f"{L4}.max_workers", DROP, f"{L4}.max_workers", "max_workers"),
    ("min-above-max", "aws.yaml", f"{L4}.min_workers", 3, f"{L4}.min_workers", "lower it to 2"),
    (
        "head-as-worker",
        "aws.yaml",
        "available_node_types.head.max_workers",
        2,
        "available_node_types.head.max_workers",
        "max_workers: 0",
    ),
    ("resource-amount", "aws.yaml", f"{L4}.resources.GPU", "4", f"{L4}.resources.GPU", "quotes"),
    ("gpu-count", "aws.yaml", f"{L4}.resources.GPU", 8, f"{L4}.resources.GPU", "GPU: 4"),
    ("cpu-count", "aws.yaml", f"{L4}.resources.CPU", 96, f"{L4}.resources.CPU", "CPU: 48"),
    (
        "machine-misspelt",
        "aws.yaml",
        f"{L4}.node_config.InstanceType",
        "g6.12xlagre",
        f"{L4}.node_config.InstanceType",
        "'g6.12xlarge'",
    ),
    (
        "machine-of-another-cloud",
        "gcp.yaml",
        f"{L4}.node_config.machineType",
        "g6.12xlarge",
        f"{L4}.node_config.machineType",
        "machine of gcp",
    ),
    ("no-image", "aws.yaml", f"{L4}.node_config.ImageId", DROP, f"{L4}.node_config", "image"),
    (
        "no-image",
        "azure.yaml",
        "available_node_types.gpu-a100.node_config.azure_arm_parameters.imageVersion",
        "latest",
        "available_node_types.gpu-a100.node_config",
        "image",
    ),
    (
        "market-label",
        "aws.yaml",
        f"{L4}-spot.node_config.InstanceMarketOptions",
        DROP,
        f"{L4}-spot.labels",
        "spot",
    ),
    (
        "gcp-maintenance",
        "gcp.yaml",
        f"{L4}.node_config.scheduling",
        DROP,
        f"{L4}.node_config.scheduling",
        "TERMINATE",
    ),
    (
        "efa-count",
        "aws-h100.yaml",
        f"{H100}.node_config.NetworkInterfaces.31",
        DROP,
        f"{H100}.node_config.NetworkInterfaces",
        "0 to 31",
    ),
    (
        "efa-no-placement-group",
        "aws-h100.yaml",
        f"{H100}.node_config.Placement",
        DROP,
        f"{H100}.node_config.Placement.GroupName",
        "placement group",
    ),
    (
        "interface-incomplete",
        "aws-h100.yaml",
        f"{H100}.node_config.NetworkInterfaces.7.Groups",
        DROP,
        f"{H100}.node_config.NetworkInterfaces[7].Groups",
        "give Groups",
    ),
    (
        "subnet-twice",
        "aws-h100.yaml",
        f"{H100}.node_config.SubnetIds",
        ["subnet-0123"],
        f"{H100}.node_config",
        "in the interfaces only",
    ),
    (
        "image-not-pinned",
        "aws.yaml",
        "docker",
        {"image": "rayproject/ray:latest", "container_name": "ray"},
        "docker.image",
        "rayproject/ray:2.60.0",
    ),
    ("nightly-by-default", "aws.yaml", "setup_commands", DROP, "setup_commands", "write them"),
    (
        "nightly",
        "aws.yaml",
        "setup_commands",
        ["pip install -U https://s3.amazonaws.com/ray-wheels/latest/ray-3.0.0.dev0.whl"],
        "setup_commands[0]",
        "ray==2.60.0",
    ),
    (
        "ray-not-pinned",
        "aws.yaml",
        "setup_commands",
        ["pip install -U 'ray[default]'"],
        "setup_commands[0]",
        "ray==2.60.0",
    ),
    (
        "another-ray",
        "aws.yaml",
        "setup_commands",
        ["pip install ray[default]==2.9.0"],
        "setup_commands[0]",
        "ray==2.60.0",
    ),
    (
        "no-token",
        "aws.yaml",
        "worker_start_ray_commands",
        ["ray start --address=$RAY_HEAD_IP:6379"],
        "worker_start_ray_commands",
        "RAY_AUTH_MODE=token",
    ),
    (
        "no-start",
        "aws.yaml",
        "head_start_ray_commands",
        ["ray stop"],
        "head_start_ray_commands",
        "ray start",
    ),
    (
        "no-autoscaling-config",
        "aws.yaml",
        "head_start_ray_commands",
        ["export RAY_AUTH_MODE=token; ray start --head"],
        "head_start_ray_commands",
        "ray_bootstrap_config.yaml",
    ),
    (
        "dashboard-open",
        "aws.yaml",
        "head_start_ray_commands",
        ["export RAY_AUTH_MODE=token; ray start --head --dashboard-host=0.0.0.0"],
        "head_start_ray_commands",
        "127.0.0.1",
    ),
    (
        "worker-without-head",
        "aws.yaml",
        "worker_start_ray_commands",
        ["export RAY_AUTH_MODE=token; ray start --address=auto"],
        "worker_start_ray_commands",
        "$RAY_HEAD_IP",
    ),
    (
        "token-stays-here",
        "aws.yaml",
        "file_mounts",
        {"~/rayline/platform": "platform"},
        "file_mounts",
        "~/.ray/auth_token",
    ),
    (
        "mounts-everything",
        "aws.yaml",
        "file_mounts.~/rayline/all",
        ".",
        "file_mounts.~/rayline/all",
        "what the nodes need",
    ),
    (
        "nothing-to-mount",
        "aws.yaml",
        "file_mounts.~/rayline/platfrom",
        "platfrom",
        "file_mounts.~/rayline/platfrom",
        "path",
    ),
    (
        "head-among-workers",
        "on-premises.yaml",
        "provider.head_ip",
        "192.168.0.11",
        "provider.worker_ips",
        "remove it",
    ),
    (
        "address-twice",
        "on-premises.yaml",
        "provider.worker_ips",
        ["192.168.0.11", "192.168.0.11"],
        "provider.worker_ips",
        "keep one",
    ),
    (
        "own-machines-count",
        "on-premises.yaml",
        "max_workers",
        1,
        "max_workers",
        "max_workers: 2",
    ),
    (
        "no-address",
        "on-premises.yaml",
        "provider.worker_ips",
        [],
        "provider.worker_ips",
        "give it",
    ),
    (
        "node-types-on-premises",
        "on-premises.yaml",
        "available_node_types",
        {"worker": {"resources": {}, "node_config": {}}},
        "available_node_types",
        "remove it",
    ),
]

MANIFEST = [
    ("api-version", "apiVersion", "ray.io/v1alpha1", "apiVersion", "ray.io/v1"),
    ("kind", "kind", "RayClsuter", "kind", "'RayCluster'"),
    ("unknown-key", "spec.workerGroupSpec", [], "spec.workerGroupSpec", "'workerGroupSpecs'"),
    ("unknown-key", f"{WORKERS}.minReplica", 1, "workerGroupSpecs[0].minReplica", "'minReplicas'"),
    ("ray-version", "spec.rayVersion", "2.9.0", "spec.rayVersion", "2.60.0"),
    ("no-token", "spec.authOptions", DROP, "spec.authOptions.mode", "mode: token"),
    (
        "no-autoscaler",
        "spec.enableInTreeAutoscaling",
        DROP,
        "spec.enableInTreeAutoscaling",
        "true",
    ),
    (
        "autoscaler-version",
        "spec.autoscalerOptions.version",
        DROP,
        "spec.autoscalerOptions.version",
        "v2",
    ),
    ("replicas-not-said", f"{WORKERS}.maxReplicas", DROP, "[0].maxReplicas", "maxReplicas"),
    ("min-above-max", f"{WORKERS}.minReplicas", 9, "[0].minReplicas", "lower it to 4"),
    ("replicas-out-of-range", f"{WORKERS}.replicas", 7, "[0].replicas", "replicas: 4"),
    ("group-twice", f"{WORKERS}.groupName", "cpu", "[1].groupName", "rename"),
    ("two-images", f"{CONTAINER}.image", "rayline:9-ray2.60.0-gpu", "[0].image", "image: rayline"),
    ("image-not-pinned", f"{CONTAINER}.image", "rayline:latest", "[0].image", "name a tag"),
    ("another-ray", f"{CONTAINER}.image", "rayproject/ray:2.9.0", "[0].image", "2.60.0"),
    ("start-parameter", f"{WORKERS}.rayStartParams.num-cpus", 8, "num-cpus", '"8"'),
    (
        "work-on-head",
        "spec.headGroupSpec.rayStartParams.num-cpus",
        DROP,
        "headGroupSpec.rayStartParams.num-cpus",
        '"0"',
    ),
    (
        "dashboard-unreachable",
        "spec.headGroupSpec.rayStartParams.dashboard-host",
        DROP,
        "dashboard-host",
        "0.0.0.0",
    ),
    ("quantity", f"{CONTAINER}.resources.limits.memory", "512GB", "limits.memory", "32Gi"),
    ("memory-not-said", f"{CONTAINER}.resources.limits.memory", DROP, "limits.memory", "memory"),
    (
        "requests-not-limits",
        f"{CONTAINER}.resources.requests.memory",
        "1Gi",
        "requests.memory",
        "512Gi in both",
    ),
    (
        "device-without-limit",
        f"{CONTAINER}.resources.limits.nvidia~com/gpu",
        DROP,
        "limits.nvidia.com/gpu",
        "nvidia.com/gpu: 8",
    ),
    ("gpu-count", f"{WORKERS}.rayStartParams.num-gpus", "4", "num-gpus", "remove it"),
    ("shared-memory", f"{CONTAINER}.volumeMounts", DROP, "volumes", "/dev/shm"),
    ("no-toleration", f"{WORKERS}.template.spec.tolerations", DROP, "tolerations", "NoSchedule"),
    (
        "gpu-on-head",
        f"{HEAD_CONTAINER}.resources.limits.nvidia~com/gpu",
        "1",
        "headGroupSpec",
        "remove",
    ),
    ("port-missing", f"{HEAD_CONTAINER}.ports.1", DROP, "ports", "8265"),
    (
        "recovery-without-store",
        "spec.gcsFaultToleranceOptions",
        {"backend": "redis"},
        "redisAddress",
        "host:port",
    ),
    (
        "queue-and-scaling",
        "metadata.labels",
        {"kueue.x-k8s.io/queue-name": "q"},
        "enableInTreeAutoscaling",
        "false",
    ),
    ("gang-not-asked", "metadata.labels", {"volcano.sh/queue-name": "q"}, "labels", "gang"),
]
OTHER_MANIFESTS = [
    ("efa-count", "eks-h100", f"{CONTAINER}.resources.limits.vpc~amazonaws~com/efa", "4", "32"),
    ("efa-huge-pages", "eks-h100", f"{CONTAINER}.resources.limits.hugepages-2Mi", DROP, "5120Mi"),
    ("gpu-count", "eks-h100", f"{CONTAINER}.resources.limits.nvidia~com/gpu", "16", "gpu: 8"),
    (
        "gke-interfaces",
        "gke-h200",
        f"{JOB_WORKERS}.template.metadata.annotations.networking~gke~io/interfaces",
        "eth0, eth1",
        "interfaceName",
    ),
    ("queue-never-left", "gke-h200", "spec.shutdownAfterJobFinishes", False, "true"),
    ("cluster-outlives-job", "rayjob", "spec.shutdownAfterJobFinishes", DROP, "true"),
    ("missing-key", "rayjob", "spec.entrypoint", DROP, "command"),
    ("serve-config", "rayservice", "spec.serveConfigV2", "applications: [", "YAML"),
    (
        "too-few-gpus",
        "rayservice",
        "spec.rayClusterConfig.workerGroupSpecs.0.maxReplicas",
        2,
        "maxReplicas",
    ),
]


def edited(tree: Tree, dotted: str, value: object) -> Tree:
    """The tree with one place changed; ~ stands for a dot within a key."""
    made = copy.deepcopy(tree)
    *parents, last = [part.replace("~", ".") for part in _parts(dotted)]
    here: Any = made
    for part in parents:
        here = here[int(part)] if isinstance(here, list) else here.setdefault(part, {})
    if value is DROP:
        del here[int(last) if isinstance(here, list) else last]
    else:
        here[int(last) if isinstance(here, list) else last] = value
    return made


def _parts(dotted: str) -> list[str]:
    """A path of file_mounts begins with ~, which is no dot."""
    if dotted.startswith("file_mounts."):
        return ["file_mounts", dotted.removeprefix("file_mounts.").replace("~/", "~/", 1)]
    return dotted.split(".")


def exists(local: str) -> bool:
    return (ROOT / local).exists()


def ray_accepts(tree: Tree) -> bool:
    """Whether Ray's own validator lets a `ray up` file pass. What it prints is not looked at."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            validate_config(prepare_config(copy.deepcopy(tree)))
        except (Exception, SystemExit):
            return False
    return True


def mount_edited(tree: Tree, place: str, value: object) -> Tree:
    made = copy.deepcopy(tree)
    made["file_mounts"][place.removeprefix("file_mounts.")] = value
    return made


def broken(tree: Tree, place: str, value: object) -> Tree:
    if place.startswith("file_mounts."):
        return mount_edited(tree, place, value)
    return edited(tree, place, value)


@pytest.mark.parametrize(
    ("kind", "file", "place", "value", "field", "fix"),
    LAUNCHER,
    ids=[f"{case[0]}-{case[2]}" for case in LAUNCHER],
)
def test_a_broken_launcher_file_is_found_with_its_fix(
    rendered: Callable[[str], Tree],
    kind: str,
    file: str,
    place: str,
    value: object,
    field: str,
    fix: str,
) -> None:
    tree = rendered(file)
    assert check(tree, exists) == []
    found = [flaw for flaw in check(broken(tree, place, value), exists) if flaw.kind == kind]
    assert any(field == flaw.field and fix in flaw.fix for flaw in found), found


@pytest.mark.parametrize(
    ("kind", "place", "value", "field", "fix"),
    MANIFEST,
    ids=[f"{case[0]}-{case[1]}" for case in MANIFEST],
)
def test_a_broken_manifest_is_found_with_its_fix(
    rendered: Callable[[str], Tree], kind: str, place: str, value: object, field: str, fix: str
) -> None:
    tree = rendered("kuberay/raycluster.yaml")
    assert check(tree) == []
    found = [flaw for flaw in check(edited(tree, place, value)) if flaw.kind == kind]
    assert any(field in flaw.field and fix in flaw.fix for flaw in found), found


@pytest.mark.parametrize(
    ("kind", "file", "place", "value", "fix"),
    OTHER_MANIFESTS,
    ids=[f"{case[0]}-{case[1]}" for case in OTHER_MANIFESTS],
)
def test_jobs_services_and_fast_networks_too(
    rendered: Callable[[str], Tree], kind: str, file: str, place: str, value: object, fix: str
) -> None:
    tree = rendered(f"kuberay/{file}.yaml")
    assert check(tree) == []
    found = [flaw for flaw in check(edited(tree, place, value)) if flaw.kind == kind]
    assert any(fix in flaw.fix for flaw in found), found


def test_the_gateway_must_stand_in_front(rendered: Callable[[str], Tree]) -> None:
    tree = rendered("kuberay/rayservice.yaml")
    config = yaml.safe_load(tree["spec"]["serveConfigV2"])
    config["applications"] = config["applications"][1:]
    config["proxy_location"] = "EveryNode"
    tree["spec"]["serveConfigV2"] = yaml.safe_dump(config)
    assert {flaw.kind for flaw in check(tree)} == {"no-front", "proxy-location"}


def test_enough_kinds_are_known_and_ray_misses_many(rendered: Callable[[str], Tree]) -> None:
    kinds = {case[0] for case in [*LAUNCHER, *MANIFEST, *OTHER_MANIFESTS]}
    assert len(kinds) >= 60
    missed = {
        kind
        for kind, file, place, value, *_ in LAUNCHER
        if ray_accepts(broken(rendered(file), place, value))
    }
    found_by_ray = {case[0] for case in LAUNCHER} - missed
    # Were all accepted, the validator would not have run.
    assert {"fewer-than-kept", "provider-type", "resource-amount"} <= found_by_ray
    assert len(missed) >= 30, sorted(missed)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("cluster_name: a\ncluster_name: b\nprovider: {type: aws}\n", "stands twice"),
        ("cluster_name: [\n", "not readable as YAML"),
        ("name: x\nsteps: 3\n", "neither a file for `ray up` nor a KubeRay manifest"),
        ("kind: RayCluster\n---\nkind: RayJob\n", "several documents"),
        ("- a\n- b\n", "no mapping"),
    ],
)
def test_a_file_that_is_none_is_refused(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text(text)
    with pytest.raises(SpecError, match=says):
        check_file(file, tmp_path)


def _places(tree: object, prefix: tuple[object, ...] = ()) -> Iterator[tuple[object, ...]]:
    if prefix:
        yield prefix
    items: Any = ()
    if isinstance(tree, dict):
        items = tree.items()
    elif isinstance(tree, list):
        items = enumerate(tree)
    for key, below in items:
        yield from _places(below, (*prefix, key))


@given(data=st.data())
@pytest.mark.parametrize("file", ["aws-h100.yaml", "on-premises.yaml", "kuberay/rayservice.yaml"])
def test_whatever_stands_anywhere_no_check_stumbles(
    rendered: Callable[[str], Tree], file: str, data: st.DataObject
) -> None:
    tree = rendered(file)
    *parents, last = data.draw(st.sampled_from(list(_places(tree))))
    here: Any = tree
    for part in parents:
        here = here[part]
    here[last] = data.draw(
        st.sampled_from([None, 0, -1, 1.5, True, "", "x", [], [None], {}, {"x": 1}, [["y"]]])
    )
    for flaw in check(tree):
        assert flaw.kind
        assert flaw.field
        assert flaw.problem
        assert flaw.fix
        assert flaw.fix in flaw.text
