"""The tiny model is a real one: loaded by transformers, and the same bytes every time."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from rayline.errors import SpecError
from rayline.models.tiny import byte_tokenizer, write_tiny_model

SMALL: dict[str, Any] = {"layers": 2, "hidden": 32, "heads": 4, "kv_heads": 2, "ffn": 48}
TOKENIZER = byte_tokenizer(vocab=264, max_positions=128)


def hashes(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_transformers_loads_what_was_written(tmp_path: Path, architecture: Any, tied: bool) -> None:
    folder = write_tiny_model(tmp_path / "m", architecture=architecture, tied=tied, **SMALL)
    model = AutoModelForCausalLM.from_pretrained(folder)

    assert type(model).__name__.lower() == f"{architecture}forcausallm"
    assert model.dtype == torch.float32
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    assert len(model.model.layers) == 2
    assert model.generation_config.eos_token_id == TOKENIZER.eos_token_id
    # What it says depends on what it reads: attention is not a mere average.
    with torch.no_grad():
        one, other = (model(torch.tensor([[a, 5, 6]])).logits[0, -1] for a in (3, 4))
    assert (one - other).abs().max() > 1e-3


def test_the_same_arguments_give_the_same_bytes_and_leave_the_generator_alone(
    tmp_path: Path,
) -> None:
    torch.manual_seed(11)
    undisturbed = torch.rand(1)
    torch.manual_seed(11)
    first = hashes(write_tiny_model(tmp_path / "a", **SMALL))
    assert torch.equal(torch.rand(1), undisturbed)

    assert hashes(write_tiny_model(tmp_path / "b", **SMALL)) == first
    other = hashes(write_tiny_model(tmp_path / "c", seed=1, **SMALL))
    assert other["model.safetensors"] != first["model.safetensors"]


@given(st.text(st.characters(codec="utf-8")))
def test_any_text_comes_back_from_its_bytes(text: str) -> None:
    ids = TOKENIZER.encode(text, add_special_tokens=False)
    assert TOKENIZER.decode(ids) == text
    if "<|" not in text:
        assert len(ids) == len(text.encode())


def test_the_tokenizer_that_was_saved_is_the_one_that_was_made(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "m", vocab=300, **SMALL)
    loaded = AutoTokenizer.from_pretrained(folder)
    chat = [{"role": "user", "content": "Hé"}]

    assert len(loaded) == 300
    assert loaded.is_fast
    assert loaded.eos_token != loaded.pad_token
    assert loaded.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) == (
        "<|im_start|>user\nHé<|im_end|>\n<|im_start|>assistant\n"
    )
    assert loaded.decode(range(256, 300), skip_special_tokens=True) == ""


@pytest.mark.parametrize(
    ("sizes", "subject"),
    [
        ({"hidden": 30, "heads": 4}, "hidden"),
        ({"hidden": 36, "heads": 12, "kv_heads": 3}, "hidden"),
        ({"heads": 4, "kv_heads": 3}, "kv_heads"),
        ({"vocab": 258}, "vocab"),
    ],
)
def test_sizes_that_make_no_model_are_refused(
    tmp_path: Path, sizes: dict[str, int], subject: str
) -> None:
    with pytest.raises(SpecError) as refused:
        write_tiny_model(tmp_path / "m", **sizes)
    assert refused.value.subject == subject
    assert not (tmp_path / "m").exists()
