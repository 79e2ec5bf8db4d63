"""The rendered files of the checkout, as trees that a test may break."""

import copy
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]
Tree = dict[str, Any]


@cache
def _read(name: str) -> Tree:
    tree: Tree = yaml.load((ROOT / "cluster" / name).read_text(), yaml.CSafeLoader)
    return tree


@pytest.fixture(scope="session")
def rendered() -> Callable[[str], Tree]:
    """A file of cluster/ by its name, anew for every caller; placeholders are filled in."""

    def read(name: str) -> Tree:
        tree = copy.deepcopy(_read(name))
        provider = tree.get("provider", {})
        if "project_id" in provider:
            provider["project_id"] = "a-project"
        if "subscription_id" in provider:
            provider["subscription_id"] = "12345678-0000-0000-0000-000000000000"
        for node in tree.get("available_node_types", {}).values():
            for interface in node["node_config"].get("NetworkInterfaces", []):
                interface["SubnetId"] = "subnet-0123"
        return tree

    return read
