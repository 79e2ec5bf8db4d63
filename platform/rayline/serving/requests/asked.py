"""A request that may be answered, as the rest of serving needs to know it."""

from __future__ import annotations

from dataclasses import dataclass

from rayline.serving.requests.body import read_json
from rayline.serving.requests.fields import fields_of
from rayline.serving.requests.prompts import PromptSize, prompt_size, prompts
from rayline.serving.requests.refusal import Tree
from rayline.serving.requests.routes import Route
from rayline.serving.requests.rules import check_rules
from rayline.spec import RequestLimits

_SESSION = ("prompt_cache_key", "safety_identifier", "user")
_MOST_TOKENS = ("max_completion_tokens", "max_output_tokens", "max_tokens")
_GATEWAYS_OWN = {"metadata", "store", "service_tier", *_SESSION}
"""What an engine has no use for."""


@dataclass(frozen=True, slots=True)
class Asked:
    """One request, checked."""

    route: Route
    model: str
    tree: Tree
    """The body without what only the gateway needs, and without fields that are null: what an
    engine gets."""
    stream: bool
    max_tokens: int | None
    """Most tokens asked for in each sequence; None: as many as the model has room for. 0 where
    nothing is generated."""
    sequences: int
    """How many are generated: prompts times choices. 0 where nothing is."""
    prompt: PromptSize
    greedy: bool
    """Whether each token is the likeliest: the answer is the same every time."""
    seed: int | None
    session: str | None
    """What requests of one conversation have in common, where the client says so: they do best on
    the replica that has its beginning cached. Never logged."""


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
    given = {name: value for name, value in tree.items() if value is not None}
    check_rules(route, given, limits)
    generates = route in ("chat", "completions", "responses")
    stated = (given.get(name) for name in _MOST_TOKENS)
    return Asked(
        route=route,
        model=given["model"],
        tree={name: value for name, value in given.items() if name not in _GATEWAYS_OWN},
        stream=given.get("stream", False),
        max_tokens=next((most for most in stated if most is not None), None) if generates else 0,
        sequences=prompts(route, given) * given.get("n", 1) if generates else 0,
        prompt=prompt_size(route, given),
        greedy=generates and (given.get("temperature") == 0 or given.get("top_k") == 1),
        seed=given.get("seed"),
        session=next((given[name] for name in _SESSION if given.get(name)), None),
    )
