"""The files in serve/, and what is rendered for Ray's own tools."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from rayline.serving import render
from rayline.spec import GatewaySpec, ServeSpec

FOLDER = Path(__file__).parents[2] / "serve"
FILES = sorted(FOLDER.glob("*.yaml"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_a_file_is_a_spec_and_says_how_to_run_it_and_on_what(file):
    assert ServeSpec.load(file).name
    command, hardware = file.read_text(encoding="utf-8").splitlines()[:2]
    assert command == f"# rayline deploy serve/{file.name}"
    assert "CPU" in hardware or "GPU" in hardware


def test_every_file_stands_in_the_readme():
    listed = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert FILES
    assert [file.name for file in FILES if f"({file.name})" not in listed] == []


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_what_is_rendered_is_a_config_of_ray_serve(file):
    spec = ServeSpec.load(file)
    config = ServeDeploySchema.model_validate(yaml.safe_load(yaml.safe_dump(render(spec))))
    front, model = config.applications
    assert GatewaySpec.parse(front.args) == spec.gateway
    assert ServeSpec.parse(model.args) == spec
    for application in config.applications:
        module, _, name = application.import_path.partition(":")
        assert callable(getattr(import_module(module), name))
