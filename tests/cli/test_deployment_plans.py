"""`rayline plan` of a deployment: which files are meant, what is shown, how it ends."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from rayline.cli import run
from rayline.spec.document import read_yaml
from rayline.spec.kinds import kind_of

REPOSITORY = Path(__file__).resolve().parents[2]
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "num_hidden_layers": 32,
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "dtype": "bfloat16",
}


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    """A deployment of a model of which only the config is here."""
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(CONFIG))
    file = tmp_path / "bot.yaml"
    tree = {
        "name": "bot",
        "model": {"directory": str(model)},
        "engine": {"gpu": "H100", "max_model_len": 8192},
    }
    file.write_text(yaml.safe_dump(tree))
    return file


@pytest.mark.parametrize("folder", ["serve", "jobs/specs"])
def test_each_file_of_the_repository_is_known_for_what_it_is(folder: str) -> None:
    files = sorted((REPOSITORY / folder).glob("*.yaml"))
    assert files
    assert {kind_of(read_yaml(file)) == "serve" for file in files} == {folder == "serve"}


def test_a_file_whose_keys_say_nothing_is_known_by_its_folder(tmp_path: Path) -> None:
    for folder in ("serve", "jobs"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.yaml").write_text("name: bot\nmodel: {hub: a/b}\n")
    for folder, kind in (("serve", "serve"), ("jobs", "job")):
        file = tmp_path / folder / "x.yaml"
        assert kind_of(read_yaml(file), file) == kind


def test_what_fits_is_shown_in_figures(spec: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plan", str(spec)]) == 0
    shown = capsys.readouterr().out
    assert "bot, generate, 1 to 1 replicas" in shown
    assert "8.0 B parameters" in shown
    assert "one H100" in shown
    assert "weights 15.0 GiB" in shown
    assert "128.0 KiB a token" in shown
    assert "sequences of 8,192 tokens at once, 32 of 8,192" in shown
    assert "one of 8 such GPUs holds 8 replicas" in shown


def test_what_does_not_fit_ends_with_what_would(
    spec: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["plan", str(spec), "--set", "engine.gpu=L4", "--set", "engine.max_model_len=65536"]
    assert run(words) == 3
    shown = capsys.readouterr().out
    assert "does not fit. What would:" in shown
    assert "--set engine.tensor_parallel_size=2" in shown
    assert "holds 8 replicas" not in shown


def test_a_program_gets_the_same_as_json(spec: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plan", str(spec), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["fits"] is True
    assert document["cache"]["bytes_per_token"] == 131072
    assert document["cache"]["longest_sequence_tokens"] == 8192
    assert document["memory_per_device"]["usable_bytes"] == int(int(79.1 * 2**30) * 0.9)
    assert document["changes_that_fit"] == []


def test_without_a_kind_of_gpu_its_memory_is_not_guessed(
    spec: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["plan", str(spec), "--set", "engine.gpu=null", "--set", "device=gpu"]) == 0
    assert "--set engine.gpu=H100, or another kind" in capsys.readouterr().out
