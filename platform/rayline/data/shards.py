"""From files to token shards: found in the cache, or tokenized part by part and put there.

Parts of files are tokenized independently of each other, so whoever has a cluster spreads them (see
`rayline.actors.tokenizing`); without one they are done one after another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from rayline.data.cache import CachedShards, TokenCache, WrittenFile, write_shard
from rayline.data.corpus import TokenShard
from rayline.data.source import (
    FilePart,
    Kind,
    SourceFile,
    chats_of,
    no_chat_template,
    parts_of,
    passages_of,
    stored_file,
)
from rayline.data.tokenizing import load_tokenizer, pad_id, tokenize_chats, tokenize_passages
from rayline.errors import SpecError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

RECORDS_PER_SHARD = 16_384


@dataclass(frozen=True, slots=True)
class ShardTask:
    """One part of a file to tokenize, and where its shard goes."""

    file: SourceFile
    kind: Kind
    tokenizer_dir: Path
    part: FilePart
    folder: Path
    number: int


@dataclass(frozen=True, slots=True)
class ShardDone:
    """What came of a task."""

    files: tuple[WrittenFile, ...]
    pad_id: int


RunTasks = Callable[[Sequence[ShardTask]], Iterable[ShardDone]]
"""Does every task, in whatever order and wherever; returns what came of them, in theirs."""


class Tokenizing:
    """The tokenizer of a model folder, loaded when the first document needs it."""

    def __init__(self, kind: Kind, tokenizer_dir: Path) -> None:
        self._kind = kind
        self._directory = tokenizer_dir

    @cached_property
    def _tokenizer(self) -> PreTrainedTokenizerBase:
        tokenizer = load_tokenizer(self._directory)
        if self._kind == "chat" and not tokenizer.chat_template:
            raise no_chat_template(self._directory)
        return tokenizer

    @property
    def pad_id(self) -> int:
        """What fills the end of a short sequence."""
        return pad_id(self._tokenizer)

    def shard(self, file: SourceFile, part: FilePart | None = None) -> TokenShard:
        """The shard of one file, or of a part of it, in memory. Raises SpecError."""
        if self._kind == "text":
            return TokenShard.of(tokenize_passages(self._tokenizer, passages_of(file, part)))
        return TokenShard.of(tokenize_chats(self._tokenizer, chats_of(file, part)))


def one_after_another(tasks: Sequence[ShardTask]) -> list[ShardDone]:
    """Do the tasks here. Raises SpecError, OSError."""
    makers: dict[tuple[Kind, Path], Tokenizing] = {}
    done = []
    for task in tasks:
        maker = (task.kind, task.tokenizer_dir)
        if maker not in makers:
            makers[maker] = Tokenizing(*maker)
        done.append(do_task(task, makers[maker]))
    return done


def do_task(task: ShardTask, tokenizing: Tokenizing) -> ShardDone:
    """Tokenize one part and write its shard. Raises SpecError, OSError."""
    shard = tokenizing.shard(task.file, task.part)
    written = write_shard(shard, task.folder, task.number)
    return ShardDone(tuple(written), tokenizing.pad_id)


def cached_shards(
    file: SourceFile, kind: Kind, tokenizer_dir: Path, cache: TokenCache
) -> CachedShards:
    """The shards of one file, made if they are not there. Raises SpecError."""
    key = _key(file, kind, tokenizer_dir, cache)
    found = cache.find(key, verify=False)
    while found is None:
        fill_cache([file], kind, tokenizer_dir, cache, one_after_another)
        found = cache.find(key, verify=False)
    return found


def fill_cache(
    files: Sequence[SourceFile],
    kind: Kind,
    tokenizer_dir: Path,
    cache: TokenCache,
    run: RunTasks,
    records: int = RECORDS_PER_SHARD,
) -> int:
    """Make the shards of those files that have none, or damaged ones, by one call of `run`; returns
    how many were made. Called by the driver, or by a rank that finds none. Raises SpecError."""
    missing: dict[str, SourceFile] = {}
    for file in files:
        key = _key(file, kind, tokenizer_dir, cache)
        if key not in missing and cache.find(key, verify=True) is None:
            missing[key] = file
    try:
        with ExitStack() as cleanup:
            folders = {key: cleanup.enter_context(cache.writing(key)) for key in missing}
            tasks = {
                key: [
                    ShardTask(file, kind, tokenizer_dir, part, folders[key], number)
                    for number, part in enumerate(parts_of(file, kind, records))
                ]
                for key, file in missing.items()
            }
            done = iter(run([task for own in tasks.values() for task in own]))
            made = 0
            for key, own in tasks.items():
                shards = [next(done) for _ in own]
                cache.commit(key, folders[key], [s.files for s in shards], shards[0].pad_id)
                made += len(shards)
            return made
    except OSError as wrong:
        raise SpecError(
            "data.cache_dir",
            f"token shards can't be written: {wrong.strerror or wrong}",
            value=str(cache.directory),
            fix="give a folder with room that every node can write to",
        ) from None


def _key(file: SourceFile, kind: Kind, tokenizer_dir: Path, cache: TokenCache) -> str:
    stored = stored_file(file, kind)
    try:
        return cache.key(stored, kind, tokenizer_dir)
    except OSError as wrong:
        raise SpecError(str(file), f"can't be read: {wrong.strerror or wrong}") from None
