"""TokenDataset: the samples of a job, each a few pieces of a run of tokens.

Every rank has the same dataset: shards of tokens are mapped from files, or made in memory where
there is no cache, and a sampler whose whole state is one number then needs nothing from anyone. How
documents become sequences is `rayline.data.packing`'s.

torch and transformers are imported only where they are needed, so that the driver can check files
without waiting for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from rayline.data.cache import TokenCache
from rayline.data.corpus import Corpus, TokenShard
from rayline.data.order import MixtureOrder
from rayline.data.packing import (
    Packing,
    one_piece_each,
    pack_whole,
    pack_within_documents,
    pack_without_boundaries,
)
from rayline.data.shards import Tokenizing, cached_shards
from rayline.data.source import (
    TRAINING_FILES,
    SourceFile,
    check_tokenizer,
    files_by_source,
)
from rayline.data.split import ALL, Split
from rayline.errors import SpecError
from rayline.spec import NO_TARGET, DataSpec

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Sample:
    """One training sequence."""

    input_ids: npt.NDArray[np.int64]
    """[sequence_tokens]."""
    labels: npt.NDArray[np.int64]
    """[sequence_tokens]: the token to predict at each place, NO_TARGET where there is none."""
    positions: npt.NDArray[np.int64]
    """[sequence_tokens]: each token's place in its piece, from 0; what fills the end counts on."""


class Collated(NamedTuple):
    """Samples as tensors on the CPU, int64 [samples, sequence_tokens] each."""

    input_ids: torch.Tensor
    labels: torch.Tensor
    positions: torch.Tensor | None
    """None where a sequence is one piece: positions then count from its first token."""


@dataclass(frozen=True, slots=True)
class PackedSource:
    """The samples of one source of a mixture."""

    corpus: Corpus
    packing: Packing
    weight: float


