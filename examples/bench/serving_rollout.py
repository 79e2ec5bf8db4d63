"""Versions that take over and replicas that come and go, as clients and their operator see them.

    python examples/bench/serving_rollout.py                    # all of it
    python examples/bench/serving_rollout.py --only shares slow

Ray, Serve, director, gateway, sockets and clients are real; the engine is a rehearsal, which
answers by rule and each of whose answers is known beforehand. Every body is read to its end and
compared with what it has to be.

shares: a canary's share of a thousand requests. slow: a canary three times slower, left to itself.
good: one that is as good, left to itself. rollback: by hand, from half of the requests, and back
from the version that was stable before. step: load grows tenfold. sawtooth: load that comes and
goes. zero: nobody asks, then somebody does.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Future
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import ray
from asking import Answer
from crowd import Catalogue, Crowd
from ranks import leave_result
from ray import serve

from rayline.serving import ModelStatus, deploy, roll_back, status
from rayline.spec import ServeSpec

NAME = "bot"
CPUS = 8
CLIENTS = 8
TOKENS = 16
"""Of each answer."""
WAIT_S = 120.0


class Scene:
    """A first version that serves, and a crowd that may ask it."""

    def __init__(self, spec: ServeSpec, crowd: Crowd) -> None:
        self.spec = spec
        self.crowd = crowd
        self.url = deploy(spec).url
        self.catalogue = Catalogue(NAME, TOKENS)

    def ask(self, seconds: float, clients: int = CLIENTS) -> Future[list[Answer]]:
        """So many clients, each with one request at a time."""
        return self.crowd.closed(self.url, self.catalogue, clients, seconds=seconds)


def shares(scene: Scene) -> dict[str, Any]:
    """A tenth of a thousand requests."""
    version = deploy(scene.spec.changed({"rehearsal.token_ms": 5.1, "rollout.steps": [10]})).version
    answers = scene.crowd.closed(scene.url, scene.catalogue, CLIENTS, count=1000).result()
    found = until(lambda found: felt(found, version) + felt(found, 1) >= 1000)
    return counted(answers) | {
        "asked_for_percent": 10,
        "got_percent": 100 * felt(found, version) / (felt(found, version) + felt(found, 1)),
    }


def slow(scene: Scene) -> dict[str, Any]:
    """A canary three times slower."""
    changed = {"rehearsal.slow_factor": 3, "rollout.steps": [10, 50, 100]}
    return left_to_itself(scene, changed)


def good(scene: Scene) -> dict[str, Any]:
    """A canary that is as good."""
    changed = {"rehearsal.token_ms": 5.01, "rollout.steps": [10, 50, 100]}
    return left_to_itself(scene, changed)


def left_to_itself(scene: Scene, changed: dict[str, object]) -> dict[str, Any]:
    asked = scene.ask(WAIT_S)
    version = deploy(scene.spec.changed(changed)).version
    began_s, given = time.monotonic(), 0
    while (found := status(NAME)).canary is not None and not asked.done():
        given = max(given, felt(found, version))
        time.sleep(0.2)
    took_s = time.monotonic() - began_s
    time.sleep(2)
    return counted(asked.result()) | {
        "stable_in_the_end": "the canary" if found.stable == version else "the version before",
        "seconds_from_its_first_share": round(took_s, 1),
        "answers_it_gave_at_its_last_share": given,
        "reason": found.version(version).reason,
        "what_happened": [
            event.said for event in found.events if f"version {version}" in event.said
        ],
    }


def rollback(scene: Scene) -> dict[str, Any]:
    """By hand."""
    changed = {"rehearsal.token_ms": 5.1, "rollout.steps": [50]}
    asked = scene.ask(30)
    version = deploy(scene.spec.changed(changed)).version
    time.sleep(4)
    roll_back(NAME)
    from_canary_s = quiet_after_s(version)
    again = deploy(scene.spec.changed({"rehearsal.token_ms": 5.2})).version
    roll_back(NAME)
    from_stable_s = quiet_after_s(again)
    return counted(asked.result()) | {
        "seconds_until_a_canary_gets_nothing": round(from_canary_s, 2),
        "seconds_until_a_version_that_was_stable_gets_nothing": round(from_stable_s, 2),
        "stable_in_the_end": status(NAME).stable,
    }


def quiet_after_s(version: int) -> float:
    """From now until the version is told of no further answer; it has some to end, too."""
    began_s = last_s = time.monotonic()
    before = -1
    while time.monotonic() - last_s < 2.5:
        one = status(NAME).version(version)
        now = before if one.felt is None else one.felt.requests
        if now != before:
            before, last_s = now, time.monotonic()
        time.sleep(0.05)
    return last_s - began_s


def step(scene: Scene) -> dict[str, Any]:
    """Two clients, then twenty."""
    calm = scene.ask(10, clients=2)
    time.sleep(8)
    before = decided(status(NAME))
    calm.result()
    asked = scene.ask(45, clients=20)
    began_s = time.monotonic()
    decided_s = at_s(lambda found: decided(found) > before, began_s)
    grown = status(NAME).versions[0].decision
    up_s = at_s(lambda found: found.up >= 5, began_s)
    return counted(asked.result()) | {
        "replicas_before": before,
        "replicas_after": status(NAME).up,
        "seconds_to_the_decision": round(decided_s, 1),
        "seconds_until_they_are_up": round(up_s, 1),
        "delay_s": scene.spec.scale.upscale_delay_s,
        "start_s": scene.spec.rehearsal.start_s if scene.spec.rehearsal else None,
        "why": grown.why if grown else "",
    }


def sawtooth(scene: Scene) -> dict[str, Any]:
    """Ten seconds of two clients, ten of twenty, over and over."""
    targets: list[int] = []
    for _ in range(6):
        for clients in (2, 20):
            asked = scene.ask(10, clients=clients)
            while not asked.done():
                targets.append(decided(status(NAME)))
                time.sleep(0.5)
    changes = [(before, after) for before, after in pairwise(targets) if before != after]
    return {
        "seconds": 120,
        "downscale_delay_s": scene.spec.scale.downscale_delay_s,
        "changes_of_the_number_of_replicas": changes,
        "taken_away": sum(after < before for before, after in changes),
    }


def zero(scene: Scene) -> dict[str, Any]:
    """Nobody asks."""
    began_s = time.monotonic()
    to_zero_s = at_s(lambda found: found.up == 0, began_s)
    said = status(NAME).versions[0].decision
    body = {"model": NAME, "messages": [{"role": "user", "content": "question 0"}], "max_tokens": 4}
    began_s = time.monotonic()
    answer = httpx.post(f"{scene.url}/chat/completions", json=body, timeout=WAIT_S)
    return {
        "seconds_to_zero": round(to_zero_s, 1),
        "idle_s": scene.spec.scale.idle_s,
        "why": said.why if said else "",
        "first_request_after": {
            "status": answer.status_code,
            "seconds": round(time.monotonic() - began_s, 1),
            "start_s": scene.spec.rehearsal.start_s if scene.spec.rehearsal else None,
        },
    }


SCENES: dict[str, Callable[[Scene], dict[str, Any]]] = {
    "shares": shares,
    "slow": slow,
    "good": good,
    "rollback": rollback,
    "step": step,
    "sawtooth": sawtooth,
    "zero": zero,
}
GROWING = {"scale.max_replicas": 6, "scale.target_ongoing_requests": 4, "rehearsal.start_s": 5}
CHANGES: dict[str, dict[str, object]] = {
    "step": GROWING,
    "sawtooth": GROWING | {"scale.downscale_delay_s": 30},
    "zero": {"scale.min_replicas": 0, "scale.idle_s": 10, "rehearsal.start_s": 5},
}


def counted(answers: list[Answer]) -> dict[str, Any]:
    """How many came whole and right."""
    failed = [one.failure for one in answers if one.failure is not None]
    return {
        "requests": len(answers),
        "whole_and_right": len(answers) - len(failed),
        "failures": {kind: failed.count(kind) for kind in set(failed)},
    }


def felt(found: ModelStatus, number: int) -> int:
    """Answers of a version since the shares last changed."""
    one = found.version(number).felt
    return 0 if one is None else one.requests


def decided(found: ModelStatus) -> int:
    """Replicas that there shall be."""
    return found.versions[0].wanted


def until(met: Callable[[ModelStatus], bool]) -> ModelStatus:
    """The status, once it is so."""
    deadline_s = time.monotonic() + WAIT_S
    while not met(found := status(NAME)):
        if time.monotonic() > deadline_s:
            raise RuntimeError(f"not within {WAIT_S:g} s: {found}")
        time.sleep(0.1)
    return found


def at_s(met: Callable[[ModelStatus], bool], began_s: float) -> float:
    """How long after `began_s` it is so."""
    until(met)
    return time.monotonic() - began_s


def spec_of(scene: str, folder: Path) -> ServeSpec:
    """One deployment for one scene."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    tree: dict[str, Any] = {
        "name": NAME,
        "model": {"directory": str(folder / "model")},
        "device": "cpu",
        "rehearsal": {"slots": 32, "first_token_ms": 20, "token_ms": 5},
        "rollout": {"window_s": 10, "min_requests": 50},
        "gateway": {"port": port, "store": f"sqlite:///{folder / scene}.db"},
        "drain_s": 30,
    }
    return ServeSpec.parse(tree).changed(CHANGES.get(scene, {}))


def play(name: str, folder: Path) -> dict[str, Any]:
    """One scene on a Ray of its own."""
    with Crowd() as crowd:
        ray.init(address="local", num_cpus=CPUS, include_dashboard=False, log_to_driver=False)
        try:
            found = SCENES[name](Scene(spec_of(name, folder), crowd))
            print(name, found, file=sys.stderr, flush=True)
            return found
        finally:
            serve.shutdown()
            ray.shutdown()


def main() -> None:
    """Parse, play, write the dated result file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=list(SCENES), default=list(SCENES))
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    # By default Ray's workers give way to everything else on the machine.
    os.environ.setdefault("RAY_worker_niceness", "0")
    with tempfile.TemporaryDirectory() as temporary:
        found = {name: play(name, Path(temporary)) for name in options.only}
    leave_result(
        __file__, __doc__, " ".join(sys.argv[1:]), options.out, engine="rehearsal", scenes=found
    )


if __name__ == "__main__":
    main()
