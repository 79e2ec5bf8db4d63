"""Token shards: made once, found again by content, never half there."""

from __future__ import annotations

import multiprocessing
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from rayline.data import TokenCache, TokenDataset, cache, load_dataset, shards
from rayline.data.shards import Tokenizing, fill_cache, one_after_another
from rayline.data.source import files_by_source
from rayline.errors import SpecError
from rayline.spec import DataSpec

TEXTS = [{"text": f"{n} times seven is {7 * n}"} for n in range(50)]
CHATS = [
    {
        "messages": [
            {"role": "user", "content": f"{n}?"},
            {"role": "assistant", "content": str(7 * n)},
        ]
    }
    for n in range(20)
]


class TokenizerCalledError(AssertionError):
    """Something was tokenized that need not be."""


@pytest.fixture
def no_tokenizer(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    def refuse(directory: Path) -> None:
        raise TokenizerCalledError(directory)

    monkeypatch.setattr(shards, "load_tokenizer", refuse)
    return monkeypatch


def assert_same(first: TokenDataset, second: TokenDataset) -> None:
    assert len(first) == len(second) > 0
    for number in range(len(first)):
        for one, other in zip(
            (first[number].input_ids, first[number].labels, first[number].positions),
            (second[number].input_ids, second[number].labels, second[number].positions),
            strict=True,
        ):
            assert np.array_equal(one, other)


@pytest.fixture(params=["text", "chat"])
def spec(request: pytest.FixtureRequest, data: Any) -> DataSpec:
    made: DataSpec = data(request.param, *(TEXTS if request.param == "text" else CHATS), tokens=64)
    return made


def test_a_second_start_maps_what_the_first_made(
    spec: DataSpec, tokenizer_dir: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    kept = tmp_path / "tokens"
    in_memory = load_dataset(spec, tokenizer_dir)
    assert_same(load_dataset(spec, tokenizer_dir, cache_dir=kept), in_memory)

    request.getfixturevalue("no_tokenizer")
    again = load_dataset(spec, tokenizer_dir, cache_dir=kept)
    assert_same(again, in_memory)
    (shard,) = again.sources[0].corpus.shards
    assert isinstance(shard.tokens, np.memmap)
    # The same content under another name, and other ways to pack it, are the same shards.
    moved = shutil.copy(spec.sources[0].files[0], tmp_path / "moved.jsonl")
    for changes in ({"files": [str(moved)]}, {"packing": "documents"}, {"sequence_tokens": 50}):
        load_dataset(spec.changed(changes), tokenizer_dir, cache_dir=kept)
    with pytest.raises(TokenizerCalledError):
        load_dataset(spec, tokenizer_dir, cache_dir=tmp_path / "elsewhere")


def test_other_content_or_another_tokenizer_are_other_shards(
    data: Any, tokenizer_dir: Path, tmp_path: Path
) -> None:
    kept, own = tmp_path / "tokens", tmp_path / "own"
    spec = data("text", *TEXTS, tokens=16)
    first = load_dataset(spec, tokenizer_dir, cache_dir=kept)
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir)
    tokenizer.eos_token = "<|endoftext|>"
    tokenizer.save_pretrained(own)
    assert_same(load_dataset(spec, own, cache_dir=kept), load_dataset(spec, own))
    data("text", *TEXTS[1:], tokens=16)  # writes the same file anew
    assert_same(
        load_dataset(spec, tokenizer_dir, cache_dir=kept), load_dataset(spec, tokenizer_dir)
    )
    assert len(load_dataset(spec, tokenizer_dir, cache_dir=kept)) < len(first)
    assert len([path for path in kept.iterdir() if path.is_dir()]) == 3


@pytest.mark.parametrize("damage", ["flip", "cut", "lose an array", "lose the manifest", "garble"])
def test_what_is_damaged_is_made_anew(
    data: Any, tokenizer_dir: Path, tmp_path: Path, damage: str
) -> None:
    kept, spec = tmp_path / "tokens", data("text", *TEXTS, tokens=16)
    whole = load_dataset(spec, tokenizer_dir)
    load_dataset(spec, tokenizer_dir, cache_dir=kept)
    (folder,) = kept.iterdir()
    array, manifest = folder / "00000-tokens.npy", folder / "manifest.json"
    content = bytearray(array.read_bytes())
    if damage == "flip":
        content[-3] ^= 1
        array.write_bytes(content)
    elif damage == "cut":
        array.write_bytes(content[:-4])
    elif damage == "garble":
        manifest.write_text('{"files": [')
    else:
        (array if damage == "lose an array" else manifest).unlink()

    assert_same(load_dataset(spec, tokenizer_dir, cache_dir=kept), whole)
    assert list(kept.iterdir()) == [folder]
    assert TokenCache(kept).find(folder.name, verify=True) is not None


def test_the_driver_finds_damage_in_large_shards(
    data: Any, tokenizer_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "SMALL_BYTES", 100)
    kept, spec = TokenCache(tmp_path / "tokens"), data("text", *TEXTS, tokens=16)
    (files,) = files_by_source(spec)

    def fill() -> int:
        return fill_cache(files, "text", tokenizer_dir, kept, one_after_another, records=20)

    assert (fill(), fill()) == (3, 0)
    whole = load_dataset(spec, tokenizer_dir)
    assert_same(load_dataset(spec, tokenizer_dir, cache_dir=kept.directory), whole)
    (folder,) = [path for path in kept.directory.iterdir() if path.name != "sources"]
    array = folder / "00001-tokens.npy"
    content = bytearray(array.read_bytes())
    content[-3] ^= 1
    array.write_bytes(content)
    assert fill() == 3
    assert_same(load_dataset(spec, tokenizer_dir, cache_dir=kept.directory), whole)
    # A source's hash is remembered, until the file is written again.
    assert len(list((kept.directory / "sources").iterdir())) == 1
    data("text", *TEXTS, {"text": "one more"}, tokens=16)
    assert fill() == 3
    assert len(list((kept.directory / "sources").iterdir())) == 2


def test_a_maker_that_fails_leaves_nothing(
    data: Any, tokenizer_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    spec = data("text", *TEXTS, tokens=16)
    with monkeypatch.context() as broken:
        broken.setattr(shards, "write_shard", fail)
        with pytest.raises(SpecError, match=r"data\.cache_dir: .*No space left"):
            load_dataset(spec, tokenizer_dir, cache_dir=tmp_path / "tokens")
    assert list((tmp_path / "tokens").iterdir()) == []
    load_dataset(spec, tokenizer_dir, cache_dir=tmp_path / "tokens")


def start(spec: DataSpec, tokenizer_dir: Path, kept: Path, ready: Any, found: Any) -> None:
    """One of several processes that begin at once."""
    original = Tokenizing.shard

    def together(*arguments: Any) -> Any:
        made = original(*arguments)
        ready.wait(60)  # nobody has written anything yet
        return made

    Tokenizing.shard = together  # type: ignore[method-assign]
    dataset = load_dataset(spec, tokenizer_dir, cache_dir=kept)
    found.put([dataset[n].input_ids.tolist() for n in range(len(dataset))])


def test_several_starts_at_once_make_one(data: Any, tokenizer_dir: Path, tmp_path: Path) -> None:
    spec, kept = data("text", *TEXTS, tokens=16), tmp_path / "tokens"
    forks = multiprocessing.get_context("fork")
    ready, found = forks.Barrier(3), forks.Queue()
    processes = [
        forks.Process(target=start, args=(spec, tokenizer_dir, kept, ready, found))
        for _ in range(3)
    ]
    for process in processes:
        process.start()
    samples = [found.get(timeout=120) for _ in processes]
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert samples[0] == samples[1] == samples[2]
    (folder,) = kept.iterdir()
    assert TokenCache(kept).find(folder.name, verify=True) is not None
