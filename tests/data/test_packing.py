"""How documents become sequences: nothing lost, nothing twice, nothing across a boundary."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from rayline.data import collate, load_dataset
from rayline.data.packing import Packing, pack_whole, pack_within_documents
from rayline.spec import NO_TARGET

LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=30)
TEXTS = ["abcdefg", "h", "ijklmnopqrstuvwxyz", "ABC", "DEFGHI"]


def chat(words: str) -> dict[str, Any]:
    user, assistant = {"role": "user", "content": "?"}, {"role": "assistant", "content": words}
    return {"messages": [user, assistant]}


def pieces(packing: Packing, sequence: int) -> list[tuple[int, int]]:
    own = slice(packing.firsts[sequence], packing.firsts[sequence + 1])
    found = zip(packing.starts[own].tolist(), packing.stops[own].tolist(), strict=True)
    return [(begin, stop) for begin, stop in found]


@settings(deadline=None)
@given(LENGTHS, st.integers(2, 32))
def test_windows_keep_to_documents_and_predict_each_token_once(
    lengths: list[int], tokens: int
) -> None:
    stops = np.cumsum(lengths)
    packing = pack_within_documents(stops, tokens)
    places = sum(length - 1 for length in lengths)
    assert len(packing) == places // tokens
    owner = np.repeat(np.arange(len(lengths)), lengths)
    predicted: list[int] = []
    for sequence in range(len(packing)):
        own = pieces(packing, sequence)
        assert sum(stop - begin - 1 for begin, stop in own) == tokens
        for begin, stop in own:
            assert owner[begin] == owner[stop - 1]
            predicted += range(begin + 1, stop)
    firsts = set((stops - lengths).tolist())
    expected = [token for token in range(int(stops[-1])) if token not in firsts]
    assert predicted == expected[: len(packing) * tokens]


@settings(deadline=None)
@given(LENGTHS, st.integers(2, 32))
def test_whole_documents_share_sequences_and_none_is_left_out(
    lengths: list[int], tokens: int
) -> None:
    stops = np.cumsum(lengths)
    packing = pack_whole(stops, tokens)
    found = [piece for sequence in range(len(packing)) for piece in pieces(packing, sequence)]
    starts = (stops - lengths).tolist()
    cut = [
        (start, min(start + length, start + tokens + 1))
        for start, length in zip(starts, lengths, strict=True)
    ]
    assert sorted(found) == cut
    filled = [sum(b - a - 1 for a, b in pieces(packing, n)) for n in range(len(packing))]
    assert max(filled) <= tokens
    # Whatever was packed, no two sequences could be one: best fit opens none that another had
    # room for, so at most one is not more than half full.
    assert sum(fill * 2 <= tokens for fill in filled) <= 1
    first = [pieces(packing, n)[0] for n in range(len(packing))]
    assert first == sorted(first)


def test_text_within_documents(
    data: Any, tokenizer_dir: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    spec = data("text", *({"text": text} for text in TEXTS), tokens=6)
    dataset = load_dataset(spec.changed({"packing": "documents"}), tokenizer_dir)
    end = tokenizer.eos_token_id
    whole = [[*tokenizer.encode(text), end] for text in TEXTS]

    input_ids, labels, positions = collate(dataset, range(len(dataset)))

    assert positions is not None
    count = len(dataset) * 6
    assert count == sum(len(ids) - 1 for ids in whole) // 6 * 6
    assert input_ids.flatten().tolist() == [t for ids in whole for t in ids[:-1]][:count]
    assert labels.flatten().tolist() == [t for ids in whole for t in ids[1:]][:count]
    # Positions begin anew with each document and with each sequence, and nowhere else.
    begins = {0, *np.cumsum([len(ids) - 1 for ids in whole]).tolist(), *range(0, count, 6)}
    found = [place for place, at in enumerate(positions.flatten().tolist()) if at == 0]
    assert found == sorted(begin for begin in begins if begin < count)


def test_several_chats_share_a_sequence_and_keep_their_answers(
    data: Any, tokenizer_dir: Path
) -> None:
    chats = [chat("a" * (1 + 7 * n % 11)) for n in range(12)]
    spec = data("chat", *chats, tokens=160)
    alone = load_dataset(spec, tokenizer_dir)
    packed = load_dataset(spec.changed({"packing": "documents"}), tokenizer_dir)

    assert len(alone) == 12
    assert len(packed) < 7
    seen = []
    for number in range(len(packed)):
        sample = packed[number]
        begins = [*np.flatnonzero(sample.positions == 0).tolist(), 160]
        for begin, end in pairwise(begins):
            labels = sample.labels[begin:end]
            seen.append([int(label) for label in labels if label != NO_TARGET])
    expected = []
    for number in range(12):
        labels = alone[number].labels
        expected.append([int(label) for label in labels if label != NO_TARGET])
    assert sorted(seen) == sorted(expected)
