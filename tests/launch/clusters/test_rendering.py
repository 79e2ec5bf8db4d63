"""ClusterSpec to files: the numbers that must be right, and what is refused beforehand."""

import json
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from rayline.errors import SpecError
from rayline.launch.clusters import render, tree_of
from rayline.launch.clusters.catalogue import BY_NAME, group_machine
from rayline.launch.clusters.check import check
from rayline.launch.clusters.launcher import shares
from rayline.launch.clusters.pins import RAY_VERSION
from rayline.spec import ClusterSpec, NodeGroup

ROOT = Path(__file__).resolve().parents[3]
AWS: dict[str, Any] = {
    "name": "a",
    "provider": "aws",
    "cloud": {"region": "us-west-2"},
    "groups": [{"name": "g", "gpu": "L4", "gpus_per_node": 4, "max_nodes": 4}],
}
FAST_AWS: dict[str, Any] = {
    "name": "a",
    "provider": "aws",
    "cloud": {
        "region": "us-west-2",
        "subnet": "subnet-1",
        "head_subnet": "subnet-2",
        "security_group": "sg-1",
        "placement_group": "close",
    },
    "groups": [
        {
            "name": "g",
            "gpu": "H100",
            "gpus_per_node": 8,
            "max_nodes": 2,
            "fast_network": True,
        }
    ],
}
KUBERAY: dict[str, Any] = {
    "name": "a",
    "provider": "kuberay",
    "kubernetes": {},
    "groups": [
        {
            "name": "g",
            "gpu": "H100",
            "gpus_per_node": 8,
            "cpus_per_node": 64,
            "memory_gib_per_node": 512,
            "max_nodes": 4,
        }
    ],
}


def spec_of(tree: dict[str, Any], **changes: Any) -> ClusterSpec:
    return ClusterSpec.parse({**tree, **changes})


def test_the_pinned_ray_is_the_locked_and_the_projects() -> None:
    lock = (ROOT / "cluster" / "requirements" / "gpu.txt").read_text()
    assert re.search(rf"^ray==({re.escape(RAY_VERSION)})\b", lock, re.M)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f"ray[default,train]=={RAY_VERSION}" in project["optional-dependencies"]["train"]


@given(
    most=st.integers(1, 200),
    kept=st.floats(0, 1),
    share=st.floats(0, 1),
)
def test_spot_and_lasting_nodes_are_all_the_nodes(most: int, kept: float, share: float) -> None:
    group = NodeGroup(name="g", min_nodes=int(kept * most), max_nodes=most, spot_share=share)
    parts = shares(group)
    assert sum(part[3] for part in parts) == most
    assert sum(part[2] for part in parts) == group.min_nodes
    assert all(0 <= least <= highest for _, _, least, highest in parts)
    spot = sum(highest for _, is_spot, _, highest in parts if is_spot)
    assert abs(spot - most * share) <= 0.5


@pytest.mark.parametrize(
    ("machine", "gpu", "cards"),
    [("p5.48xlarge", "H100", 32), ("p5en.48xlarge", "H200", 16), ("p4d.24xlarge", "A100", 4)],
)
def test_every_efa_card_has_one_interface_and_the_first_carries_ip(
    machine: str, gpu: str, cards: int
) -> None:
    group = {**FAST_AWS["groups"][0], "machine": machine, "gpu": gpu}
    types = tree_of(spec_of(FAST_AWS, groups=[group]))["available_node_types"]
    config = types["g"]["node_config"]
    interfaces = config["NetworkInterfaces"]
    assert [each["NetworkCardIndex"] for each in interfaces] == list(range(cards))
    assert [each["InterfaceType"] for each in interfaces] == ["efa"] + ["efa-only"] * (cards - 1)
    assert [each["DeviceIndex"] for each in interfaces] == [0] + [1] * (cards - 1)
    assert all(each["SubnetId"] == "subnet-1" for each in interfaces)
    assert all(each["Groups"] == ["sg-1"] for each in interfaces)
    assert config["Placement"] == {"GroupName": "close"}
    assert "SubnetIds" not in config
    # The head reaches the workers: same group, its own public subnet.
    head = types["head"]["node_config"]
    assert (head["SubnetIds"], head["SecurityGroupIds"]) == (["subnet-2"], ["sg-1"])
    commands = types["g"]["worker_setup_commands"]
    assert any("make setup" in each for each in commands)
    assert 'FI_PROVIDER="efa"' in commands[-1]


