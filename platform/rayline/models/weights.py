"""Weights in: from safetensors, or drawn from a seed, straight into what a rank holds.

Both ways go rectangle by rectangle, so no rank ever holds the whole model. Drawn weights depend on
the seed and the parameter's name only, hence are the same under every plan.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import PreTrainedModel

from rayline.errors import CheckpointError, SpecError
from rayline.models.stored import Stored, StoredNames
from rayline.parallel.piece import Piece

INDEX_FILE = "model.safetensors.index.json"


def read_pretrained(directory: Path, pieces: Iterable[Piece], names: StoredNames) -> None:
    """Fill each weight piece in place from the folder's safetensors; values are cast to the
    piece's type. `names` are the rules of the model's architecture. Raises SpecError where the
    folder holds no such model, CheckpointError for a torn file."""
    files = _file_of_tensor(directory)
    for piece in pieces:
        name = piece.tensor.removeprefix("weight/")
        whole = Stored(name, (0,) * len(piece.shape), piece.shape, stacked=False)
        for stored in [whole] if name in files else names.published(name, piece.shape):
            if stored.name not in files:
                raise SpecError(
                    "model", f"its safetensors hold no tensor {stored.name!r}", value=str(directory)
                )
            _read_rectangle(directory / files[stored.name], stored, piece)


def _file_of_tensor(directory: Path) -> dict[str, str]:
    index = directory / INDEX_FILE
    if index.is_file():
        names: dict[str, str] = json.loads(index.read_text())["weight_map"]
        return names
    found: dict[str, str] = {}
    for file in sorted(directory.glob("*.safetensors")):
        with _opened(file) as tensors:
            found.update(dict.fromkeys(tensors.keys(), file.name))
    if not found:
        raise SpecError(
            "model",
            "the folder holds no weights (*.safetensors)",
            value=str(directory),
            fix="give a folder with safetensors, or set init: random to start from its config",
        )
    return found


def _opened(file: Path) -> safe_open:
    try:
        return safe_open(file, framework="pt")
    except (SafetensorError, OSError) as wrong:
        raise CheckpointError(str(file), f"cannot be read as safetensors: {wrong}") from None


def _read_rectangle(file: Path, stored: Stored, piece: Piece) -> None:
    """Copy what the tensor and the piece have in common; a file that has nothing of it is not
    opened (a rank holds few of a mixture's experts)."""
    begins = [max(a, b) for a, b in zip(stored.offset, piece.offset, strict=True)]
    ends = [
        min(a + m, b + n)
        for a, m, b, n in zip(
            stored.offset, stored.extent, piece.offset, piece.data.shape, strict=True
        )
    ]
    if any(begin >= end for begin, end in zip(begins, ends, strict=True)):
        return
    with _opened(file) as tensors:
        whole = tensors.get_slice(stored.name)
        if tuple(whole.get_shape()) != stored.shape():
            raise SpecError(
                "model",
                f"tensor {stored.name!r} in {file.name} has shape {tuple(whole.get_shape())}, "
                f"the config asks for {stored.shape()}",
            )
        there = _within(begins, ends, stored.offset)
        own = piece.data[_within(begins, ends, piece.offset)]
        if stored.stacked:
            there, own = there[1:], own[0]
        own.copy_(whole[there] if there else tensors.get_tensor(stored.name))


def _within(begins: Sequence[int], ends: Sequence[int], offset: Sequence[int]) -> tuple[slice, ...]:
    """A rectangle of the whole tensor as an index into what begins at `offset`."""
    return tuple(
        slice(begin - first, end - first)
        for begin, end, first in zip(begins, ends, offset, strict=True)
    )


def draw_random(
    model: PreTrainedModel, names: dict[str, str], pieces: Iterable[Piece], seed: int
) -> None:
    """Fill each weight piece in place as the model's own initialization would.

    `model` is the stage's model, unsplit, on the meta device; `names` maps its parameter names to
    names in the whole model. One module at a time is materialized, initialized by transformers
    under a generator seeded by (seed, name), and cut."""
    wanted: dict[str, list[Piece]] = defaultdict(list)
    for piece in pieces:
        wanted[piece.tensor.removeprefix("weight/")].append(piece)
    for prefix, module in model.named_modules():
        own = [name for name, _ in module.named_parameters(recurse=False)]
        whole = {name: names.get(f"{prefix}.{name}".lstrip("."), "") for name in own}
        if any(name in wanted for name in whole.values()):
            drawn = _initialized(model, module, seed, whole[own[0]])
            for name in own:
                for piece in wanted[whole[name]]:
                    piece.data.copy_(drawn.get_parameter(name).detach()[_spans(piece)])


def _initialized(model: PreTrainedModel, module: nn.Module, seed: int, name: str) -> nn.Module:
    """The module alone, on CPU, initialized by the model's own rule."""
    alone = copy.deepcopy(module)
    alone._modules.clear()
    alone.to_empty(device="cpu")
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        for parameter in alone.parameters():
            # Whatever the rule below forgets stays visible.
            parameter.fill_(float("nan"))
        reset = getattr(alone, "reset_parameters", None)
        if callable(reset):
            reset()
        model._init_weights(alone)
    if any(parameter.isnan().any() for parameter in alone.parameters()):
        raise SpecError(
            "init",
            f"{type(model).__name__} has no rule to initialize {name} ({type(module).__name__})",
            value="random",
            fix="start from weights: init: weights",
        )
    return alone


def _spans(piece: Piece) -> tuple[slice, ...]:
    """The piece's rectangle as an index into the whole tensor."""
    return tuple(
        slice(begin, begin + size)
        for begin, size in zip(piece.offset, piece.data.shape, strict=True)
    )
