"""Ten thousand hostile bodies for every route: each is let through or refused, and nothing else."""

from __future__ import annotations

import json
import time
from collections import Counter

import pytest

from rayline.serving.requests import Asked, RefusedError, parse_request
from support.asking import LIMITS, PLAIN
from support.mutating import GOOD, cases

CASES = 10_000


@pytest.mark.parametrize("route", sorted(PLAIN))
def test_every_body_is_let_through_or_refused(route):
    seen: Counter[str] = Counter()
    for case in cases(route, CASES, seed=1):
        began_s = time.thread_time()
        try:
            assert isinstance(parse_request(route, case.body, LIMITS), Asked)
            seen["passed"] += 1
        except RefusedError as refused:
            body = refused.refusal.body()
            assert 400 <= refused.refusal.status < 500  # noqa: PT017 - either outcome will do
            assert set(body["error"]) == {"message", "type", "param", "code"}
            assert len(json.dumps(body)) < 1000
            seen[str(refused.refusal.code)] += 1
        assert time.thread_time() - began_s < 3, case.body[:200]
    assert seen["passed"] > CASES // 50
    assert seen["invalid_json"] > CASES // 50
    assert len(seen) > 6, seen


@pytest.mark.parametrize("route", sorted(PLAIN))
def test_what_the_cases_are_made_of_passes(route):
    for changes in GOOD[route]:
        parse_request(route, json.dumps({**PLAIN[route], **changes}).encode(), LIMITS)


def test_the_same_seed_makes_the_same_cases():
    assert list(cases("chat", 50, seed=3)) == list(cases("chat", 50, seed=3))
    assert list(cases("chat", 50, seed=3)) != list(cases("chat", 50, seed=4))
