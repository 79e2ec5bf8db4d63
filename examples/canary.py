"""Bring up a new version of a served model beside the old one, watch it take over by its share of
the requests, and see a bad one go back by itself.

    python examples/canary.py                  two CPU cores, no model: engines answer by rule

What is real: Ray, the gateway, the shares, the gates, the rollback. The engines are a rehearsal
(`rehearsal` in the spec), so it takes seconds; leave that field out, name a model, and the same
lines roll out vLLM.
"""

import argparse
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from rayline import Client, ServeSpec
from rayline.errors import RaylineError, ServingError
from rayline.serving import ModelStatus

NAME, QUESTION = "canary-bot", "what is the capital of France"
PATIENCE_S = 60.0


def spec(folder: Path, port: int) -> ServeSpec:
    """The first version, and how the next ones take over: a quarter first, then everything."""
    return ServeSpec.parse(
        {
            "name": NAME,
            "model": {"directory": "no/such/model"},
            "device": "cpu",
            "gateway": {"port": port, "store": f"sqlite:///{folder}/serving.db"},
            "rollout": {
                "steps": [25, 100],
                "window_s": 2,
                "min_requests": 20,
                "gates": {
                    "error_rate_more": 0.05,
                    "ttft": {"times": None, "limit_ms": 2000},
                    "tpot": {"times": None},
                },
            },
            "cpus_per_replica": 0.2,
            "drain_s": 2,
            "rehearsal": {"first_token_ms": 5, "token_ms": 1, "answer_tokens": 4},
        }
    )


class Load:
    """A few clients that ask all the while."""

    def __init__(self, client: Client, url: str, clients: int = 3) -> None:
        self._client, self._url = client, url
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(clients)]
        self.outcomes: Counter[str] = Counter()

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _ask(self) -> None:
        while not self._over.is_set():
            try:
                self._client.chat(QUESTION, url=self._url, model=NAME, max_tokens=4)
                self.outcomes["answered"] += 1
            except ServingError:
                self.outcomes["failed"] += 1
            time.sleep(0.02)


def until(client: Client, met: Callable[[ModelStatus], bool]) -> ModelStatus:
    """How the model is doing once `met` says so; the shares are told as they change."""
    told, deadline_s = "", time.monotonic() + PATIENCE_S
    while True:
        now = client.served(NAME)
        shares = ", ".join(
            f"version {version.number} {version.percent:g} %"
            for version in now.versions
            if version.percent
        )
        if shares != told:
            told = shares
            print(f"  {shares}")
        if met(now):
            return now
        if time.monotonic() > deadline_s:
            raise ServingError(NAME, f"the shares did not change within {PATIENCE_S:g} s")
        time.sleep(0.2)


def main(words: list[str]) -> int:
    """A good version takes over, a bad one goes back; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path(".rayline/canary"))
    parser.add_argument("--port", type=int, default=8000)
    given = parser.parse_args(words)
    folder = given.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    client, first = Client(), spec(folder, given.port)
    endpoint = client.deploy(first)
    print(f"version {endpoint.version} answers at {endpoint.url}")
    try:
        with Load(client, endpoint.url) as load:
            print("a good version takes over:")
            client.deploy(first.changed({"rehearsal.answer_tokens": 5}))
            until(client, lambda now: now.stable == 2 and now.canary is None)
            print("a bad one, which fails half of its requests:")
            client.deploy(first.changed({"rehearsal.error_rate": 0.5}))
            over = ("draining", "stopped")
            ended = until(client, lambda now: now.version(3).state in over)
        print(f"stable is version {ended.stable}; version 3: {ended.version(3).reason}")
        print(f"{load.outcomes['answered']} answered, {load.outcomes['failed']} failed")
    finally:
        client.undeploy(NAME)
    return 0 if ended.stable == 2 else 1


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except RaylineError as wrong:
        print(f"error: {wrong}", file=sys.stderr)
        sys.exit(wrong.exit_code)
