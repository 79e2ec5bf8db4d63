"""What the rest of serving is told of a request."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayline.serving.requests import Asked, PromptSize, parse_request
from support.asking import HELLO, LIMITS, PLAIN, WEATHER, encoded


def asked(route: str, **changes: object) -> Asked:
    return parse_request(route, encoded({**PLAIN[route], **changes}), LIMITS)


@pytest.mark.parametrize(
    ("route", "changes", "max_tokens", "sequences"),
    [
        ("chat", {}, None, 1),
        ("chat", {"max_tokens": 7}, 7, 1),
        ("chat", {"max_tokens": 7, "max_completion_tokens": 9, "n": 3}, 9, 3),
        ("completions", {}, 16, 1),
        ("completions", {"prompt": ["a", "b"], "n": 4, "max_tokens": 5}, 5, 8),
        ("completions", {"prompt": [5, 6]}, 16, 1),
        ("responses", {"max_output_tokens": 8}, 8, 1),
        ("embeddings", {}, 0, 0),
        ("tokenize", {}, 0, 0),
    ],
)
def test_how_much_is_asked_for(route, changes, max_tokens, sequences):
    found = asked(route, **changes)
    assert (found.max_tokens, found.sequences) == (max_tokens, sequences)


def test_greedy_and_seeded_answers_are_told_from_others():
    assert not asked("chat").greedy
    assert not asked("chat", temperature=0.1).greedy
    assert asked("chat", temperature=0).greedy
    assert asked("chat", temperature=0.0, seed=4).seed == 4
    assert not asked("embeddings").greedy


@pytest.mark.parametrize(
    ("changes", "session"),
    [
        ({}, None),
        ({"user": "u"}, "u"),
        ({"user": "u", "safety_identifier": "s"}, "s"),
        ({"user": "u", "safety_identifier": "s", "prompt_cache_key": "p"}, "p"),
        ({"user": "", "prompt_cache_key": None}, None),
    ],
)
def test_a_session_is_what_the_client_calls_it(changes, session):
    assert asked("chat", **changes).session == session


def test_what_is_null_is_left_out_and_the_rest_passes_unchanged():
    body = {"temperature": 0, "stream": True, "top_k": 5, "stop": ["a"], "tools": [WEATHER]}
    assert asked("chat", **body, n=None).tree == {**PLAIN["chat"], **body}
    named = [{"role": "user", "content": "hello", "name": None}]
    assert asked("chat", messages=named).tree["messages"] == HELLO


def test_shown_as_text_it_holds_nothing_of_a_prompt():
    shown = repr(asked("chat", user="somebody"))
    assert "hello" not in shown
    assert "somebody" not in shown


@pytest.mark.parametrize(
    ("route", "changes", "size"),
    [
        ("completions", {"prompt": "é"}, PromptSize(2)),
        ("completions", {"prompt": ["ab", "c"]}, PromptSize(3)),
        ("completions", {"prompt": [1, 2, 3]}, PromptSize(ids=3)),
        ("completions", {"prompt": [[1, 2], [3]]}, PromptSize(ids=3)),
        ("embeddings", {"input": [[1, 2], [3]]}, PromptSize(ids=3)),
        ("detokenize", {}, PromptSize(ids=3)),
        ("score", {"queries": "ab", "documents": ["c", "d", "e"]}, PromptSize(9)),
        ("score", {"queries": ["ab", "c"], "documents": ["d", "e"]}, PromptSize(5)),
        ("rerank", {"query": "ab", "documents": ["c", "d", "e"]}, PromptSize(9)),
        ("responses", {"input": "ab", "instructions": "c"}, PromptSize(3, turns=1)),
        ("tokenize", {"prompt": "ab"}, PromptSize(2)),
    ],
)
def test_how_large_prompts_are(route, changes, size):
    assert asked(route, **changes).prompt == size


def test_tools_are_part_of_the_prompt():
    with_tools = asked("chat", tools=[WEATHER]).prompt
    assert with_tools.text_bytes > len(json.dumps(WEATHER)) + asked("chat").prompt.text_bytes


@given(st.lists(st.text(), min_size=1, max_size=5))
def test_no_prompt_has_more_tokens_than_are_allowed_for(texts):
    """Byte by byte is the most that a tokenizer can make of a text."""
    messages = [{"role": "user", "content": text} for text in texts]
    size = asked("chat", messages=messages).prompt
    assert size.most_tokens >= sum(len(text.encode()) for text in texts) + 5 * len(texts)
    assert size.likely_tokens <= size.most_tokens
