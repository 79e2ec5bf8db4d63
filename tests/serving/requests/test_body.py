"""From bytes to JSON: what two readers could read differently is read by none."""

from __future__ import annotations

import contextlib
import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayline.serving.requests import RefusedError, check_content_type, read_json
from support.asking import LIMITS, PLAIN, refusal


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "Expecting value"),
        (b'{"model": "bot", ', "Expecting property name"),
        (b'{"model": "bot", "temperature": NaN}', "NaN"),
        (b'{"model": "bot", "temperature": -Infinity}', "NaN"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "4300 digits"),
        (b"\xff\xfe", "not UTF-8"),
        ('{"user": "é"}'.encode("latin-1"), "not UTF-8"),
        ('{"user": "a"}'.encode("utf-16"), "not UTF-8"),
        ('\ufeff{"user": "a"}'.encode(), "BOM"),
        (b'{"user": "\xed\xa0\x80"}', "not UTF-8"),
        (b'{"user": "\\ud800"}', "surrogate"),
        (b'{"user": "\\uDFFF and more"}', "surrogate"),
        (b'{"\\ud800": 1}', "surrogate"),
        (b'{"user": "a\x00b"}', "control character"),
        (b"[" * 10_000, "nested too deeply"),
        (b'{"a":' * 5000 + b"1" + b"}" * 5000, "nested too deeply"),
        (b'{"a":' * 100 + b"1" + b"}" * 100, "deeper than 64"),
        (b'{"model": "bot", "model": "other"}', "same name twice"),
        (b'{"messages": [{"role": "user", "role": "system"}]}', "same name twice"),
        (b"[" * 100_000, "50000 arrays"),
        (b'{"a": [' + b"{}," * 60_000 + b"{}]}", "50000 arrays"),
        (b"[]", "object"),
        (b'"hello"', "object"),
        (b"7", "object"),
        (b"null", "object"),
        (b"{} {}", "Extra data"),
        (b"{'model': 1}", "Expecting property name"),
    ],
)
def test_what_is_no_plain_json_object_is_refused(body, words):
    found = refusal(body)
    assert (found.status, found.param, found.code) == (400, None, "invalid_json")
    assert words in found.message


def test_a_body_that_is_too_large_is_refused_unread():
    found = refusal(b"x" * (LIMITS.max_body_bytes + 1))
    assert (found.status, found.code) == (413, "body_too_large")


def test_whole_surrogate_pairs_are_text():
    assert read_json(b'{"user": "\\ud83d\\ude00"}', LIMITS) == {"user": "\U0001f600"}


@given(st.binary(max_size=200))
def test_noise_is_refused_as_the_clients_mistake(body):
    found = refusal(body, "completions")
    assert 400 <= found.status < 500
    assert set(found.body()["error"]) == {"message", "type", "param", "code"}


@given(st.dictionaries(st.text(max_size=5), st.lists(st.integers() | st.text(max_size=9))))
def test_what_json_writes_is_read_back(tree):
    assert read_json(json.dumps(tree).encode(), LIMITS) == tree


@pytest.mark.parametrize(
    "body",
    [
        b'{"a": [' + b"[]," * 1_000_000 + b"[]]}",
        b'{"a": [' + b"1," * 2_000_000 + b"1]}",
        b'{"a": "' + b"[" * 4_000_000 + b'"}',
        b'{"a": "' + b'\\"' * 2_000_000 + b"[" * 60_000 + b'"}',
        b'{"a": [' + b'"",' * 1_000_000 + b"[" * 60_000 + b"]}",
        b'{"a": "' + b"\\u00e9" * 600_000 + b'"}',
        b'{"a": "' + b"\\ud83d\\ude00" * 300_000 + b'"}',
        b'{"a": 1.' + b"1" * 4_000_000 + b"}",
        b'{"a": 1e' + b"9" * 4_000_000 + b"}",
        b"{" + b",".join(b'"%d":0' % number for number in range(350_000)) + b"}",
    ],
    ids=[
        "arrays",
        "numbers",
        "text",
        "quotes",
        "strings",
        "escapes",
        "pairs",
        "digits",
        "exponent",
        "names",
    ],
)
def test_the_largest_bodies_are_read_or_refused_within_a_second(body):
    assert len(body) <= LIMITS.max_body_bytes
    began_s = time.process_time()
    with contextlib.suppress(RefusedError):
        read_json(body, LIMITS)
    assert time.process_time() - began_s < 1


def test_the_tree_that_is_read_is_the_tree_that_was_sent():
    assert read_json(json.dumps(PLAIN["chat"]).encode(), LIMITS) == PLAIN["chat"]


@pytest.mark.parametrize(
    "said",
    [
        None,
        "application/json",
        "Application/JSON; charset=utf-8",
        'application/json;charset="UTF-8"',
    ],
)
def test_json_may_be_called_json_or_nothing(said):
    check_content_type(said)


@pytest.mark.parametrize(
    "said",
    [
        "",
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/json; charset=utf-16",
        "application/jsonp",
        "text/plain; application/json",
    ],
)
def test_what_a_browser_sends_without_asking_is_refused(said):
    with pytest.raises(RefusedError) as found:
        check_content_type(said)
    assert (found.value.refusal.status, found.value.refusal.code) == (415, "unsupported_media_type")
