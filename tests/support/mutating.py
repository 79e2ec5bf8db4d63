"""Hostile requests made from good ones, the same for the same seed."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rayline.serving.requests.fields import WITHHELD
from support.asking import CALLED, HELLO, PLAIN, SCHEMA, WEATHER

GOOD: dict[str, list[dict[str, Any]]] = {
    "chat": [
        {"max_tokens": 1, "temperature": 0},
        {"max_tokens": 1, "stream": True, "stream_options": {"include_usage": True}},
        {"max_tokens": 1, "tools": [WEATHER], "tool_choice": "auto", "n": 2},
        {"max_tokens": 1, "response_format": {"type": "json_object"}, "stop": ["a", "b"]},
        {
            "max_tokens": 1,
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "city", "schema": SCHEMA},
            },
        },
        {"max_tokens": 1, "logprobs": True, "top_logprobs": 2, "logit_bias": {"7": 1}},
        {"max_tokens": 1, "structured_outputs": {"regex": "[a-z]+"}, "metadata": {"a": "b"}},
        {"max_tokens": 1, "messages": [*HELLO, {"role": "assistant", "content": "hi"}, *HELLO]},
        {
            "max_tokens": 1,
            "messages": [
                {"role": "system", "content": [{"type": "text", "text": "brief"}]},
                {"role": "assistant", "content": None, "tool_calls": [CALLED]},
                {"role": "tool", "content": "4", "tool_call_id": "c1"},
            ],
        },
    ],
    "completions": [
        {"max_tokens": 1, "prompt": [1, 2, 3], "seed": 3},
        {"max_tokens": 1, "prompt": ["a", "b"], "logprobs": 1, "echo": True},
        {"max_tokens": 1, "prompt": [[1], [2, 3]], "top_p": 0.5, "min_p": 0.1},
        {"max_tokens": 1, "stream": True, "bad_words": ["x"], "stop_token_ids": [5]},
    ],
    "embeddings": [{"input": ["a", "b"]}, {"input": [[1, 2]], "encoding_format": "base64"}],
    "responses": [
        {"max_output_tokens": 1, "instructions": "brief"},
        {"max_output_tokens": 1, "input": [{"role": "user", "content": "hi"}]},
        {"max_output_tokens": 1, "text": {"format": {"type": "json_object"}}, "store": False},
        {
            "max_output_tokens": 1,
            "tools": [{"type": "function", "name": "f", "parameters": SCHEMA}],
            "input": [{"role": "user", "content": [{"type": "input_text", "text": "hi"}]}],
        },
    ],
    "score": [{}, {"queries": ["a", "b"], "documents": ["c", "d"], "user": "u"}],
    "rerank": [{}, {"top_n": 1}],
    "tokenize": [{}, {"prompt": None, "messages": HELLO, "add_special_tokens": False}],
    "detokenize": [{}, {"tokens": []}],
}
"""What passes, by route, as changes to PLAIN. None of it keeps an engine busy."""

PLAIN_VALUES: list[Any] = [
    *(None, True, False, 0, 1, -1, 0.5, -0.0, 1e-9, 1e308, 2**31, 2**53, 2**63, -(2**63) - 1),
    *(10**30, "", " ", "a", "auto", "none", "\x00", "\u202e", "\ufffe", "é" * 50, "\U0001f600"),
    *("../../etc/passwd", "{{ 7*7 }}", "'; DROP TABLE keys; --", "%s%n", "http://127.0.0.1/"),
    *("null", "NaN", "(a+)+$", "[", {}, [], [[]], [None], [{}], {"": {}}, {"a": {"a": {"a": 1}}}),
    *([0] * 300, ["x"] * 300, "x" * 70_000, {str(key): key for key in range(400)}),
    *({"type": "image_url", "image_url": {"url": "http://127.0.0.1/"}}, {"$ref": "file:///x"}),
]
NAMES = [*WITHHELD, "Model", "model ", "temprature", "__proto__", "", "a" * 300, "n\x00", "é"]
BYTES = [b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\x00", b"\xef\xbb\xbf", b"\xf5\x80\x80\x80"]
WORDS = [b"NaN", b"Infinity", b"-Infinity", b"1e999", b"-", b"01", b"0x1", b"9" * 5000, b"/**/"]
WORDS += [b"'a'", b"undefined", b"\\ud800", b'"\\ud800"', b'"\\u0000"', b"[" * 10_000, b"{}{}"]
HEADERS: list[dict[str, str]] = [
    {"content-type": "application/json"},
    {"content-type": "text/plain"},
    {"content-type": "application/x-www-form-urlencoded"},
    {"content-type": "multipart/form-data; boundary=x"},
    {"content-type": "application/json; charset=utf-16"},
    {"content-type": ""},
]


@dataclass(frozen=True, slots=True)
class Case:
    """One hostile request."""

    body: bytes
    headers: dict[str, str]


def cases(route: str, count: int, seed: int) -> Iterator[Case]:
    """`count` of them; some turn out to be good after all."""
    draw = random.Random(f"{route} {seed}")
    for _ in range(count):
        tree = copy.deepcopy({**PLAIN[route], **draw.choice([{}, *GOOD[route]])})
        for _ in range(draw.choice([0, 1, 1, 1, 2, 3])):
            _change_tree(draw, tree)
        body = json.dumps(tree, ensure_ascii=draw.random() < 0.5).encode("utf-8", "replace")
        if draw.random() < 0.4:
            body = _change_bytes(draw, body)
        headers = HEADERS[0] if draw.random() < 0.8 else draw.choice(HEADERS)
        yield Case(body, headers)


def _change_tree(draw: random.Random, tree: dict[str, Any]) -> None:
    """One change at a place anywhere in the tree."""
    place: Any = tree
    while True:
        inner = place.values() if isinstance(place, dict) else place
        deeper = [value for value in inner if isinstance(value, dict | list) and value]
        if not deeper or draw.random() < 0.4:
            break
        place = draw.choice(deeper)
    keys = list(place) if isinstance(place, dict) else list(range(len(place)))
    kind = draw.randrange(6)
    if kind == 0 and keys:
        del place[draw.choice(keys)]
    elif kind == 1 and isinstance(place, dict):
        place[draw.choice(NAMES)] = copy.deepcopy(draw.choice(PLAIN_VALUES))
    elif kind == 2 and isinstance(place, list):
        place.extend(copy.deepcopy(place) * draw.choice([1, 5, 40]))
    elif kind == 3 and keys:
        key, deep = draw.choice(keys), draw.choice([3, 40, 70, 150])
        for _ in range(deep):
            place[key] = {"a": place[key]} if draw.random() < 0.5 else [place[key]]
    elif keys:
        place[draw.choice(keys)] = copy.deepcopy(draw.choice(PLAIN_VALUES))


def _change_bytes(draw: random.Random, body: bytes) -> bytes:
    at = draw.randrange(len(body))
    kind = draw.randrange(8)
    if kind == 0:
        return body[:at]
    if kind == 1:
        return body[:at] + draw.choice(BYTES) + body[at:]
    if kind == 2:
        return body[:at] + bytes([draw.randrange(256)]) + body[at + 1 :]
    if kind == 3:
        return body.replace(b"1", draw.choice(WORDS), 1)
    if kind == 4:
        # The same name twice, at the top.
        return body[:-1] + b', "model": "bot", "model": "other"}'
    if kind == 5:
        return draw.choice([b"", b"null", b"[]", b'"a"', b"7", b"{}", body * 2, b"[" + body + b"]"])
    if kind == 6:
        depth = draw.choice([50, 500, 10_000])
        return b'{"a":' * depth + body + b"}" * depth
    return body.decode().encode(draw.choice(["utf-16", "utf-32", "latin-1"]), "replace")
