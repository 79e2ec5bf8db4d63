"""Weights out: a Hugging Face folder, written one tensor at a time."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import save_file

from rayline.models.stored import StoredNames
from rayline.models.weights import INDEX_FILE

_NOT_COPIED = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.gguf", "*.index.json", ".*")
"""What a source folder holds besides config and tokenizer; weights come from training."""


def write_hugging_face(
    weights: Iterable[tuple[str, torch.Tensor]],
    source: Path,
    target: Path,
    dtype: torch.dtype,
    published: StoredNames,
    shard_bytes: int = 4 * 2**30,
) -> int:
    """Write `weights` (name, whole tensor on CPU) as `dtype` in safetensors of at most
    `shard_bytes` each, as `published` says that the architecture is published, beside the config
    and tokenizer of `source`; returns the number of parameters. Holds one shard in memory. `target`
    must not exist; one process calls it."""
    ignored = shutil.ignore_patterns(*_NOT_COPIED)
    shutil.copytree(source, target, ignore=ignored)
    shards: list[dict[str, torch.Tensor]] = [{}]
    names: list[list[str]] = []
    held_bytes = count = total_bytes = 0
    for name, whole in published.publish(weights):
        # A copy: tied or sliced tensors must not drag a larger storage along.
        tensor = whole.to(dtype).contiguous().clone()
        size = tensor.numel() * tensor.element_size()
        if shards[-1] and held_bytes + size > shard_bytes:
            names.append(_write_shard(target, len(names), shards.pop()))
            shards.append({})
            held_bytes = 0
        shards[-1][name] = tensor
        held_bytes += size
        total_bytes += size
        count += tensor.numel()
    names.append(_write_shard(target, len(names), shards.pop()))
    _name_shards(target, names, total_bytes)
    _write_dtype(target, dtype)
    return count


def _write_shard(target: Path, number: int, shard: dict[str, torch.Tensor]) -> list[str]:
    save_file(shard, str(target / _temporary(number)), metadata={"format": "pt"})
    return list(shard)


def _temporary(number: int) -> str:
    return f"shard-{number:05d}.safetensors"


def _name_shards(target: Path, names: list[list[str]], total_bytes: int) -> None:
    """Give the files the names that transformers and vLLM look for."""
    if len(names) == 1:
        (target / _temporary(0)).rename(target / "model.safetensors")
        return
    file_of: dict[str, str] = {}
    for number, held in enumerate(names):
        file = f"model-{number + 1:05d}-of-{len(names):05d}.safetensors"
        (target / _temporary(number)).rename(target / file)
        file_of.update(dict.fromkeys(held, file))
    index = {"metadata": {"total_size": total_bytes}, "weight_map": file_of}
    (target / INDEX_FILE).write_text(json.dumps(index, indent=2, sort_keys=True))


def _write_dtype(target: Path, dtype: torch.dtype) -> None:
    """Say in the config what the weights are, so that loaders do not cast them."""
    file = target / "config.json"
    config = json.loads(file.read_text())
    config.pop("torch_dtype", None)
    config["dtype"] = str(dtype).removeprefix("torch.")
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
