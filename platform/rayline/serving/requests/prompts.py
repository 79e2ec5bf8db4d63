"""How large the prompts of a request are, told without a tokenizer."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

from rayline.serving.requests.refusal import Tree
from rayline.serving.requests.routes import Route

BYTES_PER_TOKEN = 4
"""Bytes of text in one token, as English prose has them; other text has fewer."""
TURN_TOKENS = 5
"""Tokens that a chat template puts around one turn."""
MOST_TURN_TOKENS = 16
MOST_TEMPLATE_TOKENS = 256
"""Tokens that a chat template says by itself: who the model is, how tools are called."""


@dataclass(frozen=True, slots=True)
class PromptSize:
    """What is known of all prompts of one request together."""

    text_bytes: int = 0
    """Of text, as UTF-8."""
    ids: int = 0
    """Tokens that were given as ids."""
    turns: int = 0
    """Messages that go through the chat template."""

    @property
    def most_tokens(self) -> int:
        """No fewer than there are, of a tokenizer that does not lengthen text: a token stands for
        at least one byte. For admission."""
        template = MOST_TEMPLATE_TOKENS + MOST_TURN_TOKENS * self.turns if self.turns else 0
        return self.text_bytes + self.ids + template

    @property
    def likely_tokens(self) -> int:
        """About as many as there are. For quotas, which are set right by the answer's usage."""
        return math.ceil(self.text_bytes / BYTES_PER_TOKEN) + self.ids + TURN_TOKENS * self.turns


def prompts(route: Route, tree: Tree) -> int:
    """How many prompts a request that generates holds."""
    prompt = tree.get("prompt")
    if route == "completions" and isinstance(prompt, list) and not isinstance(prompt[0], int):
        return len(prompt)
    return 1


def prompt_size(route: Route, tree: Tree) -> PromptSize:
    """Of a request that has been checked."""
    if route == "rerank":
        texts = _bytes(tree["documents"]) + _bytes(tree["query"]) * len(tree["documents"])
        return PromptSize(texts)
    if route == "score":
        return PromptSize(_pair_bytes(tree))
    if route == "detokenize":
        return PromptSize(ids=len(tree["tokens"]))
    parts = [tree.get(name) for name in ("messages", "input", "prompt", "instructions")]
    turns = sum(len(part) for part in parts if isinstance(part, list) and isinstance(part[0], dict))
    if route in ("chat", "responses"):
        turns = max(1, turns)
    text_bytes = sum(map(_bytes, parts))
    if tools := tree.get("tools"):
        # As most templates show them to the model.
        text_bytes += len(json.dumps(tools, ensure_ascii=False, indent=4).encode())
    return PromptSize(text_bytes, sum(map(_ids, parts)), turns)


def _pair_bytes(tree: Tree) -> int:
    first = tree.get("text_1", tree.get("queries"))
    second = tree.get("text_2", tree.get("documents"))
    pairs = len(second) if isinstance(second, list) else 1
    shared = not isinstance(first, list) or len(first) == 1
    return _bytes(first) * (pairs if shared else 1) + _bytes(second)


def _bytes(value: object) -> int:
    """Of all strings in a piece of JSON."""
    if isinstance(value, str):
        return len(value.encode())
    if isinstance(value, dict):
        return sum(map(_bytes, value.values()))
    if isinstance(value, list):
        return 0 if value and isinstance(value[0], int) else sum(map(_bytes, value))
    return 0


def _ids(value: object) -> int:
    """Of all lists of token ids in a prompt."""
    if not isinstance(value, list) or not value:
        return 0
    return len(value) if isinstance(value[0], int) else sum(map(_ids, value))
