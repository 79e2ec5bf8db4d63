"""From chats and passages to documents of tokens, by the tokenizer of a model folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from rayline.data.chat import tokenize_chat
from rayline.data.corpus import Document
from rayline.data.record import Chat, Passage
from rayline.errors import SpecError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PASSAGES_AT_ONCE = 1024
"""Passages handed to the tokenizer together; it spreads them over the cores."""


def load_tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    """The fast tokenizer of a model folder. Raises SpecError where there is none."""
    from transformers import AutoTokenizer

    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            directory, local_files_only=True
        )
    except Exception as wrong:  # noqa: BLE001 - a damaged file makes tokenizers raise Exception
        raise SpecError(f"model ({directory})", f"the tokenizer can't be loaded: {wrong}") from None
    if not tokenizer.is_fast:
        raise SpecError(
            f"model ({directory})",
            "the tokenizer can't tell which words a token stands for",
            value=type(tokenizer).__name__,
            allowed="a fast tokenizer, with a tokenizer.json",
        )
    return tokenizer


def tokenize_chats(tokenizer: PreTrainedTokenizerBase, chats: Iterable[Chat]) -> Iterator[Document]:
    """Each chat whole, as its template writes it. Raises SpecError naming the chat's place."""
    for chat in chats:
        found = tokenize_chat(tokenizer, chat)
        said = [[message.role, message.content] for message in chat.messages]
        content = json.dumps(said, ensure_ascii=False)
        yield Document(found.ids, found.learnt, chat.place.line, content_digest(content))


def tokenize_passages(
    tokenizer: PreTrainedTokenizerBase, passages: Iterable[Passage]
) -> Iterator[Document]:
    """Each text's tokens, an end token behind them. What the tokenizer by itself puts in front of
    a text (Llama 3: a begin token) stays. Raises SpecError where it has no end token."""
    remaining, end = iter(passages), tokenizer.eos_token_id
    if end is None:
        raise SpecError(
            "data.kind",
            "the model's tokenizer has no end token to put between documents",
            value="text",
            fix="set eos_token in its tokenizer_config.json",
        )
    while some := list(islice(remaining, _PASSAGES_AT_ONCE)):
        texts = [passage.text for passage in some]
        found = tokenizer(texts, return_attention_mask=False, verbose=False)["input_ids"]
        for passage, ids in zip(some, found, strict=True):
            ended = ids if ids[-1:] == [end] else [*ids, end]
            yield Document(ended, None, passage.place.line, content_digest(passage.text))


def content_digest(content: str) -> int:
    """Number below 2**64 that is evenly spread and depends on `content` alone: the first eight
    bytes of its SHA-256."""
    return int.from_bytes(hashlib.sha256(content.encode()).digest()[:8], "big")


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """What fills the end of a short sequence. No loss is taken there, and causal attention looks
    back only, so any token of the vocabulary serves."""
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    return 0
