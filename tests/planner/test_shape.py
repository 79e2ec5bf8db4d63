"""The shape of a model folder, and what is said of a folder that has none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rayline.errors import SpecError
from rayline.planner import read_model_shape

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "vocab_size": 264,
}


def test_the_sizes_come_from_config_json(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    shape = read_model_shape(tmp_path)

    assert (shape.layers, shape.hidden, shape.vocab) == (2, 64, 264)
    assert shape.architecture == "LlamaForCausalLM"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "holds no config.json"),
        (b"{", "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b"[1]", "no object"),
        (json.dumps({**CONFIG, "vocab_size": None}).encode(), "has no vocab_size"),
        (json.dumps({**CONFIG, "hidden_size": "wide"}).encode(), "is no size"),
    ],
)
def test_a_folder_without_a_shape_is_refused_by_its_path(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(SpecError, match=message) as refused:
        read_model_shape(tmp_path)
    assert str(tmp_path) in refused.value.subject


def test_a_config_that_is_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").mkdir()
    with pytest.raises(SpecError, match="can't be read"):
        read_model_shape(tmp_path)
