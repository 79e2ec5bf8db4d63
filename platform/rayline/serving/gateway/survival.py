"""What can be done for a stream whose replica was lost in the middle: a pure function of what was
asked and what has been sent.

See replica/continuing.py for the two ways. What neither can do exactly is ended with an explicit
error event.
"""

from __future__ import annotations

from typing import Literal

from rayline.serving.requests import Route, Tree

Way = Literal["go on", "begin again"]

_CHANGED_BY_MORE = (
    "presence_penalty",
    "frequency_penalty",
    "logprobs",
    "top_logprobs",
    "response_format",
    "tools",
    "bad_words",
    "min_tokens",
    "return_token_ids",
)
"""Fields under which the next token, or what is said of it, depends on more than the tokens before
it: on which of them were generated, on a grammar's state, on what came with them."""


def way_on(route: Route, tree: Tree) -> Way | None:
    """How such a stream goes on, None where it cannot. Greedy and seeded answers end up with the
    text that would have come; one drawn without a seed with one that could have."""
    if route not in ("chat", "completions") or (tree.get("n") or 1) != 1 or tree.get("echo"):
        return None
    prompt = tree.get("prompt")
    if isinstance(prompt, list) and (len(prompt) != 1 and not isinstance(prompt[0], int)):
        return None
    more = any(tree.get(field) for field in _CHANGED_BY_MORE)
    greedy = tree.get("temperature") == 0
    if tree.get("seed") is not None and not greedy:
        return "begin again"
    if more:
        return "begin again" if greedy else None
    return "go on"