def test_ray_itself_takes_the_interfaces() -> None:
    from ray.autoscaler._private.aws.config import _configure_from_network_interfaces

    made = _configure_from_network_interfaces(tree_of(spec_of(FAST_AWS)))
    assert made["available_node_types"]["g"]["node_config"]["SubnetIds"] == ["subnet-1"] * 32


def test_the_setting_is_written_once_however_often_the_nodes_are_set_up(tmp_path: Path) -> None:
    tree = tree_of(spec_of(FAST_AWS))
    command = tree["available_node_types"]["g"]["worker_setup_commands"][-1]
    for _ in range(2):
        subprocess.run(
            ["bash", "-c", f"touch ~/.bashrc; {command}"], env={"HOME": str(tmp_path)}, check=True
        )
    lines = (tmp_path / ".bashrc").read_text().splitlines()
    assert len(lines) == 1
    told = subprocess.run(
        ["bash", "-c", ". ~/.bashrc; echo $FI_PROVIDER $NCCL_SOCKET_IFNAME"],
        env={"HOME": str(tmp_path)},
        check=True,
        capture_output=True,
        text=True,
    )
    assert told.stdout.split() == ["efa", "^lo,docker,veth"]


def test_spot_is_asked_for_and_labelled_on_every_cloud() -> None:
    group = {"name": "g", "gpu": "A100", "gpus_per_node": 8, "max_nodes": 2, "spot_share": 1.0}
    clouds = {
        "aws": {"region": "us-west-2"},
        "gcp": {"region": "us-central1", "zones": ["us-central1-a"], "project_id": "p"},
        "azure": {"region": "eastus", "subscription_id": "s", "resource_group": "r"},
    }
    for provider, cloud in clouds.items():
        spec = spec_of(AWS, provider=provider, cloud=cloud, groups=[group])
        tree = tree_of(spec)
        assert set(tree["available_node_types"]) == {"head", "g-spot"}
        assert tree["available_node_types"]["g-spot"]["labels"] == {"ray.io/market-type": "spot"}
        assert check(tree) == []


def test_shared_storage_is_mounted_before_anything_runs() -> None:
    mount = {"path": "/mnt/shared", "nfs": "fs-1.efs.us-west-2.amazonaws.com:/"}
    commands = tree_of(spec_of(AWS, storage=[mount]))["setup_commands"]
    assert "nfs-common" in commands[0]
    assert any("mount -t nfs fs-1.efs.us-west-2.amazonaws.com:/ /mnt/shared" in c for c in commands)
    pod = tree_of(spec_of(KUBERAY, storage=[mount]))["spec"]["headGroupSpec"]["template"]["spec"]
    assert pod["volumes"][0]["nfs"] == {"server": "fs-1.efs.us-west-2.amazonaws.com", "path": "/"}
    assert pod["containers"][0]["volumeMounts"][0]["mountPath"] == "/mnt/shared"


def test_gpudirect_on_gke_has_a_card_a_gpu_and_nccls_settings() -> None:
    group = {**KUBERAY["groups"][0], "gpu": "H200", "machine": "a3-ultragpu-8g"}
    group["fast_network"] = True
    tree = tree_of(spec_of(KUBERAY, kubernetes={"flavor": "gke"}, groups=[group]))
    template = tree["spec"]["workerGroupSpecs"][0]["template"]
    cards = json.loads(template["metadata"]["annotations"]["networking.gke.io/interfaces"])
    assert [card["network"] for card in cards] == ["default", *(f"rdma-{n}" for n in range(8))]
    assert len({card["interfaceName"] for card in cards}) == 9
    container = template["spec"]["containers"][0]
    environment = {each["name"]: each["value"] for each in container["env"]}
    assert environment["BASH_ENV"].endswith("set_nccl_env.sh")
    assert {each["mountPath"] for each in container["volumeMounts"]} >= {
        "/usr/local/gib",
        "/usr/local/nvidia",
        "/dev/shm",
    }


