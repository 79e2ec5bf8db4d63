"""Training and held-out text: a document's content alone puts it on its side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayline.data import Split, load_dataset
from rayline.data.tokenizing import content_digest
from rayline.errors import SpecError
from rayline.spec import NO_TARGET, DataSpec

CONTENTS = st.lists(st.text(max_size=20), max_size=40)
FRACTIONS = st.floats(0, 1, exclude_min=True, exclude_max=True)


def held_out(contents: list[str], fraction: float) -> list[str]:
    digests = np.asarray([content_digest(text) for text in contents], dtype=np.uint64)
    flags = Split("held out", fraction).kept(digests)
    others = Split("training", fraction).kept(digests)
    assert (flags != others).all()
    return [text for text, flag in zip(contents, flags, strict=True) if flag]


@settings(deadline=None)
@given(CONTENTS, CONTENTS, FRACTIONS, st.randoms(use_true_random=False))
def test_a_document_stays_on_its_side_whatever_is_around_it(
    contents: list[str], more: list[str], fraction: float, random: Any
) -> None:
    chosen = set(held_out(contents, fraction))
    shuffled = [*contents, *more]
    random.shuffle(shuffled)
    again = set(held_out(shuffled, fraction))
    assert chosen == again & set(contents)
    # A larger fraction takes more, and gives none back.
    assert again <= set(held_out(shuffled, min((1 + fraction) / 2, 1 - 2**-53)))


def test_the_share_is_the_fraction() -> None:
    contents = [f"document {n}" for n in range(20_000)]
    # Four standard deviations of a fair draw.
    assert len(held_out(contents, 0.1)) == pytest.approx(2000, abs=170)


@pytest.mark.parametrize("packing", ["dense", "documents"])
def test_every_text_is_learnt_or_held_out(data: Any, tokenizer_dir: Path, packing: str) -> None:
    texts = [chr(ord("A") + n) * (3 + n % 3) for n in range(24)]
    spec = data("text", *({"text": text} for text in texts), tokens=2)
    spec = spec.changed({"packing": packing})
    tokens = {}
    for side in ("training", "held out"):
        dataset = load_dataset(spec, tokenizer_dir, split=Split(side, 0.4))
        (source,) = dataset.sources
        ids, learnt = source.corpus.read(0, source.corpus.size)
        assert learnt.all()
        tokens[side] = set(ids.tolist())
        read = {int(one) for n in range(len(dataset)) for one in dataset[n].input_ids}
        assert read <= tokens[side]
    shared = tokens["training"] & tokens["held out"]
    assert len(shared) == 1  # the end token
    assert len(tokens["training"] | tokens["held out"]) == 25
    assert 4 < len(tokens["held out"]) < 16


def test_a_chat_is_held_out_whole_wherever_it_stands(data: Any, tokenizer_dir: Path) -> None:
    chats = [
        {
            "messages": [
                {"role": "user", "content": "?"},
                {"role": "assistant", "content": chr(ord("A") + n)},
            ]
        }
        for n in range(24)
    ]

    def answers(lines: list[dict[str, Any]], side: Any) -> list[int]:
        spec = data("chat", *lines, tokens=64)
        dataset = load_dataset(spec, tokenizer_dir, split=Split(side, 0.4))
        samples = [dataset[n] for n in range(len(dataset))]
        return [int(sample.labels[sample.labels != NO_TARGET][0]) for sample in samples]

    learnt, kept = answers(chats, "training"), answers(chats, "held out")
    assert len(learnt) + len(kept) == len(set(learnt) | set(kept)) == 24
    turned = [json.loads(json.dumps(chat)) | {"id": 1} for chat in reversed(chats)]
    assert answers(turned, "held out") == kept[::-1]


def test_a_small_source_may_give_nothing_to_the_held_out_side(
    tmp_path: Path, tokenizer_dir: Path
) -> None:
    texts = {"small.txt": ["a"], "large.txt": [f"line {n}" for n in range(200)]}
    for name, lines in texts.items():
        (tmp_path / name).write_text("\n".join(lines))
    fraction = 0.1
    assert held_out(texts["small.txt"], fraction) == []
    mixture = [{"files": [str(tmp_path / name)]} for name in texts]
    for packing in ("dense", "documents"):
        spec = DataSpec.parse(
            {"kind": "text", "mixture": mixture, "sequence_tokens": 2, "packing": packing}
        )
        kept = load_dataset(spec, tokenizer_dir, split=Split("held out", fraction))
        assert [len(source.packing) > 0 for source in kept.sources] == [False, True]
        assert (kept[0].labels >= 0).all()
        with pytest.raises(SpecError, match=r"data\.mixture\[0\]\.files hold 2 tokens"):
            load_dataset(spec, tokenizer_dir, split=Split("training", fraction))


def test_a_side_without_documents_is_refused(data: Any, tokenizer_dir: Path) -> None:
    spec = data("text", {"text": "abcdefg"}, tokens=2)
    outcomes = []
    for side in ("training", "held out"):
        try:
            load_dataset(spec, tokenizer_dir, split=Split(side, 0.5))
        except SpecError as refused:
            outcomes.append((refused.subject, refused.problem))
    (outcome,) = outcomes
    assert outcome[0] == "evaluation.fraction"
    assert outcome[1].startswith("no document of data.files is")
