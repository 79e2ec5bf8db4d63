"""A model's sizes, read from its config."""

from __future__ import annotations

from typing import Any

import pytest

from rayline.errors import SpecError
from rayline.spec import ModelShape

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
    "vocab_size": 264,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
}


def test_every_size_is_read() -> None:
    assert ModelShape.from_config(CONFIG) == ModelShape(
        layers=2,
        hidden=64,
        heads=4,
        kv_heads=2,
        head_dim=16,
        ffn=128,
        vocab=264,
        tied_embeddings=True,
        max_positions=512,
        architecture="LlamaForCausalLM",
    )


def test_what_a_config_may_leave_out_follows_from_the_rest() -> None:
    least = {
        key: CONFIG[key]
        for key in ("num_hidden_layers", "hidden_size", "num_attention_heads", "vocab_size")
    }
    shape = ModelShape.from_config(least)

    assert (shape.kv_heads, shape.head_dim, shape.ffn) == (4, 16, 256)


def test_a_nested_text_config_is_looked_into() -> None:
    assert ModelShape.from_config({"text_config": CONFIG}).hidden == 64


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("num_hidden_layers", None, "has no num_hidden_layers"),
        ("vocab_size", None, "has no vocab_size"),
        ("num_attention_heads", 0, "is no size"),
        ("hidden_size", "64", "is no size"),
        ("intermediate_size", 12.5, "is no size"),
        ("num_key_value_heads", -1, "is no size"),
        ("vocab_size", True, "is no size"),
    ],
)
def test_a_missing_or_impossible_size_is_refused(key: str, value: object, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        ModelShape.from_config({**CONFIG, key: value})