def test_bash_reads_what_a_pod_names_before_the_command_of_kuberay(tmp_path: Path) -> None:
    settings = tmp_path / "set_nccl_env.sh"
    settings.write_text("export NCCL_NET=gIB\n")
    for shell in (["bash", "-c", "--"], ["bash", "-lc", "--"]):
        told = subprocess.run(
            [*shell, "ulimit -n; echo $NCCL_NET"],
            env={"BASH_ENV": str(settings), "PATH": "/usr/bin:/bin"},
            capture_output=True,
            text=True,
            check=True,
        )
        assert told.stdout.split()[-1] == "gIB"


def test_efa_on_eks_is_asked_for_in_requests_and_limits() -> None:
    group = {**KUBERAY["groups"][0], "machine": "p5.48xlarge", "fast_network": True}
    tree = tree_of(spec_of(KUBERAY, kubernetes={"flavor": "eks"}, groups=[group]))
    resources = tree["spec"]["workerGroupSpecs"][0]["template"]["spec"]["containers"][0][
        "resources"
    ]
    for part in ("requests", "limits"):
        assert resources[part]["vpc.amazonaws.com/efa"] == "32"
        assert resources[part]["hugepages-2Mi"] == "5120Mi"
        assert resources[part]["nvidia.com/gpu"] == "8"


