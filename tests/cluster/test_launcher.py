"""The files for `ray up`: Ray's own check, ours, and the specs that they are rendered from."""

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from rayline.launch.clusters import render, target_name
from rayline.launch.clusters.check import check_file
from rayline.launch.clusters.check.nodes import machine_and_image
from rayline.spec import ClusterSpec

ROOT = Path(__file__).resolve().parents[2]
SPECS = sorted((ROOT / "cluster" / "specs").glob("*.yaml"))
NEEDS_FILLING = {"aws-h100", "gcp", "azure"}
FILES = sorted(path for path in (ROOT / "cluster").glob("*.yaml") if path.stem != "fake")


def load(path: Path) -> dict[str, Any]:
    tree: dict[str, Any] = yaml.safe_load(path.read_text())
    return tree


def test_every_provider_has_a_file() -> None:
    assert {load(path)["provider"]["type"] for path in FILES} == {"aws", "gcp", "azure", "local"}


@pytest.mark.parametrize("source", SPECS, ids=lambda path: path.stem)
def test_a_file_is_what_its_spec_renders(source: Path) -> None:
    spec = ClusterSpec.load(source)
    file = ROOT / "cluster" / target_name(spec, source.stem)
    text = render(
        spec, f"cluster/{file.relative_to(ROOT / 'cluster')}", f"cluster/specs/{source.name}"
    )
    assert file.read_text() == text, "make render writes the files anew"


def test_no_file_is_without_a_spec() -> None:
    rendered = {target_name(ClusterSpec.load(source), source.stem) for source in SPECS}
    folder = ROOT / "cluster"
    found = {str(path.relative_to(folder)) for path in folder.glob("*.yaml")}
    found |= {str(path.relative_to(folder)) for path in folder.glob("kuberay/*.yaml")}
    assert found == rendered


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
class TestFile:
    def test_ray_accepts_it(self, path: Path) -> None:
        prepared = prepare_config(copy.deepcopy(load(path)))
        validate_config(prepared)
        commands = prepared["setup_commands"] + prepared["worker_setup_commands"]
        assert not [command for command in commands if "ray-wheels" in command], "a nightly Ray"

    def test_the_check_finds_only_what_is_to_be_filled_in(self, path: Path) -> None:
        kinds = {flaw.kind for flaw in check_file(path, ROOT)}
        assert kinds <= ({"placeholder"} if path.stem in NEEDS_FILLING else set())

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
