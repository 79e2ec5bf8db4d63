"""A real deployment of a tiny random model, for tests of what stands before it."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray import serve
from transformers import AutoTokenizer

from rayline.models.tiny import write_tiny_model
from rayline.serving import deploy, undeploy
from rayline.serving.access.key_store import open_keys
from rayline.spec import KeySpec, ServeSpec
from support.engine_gang import free_port

HIDDEN = 64
ENGINE = {"max_model_len": 512, "max_num_seqs": 8, "kv_cache_gib": 0.25}


Gateway = dict[str, Any]
"""As a ServeSpec has it."""


@dataclass(frozen=True)
class Served:
    """Where a client goes, and with what."""

    url: str
    key: str
    model: str
    blanks: dict[str, int]
    """logit_bias against blanks: left alone, a random model writes them for ever where JSON lets
    it."""


@contextmanager
def small_cluster(folder: Path) -> Iterator[Gateway]:
    """Ray on this machine, for as long as it is held, and the gateway of its deployments."""
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    try:
        yield {"port": free_port(), "store": f"sqlite:///{folder}/serving.db"}
    finally:
        serve.shutdown()
        ray.shutdown()


@contextmanager
def served(gateway: Gateway, folder: Path, spec: dict[str, Any]) -> Iterator[Served]:
    """A deployment that asks for a key."""
    model = write_tiny_model(folder / "model", hidden=HIDDEN, heads=2)
    deployment = ServeSpec.parse(
        {
            "name": "bot",
            "model": {"directory": str(model)},
            "gateway": gateway,
            "drain_s": 1,
            "ready_timeout_s": 200,
            **spec,
            "engine": {**ENGINE, **spec.get("engine", {})},
        }
    )
    endpoint = deploy(deployment)
    key = open_keys(deployment.gateway.store).create(KeySpec(name=folder.name)).secret
    # Until its first key is made the door is open; it closes within a second.
    time.sleep(1.0)
    yield Served(endpoint.url, key, deployment.name, _against_blanks(model))
    undeploy(deployment.name)


def _against_blanks(model: Path) -> dict[str, int]:
    tokenizer = AutoTokenizer.from_pretrained(str(model))
    return {str(tokenizer.encode(blank)[0]): -100 for blank in " \n\r\t"}
