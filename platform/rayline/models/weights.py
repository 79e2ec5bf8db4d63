"""Weights in: from safetensors, or drawn from a seed, straight into what a rank holds.

Both ways go rectangle by rectangle, so no rank ever holds the whole model. Drawn weights depend on
the seed and the parameter's name only, hence are the same under every plan.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import PreTrainedModel

from rayline.errors import CheckpointError, SpecError
from rayline.parallel.piece import Piece

INDEX_FILE = "model.safetensors.index.json"


def read_pretrained(directory: Path, pieces: Iterable[Piece]) -> None:
    """Fill each weight piece in place from the folder's safetensors; values are cast to the
    piece's type. Raises SpecError where the folder holds no such model, CheckpointError for a torn
    file."""
    files = _file_of_tensor(directory)
    for piece in pieces:
        name = piece.tensor.removeprefix("weight/")
        if name not in files:
            raise SpecError(
                "model", f"its safetensors hold no tensor {name!r}", value=str(directory)
            )
        _read_rectangle(directory / files[name], name, piece)


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


def _read_rectangle(file: Path, name: str, piece: Piece) -> None:
    with _opened(file) as tensors:
        whole = tensors.get_slice(name)
        if tuple(whole.get_shape()) != piece.shape:
            raise SpecError(
                "model",
                f"tensor {name!r} in {file.name} has shape {tuple(whole.get_shape())}, "
                f"the config asks for {piece.shape}",
            )
        if piece.data.numel():
            spans = _spans(piece)
            piece.data.copy_(whole[spans] if spans else tensors.get_tensor(name))


def draw_random(
    model: PreTrainedModel, names: dict[str, str], pieces: Iterable[Piece], seed: int
) -> None:
    """Fill each weight piece in place as the model's own initialization would.

    `model` is the stage's model, unsplit, on the meta device; `names` maps its parameter names to
    names in the whole model. One module at a time is materialized, initialized by transformers
    under a generator seeded by (seed, name), and cut."""
    wanted = {piece.tensor.removeprefix("weight/"): piece for piece in pieces}
    for prefix, module in model.named_modules():
        own = [name for name, _ in module.named_parameters(recurse=False)]
        whole = {name: names.get(f"{prefix}.{name}".lstrip("."), "") for name in own}
        if any(name in wanted for name in whole.values()):
            drawn = _initialized(model, module, seed, whole[own[0]])
            for name in own:
                piece = wanted[whole[name]]
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
