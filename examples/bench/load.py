"""Load on an OpenAI-compatible server: so many at once, or so many a second, and what came back.

    python examples/bench/load.py http://127.0.0.1:8000/v1 --model tiny --at-once 8 --seconds 20
    python examples/bench/load.py http://127.0.0.1:8000/v1 --model tiny --per-s 40 --server-pid 4711

Closed: as many as `--at-once` are asking, each again as soon as it is answered. Open: questions
come at random moments, `--per-s` in the mean, whatever becomes of those before. Every prompt is
another one; every answer is read to its end and has to have all its tokens, and what does not is
counted by kind. Seconds per request run from the first question to the last answer. The client
says what CPU it used itself: on few cores it takes part in what it measures.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import resource
import statistics
import string
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import uvloop
from asking import Answer, Connection, Question
from processes import cpu_seconds, machine_cpu_seconds, used_between

TIMEOUT_S = 300.0
PERCENTS = (50, 95, 99)


@dataclass(frozen=True, slots=True)
class Server:
    """Where the questions go."""

    url: str
    """Up to and with /v1."""
    key: str | None = None

    def connection(self) -> Connection:
        """A new one."""
        parts = urlsplit(self.url)
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        return Connection(parts.hostname or "", parts.port or 80, headers)


def chat_questions(
    model: str,
    letters: int,
    tokens: int,
    seed: int,
    *,
    between: str = "",
    system: str | None = None,
) -> Iterator[Question]:
    """Streaming chats without end, greedy, each with a prompt of its own: so many random letters
    with `between` between them, behind what `system` says to all."""
    draw = random.Random(seed)
    first = [] if system is None else [{"role": "system", "content": system}]
    while True:
        content = between.join(draw.choices(string.ascii_lowercase, k=letters))
        body = {
            "model": model,
            "messages": [*first, {"role": "user", "content": content}],
            "max_tokens": tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        yield Question("/v1/chat/completions", json.dumps(body).encode(), tokens)


async def closed_loop(
    server: Server,
    questions: Iterator[Question],
    at_once: int,
    *,
    seconds: float | None = None,
    timeout_s: float = TIMEOUT_S,
) -> list[Answer]:
    """`at_once` clients, each asking again once it is answered: until `seconds` have passed, or the
    questions are at their end. Those in flight then are answered still."""
    stop_s = None if seconds is None else time.perf_counter() + seconds
    answers: list[Answer] = []

    async def client() -> None:
        connection = server.connection()
        for question in questions:
            answers.append(await connection.ask(question, timeout_s))
            if stop_s is not None and time.perf_counter() >= stop_s:
                break
        connection.close()

    await asyncio.gather(*(client() for _ in range(at_once)))
    return answers


async def open_loop(
    server: Server,
    questions: Iterator[Question],
    per_s: float,
    seconds: float,
    *,
    seed: int = 0,
    timeout_s: float = TIMEOUT_S,
) -> list[Answer]:
    """Questions at random moments (exponential gaps), each on a connection that is free."""
    draw = random.Random(seed)
    free: list[Connection] = []
    answers: list[Answer] = []

    async def ask(question: Question) -> None:
        connection = free.pop() if free else server.connection()
        answers.append(await connection.ask(question, timeout_s))
        free.append(connection)

    now_s = time.perf_counter()
    stop_s = now_s + seconds
    async with asyncio.TaskGroup() as asking:
        while now_s < stop_s:
            asking.create_task(ask(next(questions)))
            now_s += draw.expovariate(per_s)
            await asyncio.sleep(max(0.0, now_s - time.perf_counter()))
    for connection in free:
        connection.close()
    return answers


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """Those of PERCENTS, and the mean; in the unit of the values."""
    if not values:
        return {}
    cuts = statistics.quantiles(values, n=100, method="inclusive") if len(values) > 1 else None
    found = {f"p{one}": cuts[one - 1] if cuts else values[0] for one in PERCENTS}
    return {name: round(value, 3) for name, value in (found | {"mean": _mean(values)}).items()}


def _mean(values: Sequence[float]) -> float:
    return statistics.fmean(values)


def summary(answers: Sequence[Answer]) -> dict[str, Any]:
    """Counts, throughput and latencies of whole answers; failures by kind."""
    whole = [one for one in answers if one.failure is None and not one.left]
    failures = Counter(one.failure for one in answers if one.failure is not None)
    found: dict[str, Any] = {"requests": len(answers), "failures": dict(failures)}
    if not whole:
        return found
    wall_s = max(one.ended_s for one in answers) - min(one.began_s for one in answers)
    gaps = [
        1000 * (after - before)
        for one in whole
        for before, after in itertools.pairwise(one.token_events_s)
    ]
    return found | {
        "seconds": round(wall_s, 3),
        "requests_per_s": round(len(whole) / wall_s, 4),
        "tokens_per_s": round(sum(one.tokens for one in whole) / wall_s, 3),
        "prompt_tokens": sorted({one.prompt_tokens for one in whole})[:8],
        "ttft_ms": percentiles([1000 * (one.token_events_s[0] - one.began_s) for one in whole]),
        "tpot_ms": percentiles(
            [
                1000 * (one.token_events_s[-1] - one.token_events_s[0]) / (one.tokens - 1)
                for one in whole
                if one.tokens > 1
            ]
        ),
        "itl_ms": percentiles(gaps),
        "whole_ms": percentiles([1000 * (one.ended_s - one.began_s) for one in whole]),
        "token_events_per_stream": _mean([len(one.token_events_s) for one in whole]),
        "reads_per_stream": _mean([one.reads for one in whole]),
    }


def measured(
    loop: Mapping[str, Any], answers: Sequence[Answer], server_pid: int | None
) -> dict[str, Any]:
    """The summary, and who used the processors between the two looks at them in `loop`."""
    found = summary(answers)
    mine_s = _own_cpu_seconds() - loop["own"]
    busy_s, stolen_s = (
        now - then for now, then in zip(machine_cpu_seconds(), loop["machine"], strict=True)
    )
    found["client_cpu_s"] = round(mine_s, 3)
    if server_pid is not None:
        used = used_between(loop["server"], cpu_seconds(server_pid))
        found["server_cpu_s"] = used
        found["server_cpu_s_in_all"] = round(sum(used.values()), 3)
        found["others_cpu_s"] = round(busy_s - mine_s - sum(used.values()), 3)
    found["stolen_cpu_s"] = round(stolen_s, 3)
    return found


def processors(server_pid: int | None) -> dict[str, Any]:
    """How much of them has been used so far, and by whom."""
    return {
        "own": _own_cpu_seconds(),
        "machine": machine_cpu_seconds(),
        "server": {} if server_pid is None else cpu_seconds(server_pid),
    }


def _own_cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


async def _run(options: argparse.Namespace) -> dict[str, Any]:
    server = Server(options.url, options.key)
    questions = chat_questions(
        options.model,
        options.letters,
        options.tokens,
        options.seed,
        between=options.between,
        system=options.system,
    )
    await closed_loop(server, questions, options.at_once or 8, seconds=options.warm_s)
    before = processors(options.server_pid)
    if options.per_s is not None:
        answers = await open_loop(server, questions, options.per_s, options.seconds)
    else:
        answers = await closed_loop(server, questions, options.at_once, seconds=options.seconds)
    return measured(before, answers, options.server_pid)


def main() -> None:
    """Parse, ask, print what came back as one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("url", help="up to and with /v1")
    parser.add_argument("--model", required=True)
    parser.add_argument("--key", default=None, help="API key")
    how = parser.add_mutually_exclusive_group(required=True)
    how.add_argument("--at-once", type=int, help="closed loop: clients")
    how.add_argument("--per-s", type=float, help="open loop: questions a second")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--warm-s", type=float, default=2.0, help="not measured")
    parser.add_argument("--letters", type=int, default=13, help="random ones, of each prompt")
    parser.add_argument("--between", default="", help="what stands between two letters")
    parser.add_argument("--system", default=None, help="the system message, none by default")
    parser.add_argument("--tokens", type=int, default=32, help="of each answer")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--server-pid", type=int, default=None, help="root of the server's tree")
    print(json.dumps(uvloop.run(_run(parser.parse_args())), indent=2))


if __name__ == "__main__":
    main()
