"""Who is let in: keys by scope, model, time; wrong ones by address; refusals in OpenAI's words."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayline.serving.access.attempts import MAX_ADDRESSES, BadKeys, client_address, network_of
from rayline.serving.access.keys import ANONYMOUS, ApiKey, IssuedKey, judge, new_secret
from rayline.serving.access.refusals import duration_text

KEY = ApiKey(id="key_1", name="one", scopes=("inference", "models"), models=("tiny",))


def test_a_key_opens_what_it_is_for() -> None:
    assert judge(KEY, "inference", "tiny", 0.0) is None
    assert judge(KEY, "models", None, 0.0) is None
    assert judge(ANONYMOUS, "admin", "any", 0.0) is None


@pytest.mark.parametrize(
    ("key", "scope", "model", "status", "code"),
    [
        (replace(KEY, revoked_at_s=5.0), "inference", "tiny", 401, "invalid_api_key"),
        (replace(KEY, revoked_at_s=50.0), "inference", "tiny", 401, "invalid_api_key"),
        (replace(KEY, expires_at_s=10.0), "inference", "tiny", 401, "invalid_api_key"),
        (KEY, "tokenize", None, 403, "insufficient_permissions"),
        (KEY, "admin", None, 403, "insufficient_permissions"),
        (KEY, "inference", "large", 403, "model_not_found"),
    ],
)
def test_a_key_opens_nothing_else(
    key: ApiKey, scope: str, model: str | None, status: int, code: str
) -> None:
    refusal = judge(key, scope, model, 10.0)  # type: ignore[arg-type]
    assert refusal is not None
    assert (refusal.status, refusal.code) == (status, code)
    assert refusal.body()["error"]["type"] == "invalid_request_error"


def test_a_key_that_has_not_expired_yet_holds() -> None:
    assert judge(replace(KEY, expires_at_s=10.0), "inference", "tiny", 9.99) is None


def test_secrets_are_long_random_and_recognizable() -> None:
    made = {new_secret() for _ in range(1_000)}
    assert len(made) == 1_000
    assert all(re.fullmatch(r"rl-[A-Za-z0-9_-]{43}", secret) for secret in made)


def test_no_repr_shows_a_secret() -> None:
    issued = IssuedKey(KEY, new_secret())
    assert issued.secret not in repr(issued)


def test_twenty_wrong_keys_a_minute_and_no_more() -> None:
    bad = BadKeys(20)
    assert [bad.count("10.0.0.1", float(second)) for second in range(20)] == [None] * 20
    wait_s = bad.count("10.0.0.1", 20.0)
    assert wait_s is not None
    assert 40 <= wait_s <= 41
    assert bad.count("10.0.0.2", 20.0) is None
    assert bad.count("10.0.0.1", 20.0 + wait_s) is None


def test_memory_is_bounded_however_many_addresses_try() -> None:
    bad = BadKeys(20)
    for number in range(2 * MAX_ADDRESSES):
        bad.count(f"{number >> 16}.{number >> 8 & 255}.{number & 255}.9", 0.0)
    assert len(bad) == MAX_ADDRESSES


@settings(deadline=None)
@given(st.integers(min_value=0, max_value=2**64 - 1))
def test_a_network_of_ipv6_counts_as_one(host: int) -> None:
    address = f"2001:db8:1:2:{host >> 48:x}:{host >> 32 & 65535:x}:{host >> 16 & 65535:x}"
    assert network_of(f"{address}:{host & 65535:x}") == "2001:db8:1:2::/64"


def test_addresses_of_other_kinds() -> None:
    assert network_of("10.0.0.1") == "10.0.0.1"
    assert network_of("::ffff:10.0.0.1") == "10.0.0.1"
    assert network_of("unix:socket") == "unix:socket"


@pytest.mark.parametrize(
    ("peer", "header", "client"),
    [
        ("9.9.9.9", "1.2.3.4", "9.9.9.9"),  # nobody's proxy: what it says is its own word
        ("10.0.0.1", None, "10.0.0.1"),
        ("10.0.0.1", "1.2.3.4", "1.2.3.4"),
        ("10.0.0.1", "6.6.6.6, 1.2.3.4", "1.2.3.4"),  # the client wrote the first one itself
        ("10.0.0.1", "1.2.3.4, 10.0.0.2", "1.2.3.4"),
        ("10.0.0.1", " , ", "10.0.0.1"),
    ],
)
def test_only_a_trusted_proxy_is_believed(peer: str, header: str | None, client: str) -> None:
    assert client_address(peer, header, ("10.0.0.1", "10.0.0.2")) == client


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0ms"),
        (0.12, "120ms"),
        (1.0, "1s"),
        (8.64, "8.64s"),
        (360.0, "6m0s"),
        (3_661, "1h1m1s"),
    ],
)
def test_resets_read_as_openai_writes_them(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text
