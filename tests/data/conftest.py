"""A tokenizer whose tokens are bytes, and data files written for each test."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from rayline.models.tiny import byte_tokenizer
from rayline.spec import DataSpec

WriteLines = Callable[..., DataSpec]


@pytest.fixture(scope="session")
def tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    byte_tokenizer(vocab=264, max_positions=512).save_pretrained(folder)
    return folder


@pytest.fixture
def tokenizer(tokenizer_dir: Path) -> PreTrainedTokenizerBase:
    loaded: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(tokenizer_dir)
    return loaded


@pytest.fixture
def data(tmp_path: Path) -> WriteLines:
    """data("chat", line, ...): the spec of one file with these lines; what is no str is JSON."""

    def write(kind: str, *lines: Any, name: str = "lines.jsonl", tokens: int = 128) -> DataSpec:
        file = tmp_path / name
        texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
        file.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
        return DataSpec.parse({"kind": kind, "files": [str(file)], "sequence_tokens": tokens})

    return write
