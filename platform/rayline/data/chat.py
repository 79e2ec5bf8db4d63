"""From a chat to tokens, and which of them are learnt: the assistant's words and its end of turn.

A chat template is a program that turns messages into text; what it puts where is its own affair.
So the assistant's part is found by asking the template itself, in the rendered text:

- it begins where the template's own prompt ends: render the messages before it with the
  generation prompt. That is just what the model is given when it serves. If the chat's text does
  not begin with that prompt, the model would be trained on something else than it is asked, and
  the `{% generation %}` marks of the template decide; where it has none, the chat is refused;
- its words end where a mark, put behind them, appears when the chat is rendered again. This also
  holds for templates that rewrite earlier turns (Qwen3 drops their thoughts);
- the special token right behind them ends the turn, and is learnt too.

The text is tokenized once, as a whole, and the places in it are mapped to tokens.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from rayline.data.record import Chat, Message
from rayline.errors import SpecError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class ChatTokens:
    """The tokens of one chat; `learnt[i]` is True where token i is to be predicted."""

    ids: list[int]
    learnt: list[bool]


def tokenize_chat(tokenizer: PreTrainedTokenizerBase, chat: Chat) -> ChatTokens:
    """Render and tokenize `chat` and mark the assistant's tokens, of every turn of it.

    Called by every rank, before the first step. `tokenizer` must be a fast one with a chat
    template. Raises SpecError where the template refuses the chat or hides where answers begin.
    """
    text = _rendered(tokenizer, chat, chat.messages)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids, extents = encoded["input_ids"], encoded["offset_mapping"]
    learnt = [False] * len(ids)
    for number, message in enumerate(chat.messages):
        if message.role != "assistant":
            continue
        begin = _answer_begin(tokenizer, chat, number, text)
        if begin is None:
            return _marked_by_template(tokenizer, chat)
        end = _words_end(tokenizer, chat, number, text)
        words = [i for i, (first, last) in enumerate(extents) if begin < last and first < end]
        behind = next(
            (i for i, (first, last) in enumerate(extents) if end <= first and end < last), len(ids)
        )
        for i in (*words, *_turn_end(tokenizer, ids, behind)):
            learnt[i] = True
    return ChatTokens(ids, learnt)


def _answer_begin(
    tokenizer: PreTrainedTokenizerBase, chat: Chat, number: int, text: str
) -> int | None:
    """Where in `text` message `number` begins, or None if that isn't where the prompt ends."""
    prompt = _rendered(tokenizer, chat, chat.messages[:number], prompt=True)
    return len(prompt) if text.startswith(prompt) else None


def _words_end(tokenizer: PreTrainedTokenizerBase, chat: Chat, number: int, text: str) -> int:
    """Where in `text` the words of message `number` end."""
    mark = next(mark for mark in map(chr, range(0xE000, 0xF900)) if mark not in text)
    said = chat.messages[number]
    marked = [*chat.messages]
    marked[number] = replace(said, content=said.content.rstrip() + mark)
    other = _rendered(tokenizer, chat, marked)
    before, found, _ = other.partition(mark)
    if not found or not text.startswith(before):
        raise SpecError(
            f"{chat.place}, messages[{number}]",
            "the tokenizer's chat template leaves out or changes these words",
            value=said.content[:80],
            fix="use a model whose chat template writes every turn, or cut the chat before it",
        )
    return len(before)


def _turn_end(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], begin: int) -> range:
    """The tokens from `begin` up to the next special one, if only blanks lie before it."""
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    end = begin
    while end < len(ids) and ids[end] not in special:
        if str(tokenizer.decode([ids[end]])).strip():
            return range(begin, begin)
        end += 1
    return range(begin, end + 1) if end < len(ids) else range(begin, begin)


def _marked_by_template(tokenizer: PreTrainedTokenizerBase, chat: Chat) -> ChatTokens:
    """The same, where the template says by `{% generation %}` what the assistant generates."""
    if not re.search(r"{%-?\s*generation\s*-?%}", tokenizer.get_chat_template()):
        raise SpecError(
            str(chat.place),
            "where the assistant's words begin can't be told: with its generation prompt, the "
            "tokenizer's chat template writes the messages before them differently",
            allowed="a template whose prompt is how the chat's text begins, or one with "
            "{% generation %} marks",
            fix="give the model's tokenizer such a template (chat_template.jinja)",
        )
    encoded: Any = tokenizer.apply_chat_template(
        _plain(chat.messages), tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    learnt = [bool(flag) for flag in encoded["assistant_masks"]]
    if not any(learnt):
        raise SpecError(
            str(chat.place),
            "the {% generation %} marks of the tokenizer's chat template enclose no words",
            fix="let them enclose the assistant's words and the end of its turn",
        )
    return ChatTokens(encoded["input_ids"], learnt)


def _rendered(
    tokenizer: PreTrainedTokenizerBase,
    chat: Chat,
    messages: Sequence[Message],
    *,
    prompt: bool = False,
) -> str:
    from jinja2 import TemplateError  # comes with transformers, which the driver may lack

    try:
        return str(
            tokenizer.apply_chat_template(
                _plain(messages), tokenize=False, add_generation_prompt=prompt
            )
        )
    except (TemplateError, TypeError, ValueError, LookupError) as wrong:
        raise SpecError(
            str(chat.place),
            f"the tokenizer's chat template refuses this chat: {wrong}",
            value=[message.role for message in chat.messages],
        ) from None


def _plain(messages: Sequence[Message]) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in messages]
