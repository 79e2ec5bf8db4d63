"""What a verification trains: a model's folder in Hugging Face's layout, and a file of chats."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from rayline.errors import SpecError
from rayline.models.tiny import byte_tokenizer

CONFIG = "config.json"
_MAX_POSITIONS = 2048
_VECTOR_SPREAD = 0.1
"""Norms begin at one and biases at zero: spread, their shards can be told from one another."""
_LONGEST_ANSWER = 30


def write_small_model(folder: Path, config: Mapping[str, Any], seed: int) -> None:
    """A folder with this config, a byte tokenizer and drawn weights. One process calls it. Raises
    SpecError where transformers cannot build the model."""
    _write_config(folder, config)
    vocab = (config.get("text_config") or config)["vocab_size"]
    byte_tokenizer(vocab, _MAX_POSITIONS).save_pretrained(folder)
    _draw_weights(folder, seed)


def write_whole_model(
    folder: Path, config: Mapping[str, Any], source: Path, draw_seed: int | None
) -> None:
    """A folder with this config and all else of `source`, not copied; where `draw_seed` is given,
    with weights drawn from it instead. One process calls it. Raises SpecError as above."""
    _write_config(folder, config)
    for file in source.iterdir():
        drawn = draw_seed is not None and ".safetensors" in file.name
        if file.name != CONFIG and not drawn:
            (folder / file.name).symlink_to(file.absolute())
    if draw_seed is not None:
        _draw_weights(folder, draw_seed)


def _write_config(folder: Path, config: Mapping[str, Any]) -> None:
    (folder / CONFIG).write_text(json.dumps(config, indent=1), encoding="utf-8")


def _draw_weights(folder: Path, seed: int) -> None:
    torch.manual_seed(seed)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    # transformers' model code raises whatever its arithmetic runs into.
    except Exception as wrong:
        raise SpecError(
            "model",
            f"transformers cannot build it from the config as it is verified: {wrong}",
            fix="where the whole model can be built, verify that: --whole",
        ) from wrong
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() < 2:
                parameter.add_(torch.randn_like(parameter), alpha=_VECTOR_SPREAD)
    # Only weights are wanted; the folder's own config stays as it is written.
    kept = (folder / CONFIG).read_bytes()
    model.save_pretrained(folder)
    (folder / CONFIG).write_bytes(kept)


def write_chats(file: Path, count: int) -> None:
    """Made-up chats that fit a shrunk sequence. Their answers differ in length, so that workers
    hold different numbers of targets and a mean of means is not the mean."""
    lines = []
    for number in range(count):
        length = 1 + number * 11 % _LONGEST_ANSWER
        answer = "".join(chr(97 + (number * 7 + place * place) % 26) for place in range(length))
        turns = [
            {"role": "user", "content": str(number)},
            {"role": "assistant", "content": answer},
        ]
        lines.append(json.dumps({"messages": turns}))
    file.write_text("\n".join(lines), encoding="utf-8")
