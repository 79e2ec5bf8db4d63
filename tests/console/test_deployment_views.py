"""Served models as values, and sessions that lead to the version that somebody wants to ask."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayline.console.access_views import key_rows, usage_rows
from rayline.console.chatting import times
from rayline.console.deployment_views import chat_targets, deployment_view, session_of
from rayline.console.lineage import verified
from rayline.serving.access.keys import ApiKey
from rayline.serving.access.usage import UsageSum
from rayline.serving.director.blueprint import Event
from rayline.serving.director.status import Felt, ModelStatus, VersionStatus
from rayline.serving.rollout.choosing import Weights, choose
from rayline.serving.rollout.gates import Verdict
from rayline.serving.scaling.deciding import Decision
from rayline.serving.scaling.signals import Reading
from rayline.spec import Limits


def version(number: int, percent: float, **more: object) -> VersionStatus:
    known: dict[str, object] = {
        "number": number,
        "state": "serving",
        "reason": "",
        "model": "registry:bot@champion",
        "registry_version": 6 + number,
        "run_id": "9f2c",
        "revision": f"r{number}",
        "app": f"bot--v{number}",
        "created_at_s": 0.0,
        "percent": percent,
        "up": 2,
        "wanted": 3,
        "decision": None,
        "felt": None,
    }
    return VersionStatus(**(known | more))  # type: ignore[arg-type]


DECISION = Decision(
    3,
    "requests per replica",
    20,
    8,
    "requests per replica 20 of 8 asks for 3",
    "4 asked for; max_replicas is 3",
    (Reading("requests per replica", 20, 8, 3),),
)
STATUS = ModelStatus(
    model="bot",
    stable=1,
    canary=2,
    goal=25.0,
    verdict=Verdict("wait", "31 of min_requests 50 answered"),
    held=4,
    versions=(
        version(2, 10.0, felt=Felt(31, 1, 12.4, 40.1, 3.14)),
        version(1, 90.0, decision=DECISION),
    ),
    events=(Event(1.0, "version 2 is up"), Event(2.0, "version 2 gets 10 %")),
)


def test_a_served_model_says_who_gets_what_and_why() -> None:
    view = deployment_view(STATUS)
    assert (view.percent, view.goal, view.held, view.up) == (10.0, 25.0, 4, 4)
    assert view.gates == "wait: 31 of min_requests 50 answered"
    newest, stable = view.versions
    assert (newest.role, newest.ttft_p95_ms, newest.requests) == ("canary", 40.1, 31)
    assert newest.scaling == ""
    assert stable.scaling == (
        "3 replicas: requests per replica 20 of 8 asks for 3; 4 asked for; max_replicas is 3"
    )
    assert stable.model == "registry:bot@champion (version 7)"
    assert [signal.wants for signal in stable.signals] == [3]
    assert view.events[0].text == "version 2 gets 10 %"


@settings(max_examples=40)
@given(percent=st.floats(0.5, 99.5))
def test_a_session_leads_to_the_version_that_it_was_sought_for(percent: float) -> None:
    weights = Weights("bot", 1, 2, percent)
    for number in (1, 2):
        session = session_of(weights, number)
        assert session is not None
        assert choose(weights, session, 0.999) == number


def test_both_versions_of_a_rollout_can_be_asked() -> None:
    targets = chat_targets(["bot", "legal"], [deployment_view(STATUS)])
    assert [target.label for target in targets] == [
        "bot",
        "legal",
        "bot, version 1 (stable)",
        "bot, version 2 (canary)",
    ]
    assert [target.version for target in targets] == [None, None, 1, 2]
    # A version that gets nothing cannot be reached, and is not offered.
    assert session_of(Weights("bot", 1, 2, 0.0), 2) is None
    assert chat_targets(["legal"], [deployment_view(STATUS)])[1:] == []


def test_keys_and_usage_are_told_without_secrets() -> None:
    limits = Limits(tokens_per_min=60_000, budget_tokens=2_000_000, budget_period="month")
    rows = key_rows(
        [
            ApiKey("key_1", "old", revoked_at_s=5.0),
            ApiKey("key_2", "gone", expires_at_s=5.0),
            ApiKey("key_3", "new", "research", limits=limits, weight=3, models=("bot",)),
        ],
        now_s=10.0,
    )
    assert [(row.name, row.state) for row in rows] == [
        ("new", "in use"),
        ("old", "revoked"),
        ("gone", "expired"),
    ]
    assert rows[0].limits == "60,000 tokens/min, 2,000,000 tokens a month"
    assert (rows[0].priority, rows[0].models) == ("normal ×3", "bot")
    (used,) = usage_rows([UsageSum("key_3", "new", 9, 6, 1, 1, 1, 100, 20, 40, 3.0)])
    assert (used.requests, used.tokens, used.cached_tokens) == (9, 140, 20)


def test_times_of_an_answer_count_the_engines_tokens() -> None:
    found = times(10.0, 10.2, 11.2, pieces=3, usage={"completion_tokens": 11, "prompt_tokens": 4})
    assert found["ttft_ms"] == pytest.approx(200)
    assert found["tpot_ms"] == pytest.approx(100)
    assert (found["tokens"], found["prompt_tokens"]) == (11, 4)
    assert times(0.0, 1.0, 1.0, pieces=1, usage=None)["tpot_ms"] is None


def test_what_a_check_found_is_one_sentence() -> None:
    figures = {"logit_difference": "2.1e-06", "logit_tolerance": "0.0001", "probed_tokens": "64"}
    assert verified(figures) == (
        "logits differ by 2.1e-06 of the largest, 0.0001 allowed, over 64 tokens"
    )
    assert verified({"step": "7"}) == "step 7"
