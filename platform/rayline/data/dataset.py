"""TokenDataset: all samples of a job as one run of tokens, and where in it each sample lies.

Every rank builds the same dataset from the same files: tokens are small beside a model, and a
sampler whose whole state is one number then needs nothing from anyone. A chat is one sample. Text
is packed: documents follow each other, an end token between them, and a window begins where the
one before it ended.

torch and transformers are imported only where they are needed, so that the driver can check files
without waiting for them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from rayline.data.chat import tokenize_chat
from rayline.data.source import (
    TRAINING_FILES,
    check_tokenizer,
    no_chat_template,
    read_chats,
    read_passages,
)
from rayline.errors import SpecError
from rayline.spec import NO_TARGET, DataSpec

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

_PASSAGES_AT_ONCE = 1024
"""Passages handed to the tokenizer together; it spreads them over the cores."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One training sequence."""

    input_ids: npt.NDArray[np.int64]
    """[sequence_tokens]."""
    labels: npt.NDArray[np.int64]
    """[sequence_tokens]: the token to predict at each place, NO_TARGET where there is none."""


@dataclass(frozen=True, slots=True)
class TokenDataset:
    """Samples of `sequence_tokens`; `len()` of them, reached by number."""

    sequence_tokens: int
    tokens: npt.NDArray[np.int32]
    """All tokens of all samples, one after another."""
    learnt: npt.NDArray[np.bool_]
    """For each of them: is it to be predicted?"""
    starts: npt.NDArray[np.int64]
    """Where in `tokens` each sample begins."""
    stops: npt.NDArray[np.int64]
    """Where it ends: at most sequence_tokens + 1 further on, for the last one is predicted only."""
    pad_id: int
    cut_samples: int
    """Chats that were longer than a sequence and lost their end."""

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> Sample:
        place = slice(self.starts[index], self.stops[index])
        tokens, learnt = self.tokens[place], self.learnt[place]
        input_ids = np.full(self.sequence_tokens, self.pad_id, dtype=np.int64)
        labels = np.full(self.sequence_tokens, NO_TARGET, dtype=np.int64)
        input_ids[: len(tokens) - 1] = tokens[:-1]
        labels[: len(tokens) - 1] = np.where(learnt[1:], tokens[1:], NO_TARGET)
        return Sample(input_ids, labels)


def load_dataset(spec: DataSpec, tokenizer_dir: Path, field: str = TRAINING_FILES) -> TokenDataset:
    """Read and tokenize all files of `spec` with the tokenizer of a model folder.

    Called by every rank, once a list of files; the result is the same on each. `field` is where the
    job names the files. Raises SpecError naming the file and the line, or the field, that can't be
    used.
    """
    check_tokenizer(spec, tokenizer_dir)
    tokenizer = _load_tokenizer(tokenizer_dir)
    if spec.kind == "text":
        return _packed(spec, tokenizer, field)
    if not tokenizer.chat_template:
        raise no_chat_template(tokenizer_dir)
    return _chats(spec, tokenizer, field)


def collate(dataset: TokenDataset, indices: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """input_ids and labels, int64 [len(indices), sequence_tokens], on the CPU; every rank."""
    import torch

    samples = [dataset[index] for index in indices]
    return (
        torch.from_numpy(np.stack([sample.input_ids for sample in samples])),
        torch.from_numpy(np.stack([sample.labels for sample in samples])),
    )


def _load_tokenizer(directory: Path) -> PreTrainedTokenizerBase:
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


def _chats(spec: DataSpec, tokenizer: PreTrainedTokenizerBase, field: str) -> TokenDataset:
    longest = spec.sequence_tokens + 1
    tokens: list[npt.NDArray[np.int32]] = []
    learnt: list[npt.NDArray[np.bool_]] = []
    cut = 0
    for chat in read_chats(spec, field):
        found = tokenize_chat(tokenizer, chat)
        # The first token is never predicted: nothing comes before it.
        if not any(found.learnt[1:longest]):
            first = next((i for i, flag in enumerate(found.learnt) if flag), len(found.ids))
            raise SpecError(
                str(chat.place),
                f"nothing is left to learn once it is cut to data.sequence_tokens: the answer "
                f"begins after {first} tokens",
                value=spec.sequence_tokens,
                allowed=f"{first} or more",
                fix=f"--set data.sequence_tokens={len(found.ids) - 1}, or remove the line",
            )
        cut += len(found.ids) > longest
        tokens.append(np.asarray(found.ids[:longest], dtype=np.int32))
        learnt.append(np.asarray(found.learnt[:longest], dtype=np.bool_))
    stops = np.cumsum([len(part) for part in tokens], dtype=np.int64)
    return TokenDataset(
        sequence_tokens=spec.sequence_tokens,
        tokens=np.concatenate(tokens),
        learnt=np.concatenate(learnt),
        starts=np.concatenate([[0], stops[:-1]]).astype(np.int64),
        stops=stops,
        pad_id=_pad_id(tokenizer),
        cut_samples=cut,
    )


def _packed(spec: DataSpec, tokenizer: PreTrainedTokenizerBase, field: str) -> TokenDataset:
    if tokenizer.eos_token_id is None:
        raise SpecError(
            "data.kind",
            "the model's tokenizer has no end token to put between documents",
            value="text",
            fix="set eos_token in its tokenizer_config.json",
        )
    texts = (passage.text for passage in read_passages(spec, field))
    tokens = np.concatenate(list(_documents(texts, tokenizer)))
    # Neighbouring windows share one token: the last of one, which it only predicts, is the first
    # that the next one reads. So every token but the very first is predicted exactly once.
    windows = (len(tokens) - 1) // spec.sequence_tokens
    if windows == 0:
        raise SpecError(
            "data.sequence_tokens",
            f"{field} hold {len(tokens)} tokens in all, not one complete sequence",
            value=spec.sequence_tokens,
            allowed=f"2..{len(tokens) - 1}" if len(tokens) > 2 else "",
            fix="give more text, or shorter sequences",
        )
    starts = np.arange(windows, dtype=np.int64) * spec.sequence_tokens
    return TokenDataset(
        sequence_tokens=spec.sequence_tokens,
        tokens=tokens,
        learnt=np.ones(len(tokens), dtype=np.bool_),
        starts=starts,
        stops=starts + spec.sequence_tokens + 1,
        pad_id=_pad_id(tokenizer),
        cut_samples=0,
    )


def _documents(
    texts: Iterable[str], tokenizer: PreTrainedTokenizerBase
) -> Iterator[npt.NDArray[np.int32]]:
    """Each text's tokens, an end token behind them. What the tokenizer by itself puts in front of
    a text (Llama 3: a begin token) stays."""
    remaining, end = iter(texts), tokenizer.eos_token_id
    while some := list(islice(remaining, _PASSAGES_AT_ONCE)):
        for ids in tokenizer(some, return_attention_mask=False, verbose=False)["input_ids"]:
            ended = ids if ids[-1:] == [end] else [*ids, end]
            yield np.asarray(ended, dtype=np.int32)


def _pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """What fills the end of a short sequence. No loss is taken there, and causal attention looks
    back only, so any token of the vocabulary serves."""
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    return 0
