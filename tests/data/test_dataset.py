"""Samples as the model gets them: shifted, padded, packed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from rayline.data import check_files, collate, load_dataset
from rayline.errors import SpecError
from rayline.spec import NO_TARGET

GOOD = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}
PROMPT = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


def test_a_chat_is_shifted_by_one_and_padded(
    data: Any, tokenizer_dir: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    dataset = load_dataset(data("chat", GOOD, tokens=64), tokenizer_dir)
    whole = tokenizer.encode(PROMPT + "Hello<|im_end|>\n")
    answer = tokenizer.encode("Hello<|im_end|>")

    sample = dataset[0]

    assert (len(dataset), dataset.cut_samples) == (1, 0)
    assert sample.input_ids.dtype == sample.labels.dtype == np.int64
    assert sample.input_ids.shape == sample.labels.shape == (64,)
    assert sample.input_ids[: len(whole) - 1].tolist() == whole[:-1]
    assert set(sample.input_ids[len(whole) - 1 :].tolist()) == {tokenizer.pad_token_id}
    first = len(tokenizer.encode(PROMPT)) - 1
    expected = np.full(64, NO_TARGET)
    expected[first : first + len(answer)] = answer
    assert sample.labels.tolist() == expected.tolist()


def test_a_long_chat_is_cut_and_counted(data: Any, tokenizer_dir: Path) -> None:
    whole = load_dataset(data("chat", GOOD, tokens=64), tokenizer_dir)
    targets = whole[0].labels.tolist()
    first = next(place for place, label in enumerate(targets) if label != NO_TARGET)

    dataset = load_dataset(data("chat", GOOD, tokens=first + 2), tokenizer_dir)

    assert dataset.cut_samples == 1
    assert dataset[0].labels.tolist() == targets[: first + 2]


def test_a_chat_whose_answer_is_cut_away_is_refused_by_its_line(
    data: Any, tokenizer_dir: Path
) -> None:
    long = {"messages": [{"role": "user", "content": "Hi" * 40}, GOOD["messages"][1]]}
    spec = data("chat", GOOD, long, tokens=40)
    with pytest.raises(SpecError, match=r"line 2: nothing is left to learn") as refused:
        load_dataset(spec, tokenizer_dir)

    needed = int(refused.value.allowed.split()[0])
    roomy = load_dataset(spec.changed({"sequence_tokens": needed}), tokenizer_dir)
    assert (roomy[1].labels != NO_TARGET).sum() == 1


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    texts=st.lists(st.text(st.characters(codec="utf-8"), min_size=1), min_size=1, max_size=20),
    tokens=st.integers(2, 40),
)
def test_packing_loses_nothing_but_the_last_incomplete_window(
    data: Any,
    tokenizer_dir: Path,
    tokenizer: PreTrainedTokenizerBase,
    texts: list[str],
    tokens: int,
) -> None:
    spec = data("text", *({"text": text} for text in texts), tokens=tokens)
    stream = [
        token
        for text in texts
        for token in (*tokenizer.encode(text, split_special_tokens=False), tokenizer.eos_token_id)
    ]
    windows = (len(stream) - 1) // tokens
    if windows == 0:
        with pytest.raises(SpecError, match="not one complete sequence"):
            load_dataset(spec, tokenizer_dir)
        return

    dataset = load_dataset(spec, tokenizer_dir)
    samples = [dataset[index] for index in range(len(dataset))]

    assert len(dataset) == windows
    assert np.concatenate([s.input_ids for s in samples]).tolist() == stream[: windows * tokens]
    assert np.concatenate([s.labels for s in samples]).tolist() == stream[1 : windows * tokens + 1]


def test_a_begin_token_of_the_tokenizer_stays_and_ends_are_not_doubled(
    data: Any, tokenizer_dir: Path, tmp_path: Path
) -> None:
    from tokenizers.processors import TemplateProcessing

    spec = data("text", {"text": "ab"}, {"text": "cd"}, tokens=3)
    bos, eos = "<|endoftext|>", "<|im_end|>"
    for end in ("", f" {eos}"):
        tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir)
        ids = [(text, tokenizer.convert_tokens_to_ids(text)) for text in (bos, eos)]
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single=f"{bos} $A{end}", special_tokens=ids
        )
        tokenizer.save_pretrained(tmp_path / "own")

        dataset = load_dataset(spec, tmp_path / "own")

        (source,) = dataset.sources
        assert (
            tokenizer.decode(source.corpus.read(0, source.corpus.size)[0])
            == f"{bos}ab{eos}{bos}cd{eos}"
        )


def test_a_batch_of_plain_windows_is_two_tensors(data: Any, tokenizer_dir: Path) -> None:
    dataset = load_dataset(data("text", *[{"text": "abcdefg"}] * 5, tokens=8), tokenizer_dir)

    input_ids, labels, positions = collate(dataset, [2, 0, 2])

    assert input_ids.dtype == labels.dtype == torch.int64
    assert input_ids.shape == labels.shape == (3, 8)
    assert torch.equal(input_ids[0], input_ids[2])
    assert torch.equal(input_ids[:, 1:], labels[:, :-1])
    assert positions is None


def test_a_tokenizer_that_cannot_serve_is_refused(
    data: Any, tokenizer_dir: Path, tmp_path: Path
) -> None:
    chat, text = data("chat", GOOD), data("text", {"text": "abc"}, name="t.jsonl", tokens=2)
    own = tmp_path / "own"
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir)
    tokenizer.eos_token = None
    tokenizer.chat_template = None
    tokenizer.save_pretrained(own)

    with pytest.raises(SpecError, match="no end token"):
        load_dataset(text, own)
    with pytest.raises(SpecError, match="has no chat template"):
        load_dataset(chat, own)
    (own / "tokenizer.json").write_text("{")
    with pytest.raises(SpecError, match="can't be loaded"):
        load_dataset(text, own)


@pytest.mark.parametrize(("name", "kind"), [("facts.jsonl", "chat"), ("text.jsonl", "text")])
def test_the_bundled_examples_can_be_used(tokenizer_dir: Path, name: str, kind: str) -> None:
    from rayline.spec import DataSpec

    file = Path(__file__).parents[2] / "examples" / "data" / name
    spec = DataSpec.parse({"kind": kind, "files": [str(file)], "sequence_tokens": 256})

    assert check_files(spec) >= 20
    dataset = load_dataset(spec, tokenizer_dir)
    assert dataset.cut_samples == 0
    assert all((dataset[index].labels != NO_TARGET).any() for index in range(len(dataset)))
