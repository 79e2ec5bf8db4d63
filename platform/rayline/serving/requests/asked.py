"""A request that may be answered, as the rest of serving needs to know it."""

from __future__ import annotations

from dataclasses import dataclass, field

from rayline.serving.requests.body import read_json
from rayline.serving.requests.fields import fields_of
from rayline.serving.requests.prompts import PromptSize, prompt_size, prompts
from rayline.serving.requests.refusal import Tree
from rayline.serving.requests.routes import Route
from rayline.serving.requests.rules import check_rules
from rayline.spec import RequestLimits

_SESSION = ("prompt_cache_key", "safety_identifier", "user")
DEFAULT_COMPLETION_TOKENS = 16
"""What /v1/completions generates where the request does not say (OpenAI's number, and vLLM's)."""


@dataclass(frozen=True, slots=True)
class Asked:
    """One request, checked. Shown as text it holds nothing of what a client wrote."""

    route: Route
    model: str
    tree: Tree = field(repr=False)
    """The body, without fields and parts of messages that are null."""
    stream: bool
    max_tokens: int | None
    """Most tokens of each sequence; None: as many as the model has room for. 0 where nothing is
    generated."""
    sequences: int
    """How many are generated: prompts times choices. 0 where nothing is."""
    prompt: PromptSize
    greedy: bool
    """Whether each token is the likeliest: the answer is the same every time."""
    seed: int | None
    session: str | None = field(repr=False)
    """What requests of one conversation have in common, where the client says so: they do best on
    the replica that has its beginning cached."""


def parse_request(route: Route, body: bytes, limits: RequestLimits) -> Asked:
    """The request that a body makes, checked as far as it can be without the engine.

    Called by the gateway, for whatever model the body names: whether that one is served, and to
    this key, is for the caller to say. Raises RefusedError.
    """
    return check_request(route, read_json(body, limits), limits)


def check_request(route: Route, tree: Tree, limits: RequestLimits) -> Asked:
    """As parse_request, of a body that has been read already: whose model had to be known in order
    to know its limits, or that came in a file of many. Raises RefusedError."""
    fields_of(route, limits).check(tree, "")
    given = _given(tree)
    if "messages" in given:
        given["messages"] = [_given(message) for message in given["messages"]]
    check_rules(route, given, limits)
    generates = route in ("chat", "completions", "responses")
    return Asked(
        route=route,
        model=given["model"],
        tree=given,
        stream=given.get("stream", False),
        max_tokens=_most_tokens(route, given) if generates else 0,
        sequences=prompts(route, given) * given.get("n", 1) if generates else 0,
        prompt=prompt_size(route, given),
        greedy=generates and given.get("temperature") == 0,
        seed=given.get("seed"),
        session=next((given[name] for name in _SESSION if given.get(name)), None),
    )


def _given(tree: Tree) -> Tree:
    return {name: value for name, value in tree.items() if value is not None}


def _most_tokens(route: Route, tree: Tree) -> int | None:
    for name in ("max_completion_tokens", "max_output_tokens", "max_tokens"):
        if name in tree:
            return int(tree[name])
    return DEFAULT_COMPLETION_TOKENS if route == "completions" else None
