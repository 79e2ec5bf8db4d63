"""Experts as they are published: one file tensor for each expert's matrix."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from rayline.errors import CheckpointError
from rayline.models.stored import StoredNames
from rayline.models.weights import INDEX_FILE, read_pretrained
from rayline.parallel.piece import Piece
from support.architectures import write_architecture


@pytest.mark.parametrize("model_type", ["mixtral", "qwen3_moe", "olmoe", "llama"])
def test_what_is_published_is_what_transformers_saves(tmp_path: Path, model_type: str) -> None:
    folder = write_architecture(tmp_path / model_type, model_type, num_hidden_layers=2)
    saved = load_file(folder / "model.safetensors")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    published = dict(StoredNames(model_type).publish(model.named_parameters()))
    assert published.keys() == saved.keys()
    for name, tensor in saved.items():
        assert torch.equal(published[name], tensor), name


def test_a_rectangle_of_stacked_experts_is_read_from_their_files(tmp_path: Path) -> None:
    folder = write_architecture(tmp_path / "mixtral", "mixtral", num_hidden_layers=2)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    name = "model.layers.1.mlp.experts.gate_up_proj"
    whole = model.get_parameter(name).detach()
    # Experts 1 and 2; rows from the end of the gate into the beginning of up; all columns.
    begin, end = (1, whole.shape[1] // 2 - 5, 0), (3, whole.shape[1] // 2 + 7, whole.shape[2])
    wanted = whole[tuple(slice(a, b) for a, b in zip(begin, end, strict=True))]
    piece = Piece(f"weight/{name}", tuple(whole.shape), begin, torch.empty_like(wanted), owner=True)
    read_pretrained(folder, [piece], StoredNames("mixtral"))
    assert torch.equal(piece.data, wanted)


def test_files_of_other_ranks_experts_are_never_opened(tmp_path: Path) -> None:
    folder = write_architecture(tmp_path / "mixtral", "mixtral", num_hidden_layers=1)
    stored = load_file(folder / "model.safetensors")
    name = "model.layers.0.mlp.experts.down_proj"
    own = {key: tensor for key, tensor in stored.items() if ".experts.2." in key}
    save_file(own, folder / "own.safetensors")
    files = {key: "own.safetensors" if key in own else "torn.safetensors" for key in stored}
    (folder / INDEX_FILE).write_text(json.dumps({"weight_map": files}))
    (folder / "torn.safetensors").write_bytes(b"nothing")

    def read(first: int) -> torch.Tensor:
        data = torch.empty(1, 64, 96)
        piece = Piece(f"weight/{name}", (4, 64, 96), (first, 0, 0), data, owner=True)
        read_pretrained(folder, [piece], StoredNames("mixtral"))
        return data[0]

    (found,) = (tensor for key, tensor in own.items() if key.endswith("w2.weight"))
    assert torch.equal(read(2), found)
    with pytest.raises(CheckpointError, match="torn"):
        read(1)
