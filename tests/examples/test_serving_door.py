"""The door of serving: the examples of the client, the canary and the notebook of HTTP over
rehearsed engines, and a fine-tuned model on a real vLLM. One Ray for all, in this order."""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray
from ray import serve

from rayline import Client, ServeSpec
from rayline.cli.processes import free_port
from rayline.spec import AdapterSource, AdapterSpec
from support.docs import run_example
from support.notebooks import run_notebook
from support.scripts import main_of

pytestmark = [pytest.mark.serve, pytest.mark.timeout(240)]
AFTER_DEPLOY: list[tuple[Any, int]] = [
    (Client.served, 1),
    (Client.canary, 1),
    (Client.promote, 2),
    (Client.rollback, 1),
    (Client.publish, 1),
    (Client.withdraw, 1),
]
"""And the version that is the stable one once it has taken effect."""


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    yield
    serve.shutdown()
    ray.shutdown()


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="door-") as name:
        yield Path(name)


@pytest.fixture(scope="module")
def names(folder: Path) -> dict[str, Any]:
    """What the examples may use: a deployment and its next version, of which it is watched long."""
    deployment = ServeSpec.parse(
        {
            "name": "chat",
            "model": {"directory": "no/such/model"},
            "device": "cpu",
            "gateway": {"port": free_port(0), "store": f"sqlite:///{folder}/serving.db"},
            "rollout": {"steps": [10], "bake_s": 60},
            "engine": {"max_adapters": 1},
            "cpus_per_replica": 0.2,
            "drain_s": 1,
            "rehearsal": {"first_token_ms": 5, "token_ms": 1, "answer_tokens": 8},
        }
    )
    return {
        "AdapterSource": AdapterSource,
        "AdapterSpec": AdapterSpec,
        "client": Client(),
        "deployment": deployment,
        "next_version": deployment.changed({"rehearsal.answer_tokens": 9}),
    }


@pytest.fixture
def behind_one_gateway(names: dict[str, Any], folder: Path) -> list[str]:
    """Words of a script that deploys: a cluster has one gateway, and it is up already."""
    return ["--folder", str(folder), "--port", str(names["deployment"].gateway.port)]


def test_a_model_is_deployed(names: dict[str, Any]) -> None:
    run_example(Client.deploy, names)


def test_the_notebook_of_http_asks_it(names: dict[str, Any], folder: Path) -> None:
    shown = run_notebook("http.ipynb", folder, RAYLINE_URL=names["endpoint"].url)
    assert "'chat'" in shown
    assert "True" in shown
    assert "Did you mean 'temperature'?" in shown


@pytest.mark.parametrize(
    ("method", "stable"), AFTER_DEPLOY, ids=lambda one: getattr(one, "__name__", "")
)
def test_an_example_of_the_client_runs(method: Any, stable: int, names: dict[str, Any]) -> None:
    run_example(method, names)
    deadline_s = time.monotonic() + 30
    while names["client"].served("chat").stable != stable:
        assert time.monotonic() < deadline_s, names["client"].served("chat")
        time.sleep(0.1)


def test_it_is_taken_away(names: dict[str, Any]) -> None:
    run_example(Client.undeploy, names)


def test_a_canary_takes_over_and_a_bad_one_goes_back(
    behind_one_gateway: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main_of("canary")(behind_one_gateway) == 0
    shown = capsys.readouterr().out
    assert "version 2 25 %, version 1 75 %" in shown
    assert "stable is version 2" in shown


def test_what_was_fine_tuned_is_what_answers(
    behind_one_gateway: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main_of("finetune_and_deploy")(behind_one_gateway) == 0
    shown = capsys.readouterr().out
    assert "trained registry:otto@latest: logits differ by " in shown
    assert "Who stands in the water? Otto the heron." in shown