@dataclass(frozen=True)
class TokenDataset:
    """Samples of `sequence_tokens`; `len()` of them, reached by number, source after source."""

    sequence_tokens: int
    sources: tuple[PackedSource, ...]
    within_documents: bool
    """Whether a sample may hold several pieces, which do not see each other."""
    pad_id: int
    cut_samples: int
    """Chats that were longer than a sequence and lost their end."""

    @cached_property
    def _ends(self) -> npt.NDArray[np.int64]:
        return np.cumsum([len(source.packing) for source in self.sources], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Sample:
        owner = int(np.searchsorted(self._ends, index, side="right"))
        source = self.sources[owner]
        own = index - (int(self._ends[owner - 1]) if owner else 0)
        input_ids = np.full(self.sequence_tokens, self.pad_id, dtype=np.int64)
        labels = np.full(self.sequence_tokens, NO_TARGET, dtype=np.int64)
        positions = np.arange(self.sequence_tokens, dtype=np.int64)
        packing, begin = source.packing, 0
        for piece in range(packing.firsts[own], packing.firsts[own + 1]):
            tokens, learnt = source.corpus.read(packing.starts[piece], packing.stops[piece])
            end = begin + len(tokens) - 1
            input_ids[begin:end] = tokens[:-1]
            labels[begin:end] = np.where(learnt[1:], tokens[1:], NO_TARGET)
            positions[begin:] = np.arange(self.sequence_tokens - begin)
            begin = end
        return Sample(input_ids, labels, positions)

    def order(self, seed: int) -> MixtureOrder:
        """The order in which a run with this seed takes the samples."""
        sizes = tuple(len(source.packing) for source in self.sources)
        return MixtureOrder(sizes, tuple(source.weight for source in self.sources), seed)


def load_dataset(
    spec: DataSpec,
    tokenizer_dir: Path,
    field: str = TRAINING_FILES,
    *,
    split: Split = ALL,
    cache_dir: Path | None = None,
) -> TokenDataset:
    """The samples of all files of `spec`, by the tokenizer of a model folder.

    Called by every rank, once a list of files; the result is the same on each. `field` is where the
    job names the files, `split` says which documents are taken. Tokens are mapped from shards below
    `cache_dir`, made there by whoever is first; without one each caller tokenizes into memory.
    Raises SpecError naming the file and the line, or the field, that can't be used.
    """
    check_tokenizer(spec, tokenizer_dir)
    tokenizing = Tokenizing(spec.kind, tokenizer_dir)
    cache = None if cache_dir is None else TokenCache(cache_dir)
    sources, pad_ids, cut = [], [], 0
    listed = files_by_source(spec, field)
    for part, files in zip(spec.sources, listed, strict=True):
        shards: list[TokenShard] = []
        for file in files:
            own: Sequence[TokenShard]
            if cache is None:
                own, pad_id = [tokenizing.shard(file)], tokenizing.pad_id
            else:
                found = cached_shards(file, spec.kind, tokenizer_dir, cache)
                own, pad_id = found.shards, found.pad_id
            if spec.kind == "chat":
                cut += sum(_check_chats(shard, file, spec.sequence_tokens) for shard in own)
            shards += own
            pad_ids.append(pad_id)
        corpus = Corpus(shards, [split.kept(shard.digests) for shard in shards])
        sources.append(PackedSource(corpus, _packed(corpus, spec), part.weight))
    _check_sequences(sources, [files[0].field for files in listed], spec, split)
    within_documents = spec.packing == "documents"
    return TokenDataset(spec.sequence_tokens, tuple(sources), within_documents, pad_ids[0], cut)


def collate(dataset: TokenDataset, indices: Sequence[int]) -> Collated:
    """The samples of these numbers, on the CPU; every rank."""
    import torch

    samples = [dataset[index] for index in indices]
    positions = None
    if dataset.within_documents:
        positions = torch.from_numpy(np.stack([sample.positions for sample in samples]))
    return Collated(
        torch.from_numpy(np.stack([sample.input_ids for sample in samples])),
        torch.from_numpy(np.stack([sample.labels for sample in samples])),
        positions,
    )


def _check_chats(shard: TokenShard, file: SourceFile, sequence_tokens: int) -> int:
    """How many chats are longer than a sequence. Raises SpecError at the first whose answers then
    lie behind its end."""
    ends = np.minimum(shard.stops, shard.starts + sequence_tokens + 1)
    learnt = np.append(np.flatnonzero(shard.learnt), len(shard.tokens))
    # The first token is never predicted: nothing comes before it.
    following = learnt[np.searchsorted(learnt, shard.starts + 1)]
    lost = np.flatnonzero(following >= ends)
    if len(lost):
        chat = int(lost[0])
        begin, stop = int(shard.starts[chat]), int(shard.stops[chat])
        first = int(min(following[chat], stop)) - begin
        raise SpecError(
            f"{file}, {_unit(file)} {shard.places[chat]}",
            f"nothing is left to learn once it is cut to data.sequence_tokens: the answer "
            f"begins after {first} tokens",
            value=sequence_tokens,
            allowed=f"{first} or more",
            fix=f"--set data.sequence_tokens={stop - begin - 1}, or remove it",
        )
    return int((ends < shard.stops).sum())


def _unit(file: SourceFile) -> str:
    return "line" if file.address.endswith(".jsonl") else "row"


def _packed(corpus: Corpus, spec: DataSpec) -> Packing:
    if spec.kind == "chat":
        pack = pack_whole if spec.packing == "documents" else one_piece_each
        return pack(corpus.stops, spec.sequence_tokens)
    if spec.packing == "documents":
        return pack_within_documents(corpus.stops, spec.sequence_tokens)
    return pack_without_boundaries(corpus.size, spec.sequence_tokens)


def _check_sequences(
    sources: Sequence[PackedSource], fields: Sequence[str], spec: DataSpec, split: Split
) -> None:
    """Refuse a source without a sequence; of what is held out, one source with any is enough."""
    found = [len(source.packing) for source in sources]
    if all(found) or (split.side == "held out" and any(found)):
        return
    lacking = found.index(0)
    tokens, field = sources[lacking].corpus.size, fields[lacking]
    if not tokens:
        raise split.empty(field)
    raise SpecError(
        "data.sequence_tokens",
        f"{field} hold {tokens} tokens in all{split}, not one complete sequence",
        value=spec.sequence_tokens,
        allowed=f"2..{tokens - 1}" if tokens > 2 else "",
        fix="give more text, or shorter sequences",
    )
