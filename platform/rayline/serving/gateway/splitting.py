"""Prompts that another replica computes (engine.split): pure functions of a request.

The gateway first asks a replica that computes prompts for one token, which nobody sees; with it
comes where the pages of the prompt's keys and values lie. It puts that into the request that it
then asks a replica that writes answers, which fetches the pages, replica to replica, and writes.
Where any of that does not work, the second computes the prompt itself: slower, the same answer.

The fields are those of vLLM's NIXL connector (vllm 0.32). No client may send them.
"""

from __future__ import annotations

import json
from dataclasses import replace

from rayline.serving.requests import Route, Tree
from rayline.serving.wire import Ask, WholeAnswer

_FIELD = "kv_transfer_params"
_KEEP_PAGES: Tree = {
    "do_remote_decode": True,
    "do_remote_prefill": False,
    "remote_engine_id": None,
    "remote_block_ids": None,
    "remote_host": None,
    "remote_port": None,
}
_ROUTES: tuple[Route, ...] = ("chat", "completions")
_ABOUT_THE_PROMPT = ("echo", "prompt_logprobs")
"""Fields whose answer only who computes the prompt can give."""
_ABOUT_THE_ANSWER = (
    "stream",
    "stream_options",
    "min_tokens",
    "logprobs",
    "top_logprobs",
    "max_completion_tokens",
)
"""Fields without a meaning where one token is generated and thrown away."""


def can_split(route: Route, tree: Tree, sequences: int) -> bool:
    """Whether the pages of one prompt are all that the answer needs."""
    alone = route in _ROUTES and sequences == 1
    return alone and not any(tree.get(field) for field in _ABOUT_THE_PROMPT)


def prompt_alone(ask: Ask) -> Ask:
    """What a replica that computes prompts is asked."""
    tree = {name: value for name, value in ask.tree.items() if name not in _ABOUT_THE_ANSWER}
    return replace(ask, tree={**tree, "max_tokens": 1, _FIELD: _KEEP_PAGES})


def pages_in(answer: WholeAnswer) -> Tree | None:
    """Where it says that the pages lie; None where it says nothing of that."""
    found = json.loads(answer.json_text).get(_FIELD)
    return found if isinstance(found, dict) else None


def with_pages(ask: Ask, pages: Tree) -> Ask:
    """What a replica that writes answers is asked then."""
    return replace(ask, tree={**ask.tree, _FIELD: pages})
