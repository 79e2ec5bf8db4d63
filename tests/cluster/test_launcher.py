"""The files for `ray up`: Ray's own check, and what Ray's check lets pass."""

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "cluster").glob("*.yaml"))

# vCPUs and GPUs of every machine that the files rent, from the providers' own lists.
MACHINES = {
    "m7i.2xlarge": (8, 0),
    "g6.12xlarge": (48, 4),
    "p5.48xlarge": (192, 8),
    "n2-standard-8": (8, 0),
    "g2-standard-48": (48, 4),
    "a3-highgpu-8g": (208, 8),
    "Standard_D8s_v5": (8, 0),
    "Standard_NC24ads_A100_v4": (24, 1),
    "Standard_ND96isr_H100_v5": (96, 8),
}

# Ray takes any key under `provider`, so a typing error there would silently give a default.
PROVIDER_KEYS = {
    "aws": {"type", "region", "availability_zone", "cache_stopped_nodes"},
    "gcp": {"type", "region", "availability_zone", "project_id"},
    "azure": {
        "type",
        "location",
        "resource_group",
        "subscription_id",
        "availability_zone",
        "cache_stopped_nodes",
    },
    "local": {"type", "head_ip", "worker_ips"},
}


def machine_and_image(node_config: dict[str, Any]) -> tuple[str, str]:
    """The machine type and the image of one node type, whatever the provider calls them."""
    if "InstanceType" in node_config:
        return node_config["InstanceType"], node_config.get("ImageId", "")
    if "machineType" in node_config:
        disk = node_config["disks"][0]["initializeParams"]
        return node_config["machineType"], disk.get("sourceImage", "")
    azure = node_config["azure_arm_parameters"]
    version = azure.get("imageVersion", "latest")
    image = "" if version == "latest" else f"{azure.get('imageOffer')}:{version}"
    return azure["vmSize"], image


def node_problems(name: str, node: dict[str, Any]) -> list[str]:
    found = []
    lowest, highest = node.get("min_workers"), node.get("max_workers")
    if lowest is None or highest is None:
        found.append(f"{name}: min_workers and max_workers must both be written")
    elif lowest > highest:
        found.append(f"{name}: min_workers {lowest} is above max_workers {highest}")
    machine, image = machine_and_image(node["node_config"])
    resources = node["resources"]
    said = (resources.get("CPU", 0), resources.get("GPU", 0))
    if machine not in MACHINES:
        found.append(f"{name}: machine {machine} is not in the table")
    elif said != MACHINES[machine]:
        found.append(f"{name}: {machine} has (CPU, GPU) {MACHINES[machine]}, the file says {said}")
    if not image:
        found.append(f"{name}: no image is named, so Ray's default would be taken")
    return found


def problems(config: dict[str, Any]) -> list[str]:
    """What is wrong with a launcher file that Ray accepts; empty when nothing is."""
    kind = config["provider"]["type"]
    found = [f"provider.{key} is unknown" for key in set(config["provider"]) - PROVIDER_KEYS[kind]]
    if kind != "local":
        if "min_workers" in config:
            found.append("min_workers at the top is dropped: it belongs to a node type")
        nodes = config["available_node_types"]
        for name, node in nodes.items():
            found += node_problems(name, node)
        wanted = sum(node.get("max_workers", 0) for node in nodes.values())
        if wanted != config["max_workers"]:
            found.append(f"max_workers {config['max_workers']} is not the node types' sum {wanted}")
    docker_image = config.get("docker", {}).get("image", "none:pinned")
    if ":" not in docker_image or docker_image.endswith(":latest"):
        found.append(f"docker.image {docker_image} is not pinned")
    if not any("make setup" in command for command in config.get("setup_commands", [])):
        found.append("setup_commands do not install the lock, so Ray's defaults would")
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        for command in config.get(key, ["ray start"]):
            if "ray start" in command and "RAY_AUTH_MODE=token" not in command:
                found.append(f"{key}: starts Ray without token authentication")
    return found


def load(path: Path) -> dict[str, Any]:
    tree: dict[str, Any] = yaml.safe_load(path.read_text())
    return tree


def test_every_provider_has_a_file() -> None:
    assert {load(path)["provider"]["type"] for path in FILES} == set(PROVIDER_KEYS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
class TestFile:
    def test_ray_accepts_it(self, path: Path) -> None:
        prepared = prepare_config(copy.deepcopy(load(path)))
        validate_config(prepared)
        commands = prepared["setup_commands"] + prepared["worker_setup_commands"]
        assert not [command for command in commands if "ray-wheels" in command], "a nightly Ray"

    def test_nothing_is_left_to_defaults(self, path: Path) -> None:
        assert problems(load(path)) == []

    def test_the_first_lines_say_how_and_on_what(self, path: Path) -> None:
        command, hardware = path.read_text().splitlines()[:2]
        assert command.endswith(f"ray up cluster/{path.name}")
        assert "ray get-auth-token --generate" in command
        for node in load(path).get("available_node_types", {}).values():
            assert machine_and_image(node["node_config"])[0] in hardware

    def test_what_it_copies_exists(self, path: Path) -> None:
        for remote, local in load(path)["file_mounts"].items():
            assert local.startswith("~") or (ROOT / local).exists(), f"{remote}: {local}"

    def test_no_port_is_opened_beyond_the_head(self, path: Path) -> None:
        head = " ".join(load(path)["head_start_ray_commands"])
        assert "--dashboard-host=127.0.0.1" in head


def _broken(**changes: Any) -> dict[str, Any]:
    config = load(ROOT / "cluster" / "aws.yaml")
    for dotted, value in changes.items():
        *parents, last = dotted.split("__")
        here = config
        for parent in parents:
            here = here[parent]
        here[last] = value
    return config


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"available_node_types__gpu_l4__min_workers": 5}, "min_workers 5 is above max_workers 4"),
        ({"min_workers": 2}, "min_workers at the top is dropped"),
        ({"available_node_types__gpu_l4__resources": {"CPU": 48, "GPU": 8}}, "has (CPU, GPU)"),
        ({"provider__regoin": "eu-west-1"}, "provider.regoin is unknown"),
        ({"docker": {"image": "rayline:latest", "container_name": "x"}}, "is not pinned"),
        ({"setup_commands": []}, "Ray's defaults would"),
        ({"worker_start_ray_commands": ["ray start --address=x"]}, "without token authentication"),
        ({"max_workers": 60}, "is not the node types' sum"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_ray_lets_pass_is_found(changes: dict[str, Any], says: str) -> None:
    config = _broken(**changes)
    validate_config(prepare_config(copy.deepcopy(config)))
    assert any(says in problem for problem in problems(config))
