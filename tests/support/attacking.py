"""Hostile requests over HTTP, against whatever answers at an address."""

from __future__ import annotations

import json
import time
from collections import Counter

import httpx

from rayline.serving.requests import ROUTES
from support.mutating import cases

WORST_S = 10.0
"""Longest that any answer may take."""
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND")
ENGINES_OWN = (
    *("/invocations", "/pooling", "/classify", "/score", "/rerank", "/pause", "/resume", "/load"),
    *("/update_weights", "/scale_elastic_ep", "/version", "/server_info", "/tokenizer_info"),
    *("/inference/v1/generate", "/v1/audio/transcriptions", "/v1/load_lora_adapter", "/sleep"),
    *("/reset_prefix_cache", "/collective_rpc", "/ping", "/docs", "/redoc", "/v2/embed"),
    *("/v1/messages", "/v1/batches", "/v1/chat/completions/render", "/start_profile"),
)
"""Routes that vLLM's own server has open or half open (0.32)."""


def attack(client: httpx.Client, route: str, count: int, seed: int) -> Counter[int]:
    """Send `count` hostile bodies to a route; how often each status came. Fails on an answer that
    is neither whole nor an error in OpenAI's shape, on a 5xx, and on one that takes too long."""
    (path,) = [entry.path for entry in ROUTES if entry.route == route]
    seen: Counter[int] = Counter()
    for case in cases(route, count, seed):
        began_s = time.monotonic()
        response = client.post(path, content=case.body, headers=case.headers)
        took_s = time.monotonic() - began_s
        assert took_s < WORST_S, (took_s, case.body[:500])
        judge(response, case.body[:500])
        seen[response.status_code] += 1
    return seen


def judge(response: httpx.Response, sent: object) -> None:
    """Whether an answer is one that a client can make sense of."""
    assert response.status_code < 500, (response.status_code, response.text[:500], sent)
    if response.status_code >= 400:
        error = response.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}, sent
        for inside in ("Traceback", "site-packages", ".py", "0x7f"):
            assert inside not in response.text, sent
    elif response.headers["content-type"].startswith("text/event-stream"):
        assert response.text.rstrip().endswith("data: [DONE]"), sent
    elif response.headers["content-type"].startswith("application/json"):
        json.loads(response.text)


def knock(client: httpx.Client) -> Counter[int]:
    """Every method at every path that is not its own; how often each status came."""
    seen: Counter[int] = Counter()
    served = {(entry.path, entry.method) for entry in ROUTES}
    paths = {
        *ENGINES_OWN,
        *(path.replace("{model}", "bot") for path, _ in served),
        "/",
        "//",
        "/%00",
    }
    for path in sorted(paths):
        for method in METHODS:
            if (path, method) in served or (path, method) == ("/v1/models/bot", "GET"):
                continue
            response = client.request(method, path)
            assert response.status_code >= 400, (method, path)
            judge(response, (method, path))
            seen[response.status_code] += 1
    return seen
