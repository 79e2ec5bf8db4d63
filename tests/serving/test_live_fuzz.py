"""Hostile requests against a real deployment: the engine answers or the gateway refuses, nothing is
a 5xx, and the processes that were there before are there afterwards."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import psutil
import pytest

from support.asking import PLAIN
from support.attacking import attack, knock
from support.deployed import Served, served, small_cluster

pytestmark = [pytest.mark.engines, pytest.mark.timeout(900)]

CASES = 1000
"""Of each route; test_fuzz.py has ten times as many of the same without an engine."""
CLIENTS = 4


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    # A body without max_tokens gets what the model has room for.
    engine = {"max_model_len": 128, "structured_outputs": "guidance"}
    spec = {"limits": {"max_output_tokens": 8}, "engine": engine}
    folder = tmp_path_factory.mktemp("fuzz")
    with small_cluster(folder) as gateway, served(gateway, folder, spec) as one:
        yield one


@pytest.fixture
def http(deployed: Served) -> Iterator[httpx.Client]:
    with httpx.Client(
        base_url=deployed.url.removesuffix("/v1"),
        headers={"Authorization": f"Bearer {deployed.key}"},
        timeout=30,
    ) as client:
        yield client


def engines() -> list[int]:
    children = psutil.Process().children(recursive=True)
    return sorted(child.pid for child in children if child.name().startswith("VLLM"))


@pytest.mark.parametrize("route", sorted(PLAIN))
def test_the_engine_stands_whatever_is_sent(http: httpx.Client, route: str) -> None:
    before = engines()
    assert before
    seen: Counter[int] = Counter()
    with ThreadPoolExecutor(CLIENTS) as pool:
        parts = [
            pool.submit(attack, http, route, CASES // CLIENTS, seed) for seed in range(CLIENTS)
        ]
        for part in parts:
            seen += part.result()
    print(route, dict(seen))
    assert seen.total() == CASES
    assert engines() == before
    assert http.post("/v1/completions", json=PLAIN["completions"]).status_code == 200


def test_nothing_else_is_reachable(http: httpx.Client) -> None:
    assert set(knock(http)) <= {403, 404, 405}
    bare = httpx.Client(base_url=http.base_url, timeout=30)
    assert set(knock(bare)) <= {401, 404, 405}