def test_kueue_and_volcano_are_labels() -> None:
    fixed = [{**KUBERAY["groups"][0], "min_nodes": 4}]
    queued = tree_of(spec_of(KUBERAY, kubernetes={"queue": "q"}, groups=fixed))
    assert queued["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "q"}
    assert "enableInTreeAutoscaling" not in queued["spec"]
    gang = {"gang_scheduler": "volcano", "gang_queue": "q"}
    labels = tree_of(spec_of(KUBERAY, kubernetes=gang))["metadata"]["labels"]
    assert labels["ray.io/gang-scheduling-enabled"] == "true"
    assert labels["volcano.sh/queue-name"] == "q"


def test_token_secret_and_head_recovery() -> None:
    spec = spec_of(
        KUBERAY,
        kubernetes={"auth_secret": "secret"},
        head_recovery={"store": "redis", "redis_address": "redis:6379", "redis_secret": "r"},
    )
    cluster = tree_of(spec)["spec"]
    assert cluster["authOptions"] == {"mode": "token", "secretName": "secret"}
    options = cluster["gcsFaultToleranceOptions"]
    assert options["backend"] == "redis"
    assert options["redisPassword"]["valueFrom"]["secretKeyRef"] == {"name": "r", "key": "password"}
    head = tree_of(spec_of(AWS, head_recovery={"store": "rocksdb"}))["head_start_ray_commands"][-1]
    assert "RAY_gcs_storage=rocksdb RAY_gcs_storage_path=$HOME/ray-control-store;" in head


@pytest.mark.parametrize(
    ("tree", "changes", "field", "says"),
    [
        (AWS, {"groups": []}, "spec", "no groups"),
        (AWS, {"cloud": None}, "spec", "needs the section cloud"),
        (AWS, {"kubernetes": {}}, "spec", "kubernetes is not for provider aws"),
        (AWS, {"token": False}, "spec", "only for provider fake"),
        (AWS, {"provider": "gcp"}, "spec", "cloud.project_id"),
        (AWS, {"provider": "azure"}, "spec", "cloud.subscription_id"),
        (AWS, {"groups": AWS["groups"] * 2}, "spec", "bear one name"),
        (AWS, {"provider": "aw"}, "provider", "'aws'"),
        (
            AWS,
            {"groups": [{**AWS["groups"][0], "min_nodes": 9}]},
            "groups.0",
            "min_nodes 9 is above max_nodes 4",
        ),
        (
            AWS,
            {"groups": [{"name": "g", "gpu": "L4", "max_nodes": 1}]},
            "groups.0",
            "come together",
        ),
        (
            AWS,
            {"groups": [{**AWS["groups"][0], "gpus": 4}]},
            "groups.0.gpus",
            "unknown key",
        ),
        (
            KUBERAY,
            {"kubernetes": {"queue": "q", "gang_scheduler": "volcano"}},
            "kubernetes",
            "exclude each other",
        ),
    ],
)
def test_a_spec_that_cannot_be_is_refused(
    tree: dict[str, Any], changes: dict[str, Any], field: str, says: str
) -> None:
    with pytest.raises(SpecError) as wrong:
        spec_of(tree, **changes)
    assert wrong.value.subject == field
    assert says in str(wrong.value)


@pytest.mark.parametrize(
    ("tree", "changes", "field", "fix"),
    [
        (
            AWS,
            {"groups": [{"name": "g", "gpu": "H100", "gpus_per_node": 4, "max_nodes": 1}]},
            "groups.0",
            "name a machine",
        ),
        (
            AWS,
            {"groups": [{**AWS["groups"][0], "machine": "g6.13xlarge"}]},
            "groups.0.machine",
            "take one of these",
        ),
        (
            AWS,
            {"groups": [{**AWS["groups"][0], "machine": "p5.48xlarge"}]},
            "groups.0.gpus_per_node",
            "set gpu: H100 and gpus_per_node: 8",
        ),
        (
            AWS,
            {"groups": [{**AWS["groups"][0], "cpus_per_node": 8}]},
            "groups.0.cpus_per_node",
            "remove it",
        ),
        (AWS, {"head": {"machine": "tiny"}}, "head.machine", "take one of these"),
        (
            AWS,
            {"groups": [{**AWS["groups"][0], "fast_network": True}]},
            "groups.0.fast_network",
            "fast_network: false",
        ),
        (
            FAST_AWS,
            {"cloud": {"region": "us-west-2", "subnet": "subnet-1"}},
            "cloud.head_subnet",
            "set cloud.head_subnet",
        ),
        (KUBERAY, {"kubernetes": {"queue": "q"}}, "groups.0.min_nodes", "set min_nodes: 4"),
        (
            KUBERAY,
            {"groups": [{**KUBERAY["groups"][0], "fast_network": True}]},
            "groups.0.fast_network",
            "fast_network: false",
        ),
    ],
)
def test_what_is_not_to_be_had_is_refused_with_its_fix(
    tree: dict[str, Any], changes: dict[str, Any], field: str, fix: str
) -> None:
    with pytest.raises(SpecError) as wrong:
        tree_of(spec_of(tree, **changes))
    assert wrong.value.subject == field
    assert fix in wrong.value.fix


@given(
    provider=st.sampled_from(["aws", "azure", "gcp", "kuberay", "fake"]),
    machine=st.sampled_from(sorted(name for name, each in BY_NAME.items() if each.gpus)),
    counts=st.tuples(st.integers(0, 8), st.integers(1, 8)),
    share=st.floats(0, 1),
    idle=st.floats(0.1, 600),
    autoscaler=st.sampled_from(["v1", "v2"]),
)
def test_whatever_is_rendered_passes_the_check(
    provider: str,
    machine: str,
    counts: tuple[int, int],
    share: float,
    idle: float,
    autoscaler: str,
) -> None:
    found = BY_NAME[machine]
    group = {
        "name": "g",
        "gpu": found.gpu,
        "gpus_per_node": found.gpus,
        "min_nodes": min(counts),
        "max_nodes": max(counts),
        "spot_share": share,
    }
    clouds = {"aws": "us-west-2", "azure": "eastus", "gcp": "us-central1"}
    account = {"project_id": "p", "subscription_id": "s", "resource_group": "r"}
    tree: dict[str, Any] = {"name": "a", "provider": provider, "groups": [group]}
    tree |= {"idle_timeout_minutes": idle, "autoscaler": autoscaler}
    if provider in clouds:
        zones = ["us-central1-a"] if provider == "gcp" else []
        tree["cloud"] = {"region": clouds[provider], "zones": zones, **account}
    if provider == "kuberay":
        tree["kubernetes"] = {}
    spec = ClusterSpec.parse(tree)
    if provider in clouds:
        try:
            group_machine(spec, 0)
        except SpecError:
            return  # another cloud's
    text = render(spec, "cluster/a.yaml", "cluster/specs/a.yaml")
    read = yaml.load(text, yaml.CSafeLoader)
    assert read == tree_of(spec)
    assert check(read) == []
