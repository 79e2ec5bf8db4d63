"""Who is let in, for how long, and under which name the console is reached."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayline.console.guarding import from_own_page, is_known
from rayline.console.server import Opened
from rayline.console.signing import KEY_PREFIX, SESSION_S, Reception, Visitor
from rayline.serving.access.key_store import KeyStore, open_keys
from rayline.spec import KeySpec


class Clock:
    """Seconds as a test tells them."""

    def __init__(self) -> None:
        self.now_s = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def address(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/serving.db"


@pytest.fixture
def keys(address: str) -> KeyStore:
    return open_keys(address)


def test_the_consoles_own_key_opens_it_and_looks_only(address: str, tmp_path: Path) -> None:
    reception = Reception(address, allow_changes=False)
    assert reception.key.startswith(KEY_PREFIX)
    assert len(reception.key) > 40
    assert reception.visitor(reception.key) == Visitor("console key", may_change=False)
    for wrong in ("", reception.key[:-1], f"{reception.key}x", "é" * 300):
        assert reception.visitor(wrong) is None
    assert Reception(address, allow_changes=True, key="k").visitor("k") == Visitor(
        "console key", may_change=True
    )
    # Asking for keys does not make a store.
    assert not (tmp_path / "serving.db").exists()


def test_an_operators_api_key_may_change_things_and_others_may_not_enter(
    address: str, keys: KeyStore
) -> None:
    operator = keys.create(KeySpec(name="ops", scopes=("admin",))).secret
    user = keys.create(KeySpec(name="user")).secret
    reception = Reception(address, allow_changes=False)
    visitor = reception.visitor(operator)
    assert visitor is not None
    assert (visitor.name, visitor.may_change) == ("ops", True)
    assert reception.visitor(user) is None


def test_a_session_ends_by_itself_by_hand_and_with_its_key(
    address: str, keys: KeyStore, clock: Clock
) -> None:
    operator = keys.create(KeySpec(name="ops", scopes=("admin",))).secret
    reception = Reception(address, allow_changes=False, clock=clock)
    visitor = reception.visitor(operator)
    assert visitor is not None
    token, session = reception.begin(visitor)
    assert reception.session(token) == session
    assert reception.session(f"{token}x") is None
    keys.revoke("ops")
    clock.now_s += 1.5
    assert reception.session(token) is None
    own, _ = reception.begin(Visitor("console key", may_change=False))
    clock.now_s += SESSION_S - 1
    assert reception.session(own) is not None
    clock.now_s += 2
    assert reception.session(own) is None
    left, _ = reception.begin(Visitor("console key", may_change=False))
    reception.end(left)
    assert reception.session(left) is None


def test_sessions_do_not_pile_up(address: str) -> None:
    reception = Reception(address, allow_changes=False)
    tokens = [reception.begin(Visitor("v", may_change=False))[0] for _ in range(300)]
    assert reception.session(tokens[0]) is None
    assert reception.session(tokens[-1]) is not None


def test_secrets_are_in_no_repr(address: str) -> None:
    opened = Opened("http://127.0.0.1:1", "rlc-secret", may_change=False)
    assert "rlc-secret" not in repr(opened)
    assert opened.sign_in_url == "http://127.0.0.1:1/sign-in#key=rlc-secret"


@pytest.mark.parametrize(
    ("host", "known"),
    [
        ("localhost:8080", True),
        ("LOCALHOST", True),
        ("127.0.0.1:9", True),
        ("[::1]:9", True),
        ("10.1.2.3", True),
        ("gpu-head.lan:80", True),
        ("evil.example:8080", False),
        ("127.0.0.1.evil.example", False),
        ("localhost.evil.example", False),
        ("", False),
    ],
)
def test_a_name_that_somebody_could_rebind_is_not_known(host: str, known: bool) -> None:
    assert is_known(host, {"localhost", "gpu-head.lan"}) is known


@given(st.text())
def test_no_host_header_breaks_the_check(host: str) -> None:
    assert is_known(host, ()) in (True, False)


def test_only_the_consoles_own_page_changes_things() -> None:
    assert from_own_page("http://127.0.0.1:80", "127.0.0.1:80")
    assert from_own_page(None, "127.0.0.1:80")
    for origin in ("http://127.0.0.1:81", "null", "https://evil.example", ""):
        assert not from_own_page(origin, "127.0.0.1:80")
