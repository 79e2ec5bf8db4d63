"""Which adapters are published, and what is refused before an engine sees it."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from rayline.errors import SpecError
from rayline.serving.adapters import (
    Adapter,
    AdapterChanges,
    adapter_changes,
    check_names_free,
    check_publishable,
    pinned,
    published,
    resolve_adapter,
    with_adapters,
    withdrawn,
    without_adapters,
)
from rayline.spec import AdapterSpec, EngineSpec, ModelShape, ServeSpec, TrackingSpec
from support.adapters import factors, write_adapter

SHAPE = ModelShape.from_config(
    {
        "num_hidden_layers": 2,
        "hidden_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 96,
        "vocab_size": 264,
    }
)
ENGINE = EngineSpec(max_adapters=2, max_lora_rank=8)
WEIGHTS = "adapter_model.safetensors"


def named(name: str, folder: Path | str = "adapters/x", **fields: object) -> AdapterSpec:
    return AdapterSpec.parse({"name": name, "source": {"directory": str(folder)}, **fields})


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "kept"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_adapter(tmp_path / "adapter", SHAPE)


def resolved(adapter: AdapterSpec, store: Path) -> Adapter:
    return resolve_adapter(adapter, SHAPE, ENGINE, TrackingSpec(), store)


def refusal(folder: Path, store: Path) -> str:
    with pytest.raises(SpecError) as refused:
        resolved(named("legal", folder), store)
    assert not store.exists() or list(store.iterdir()) == []
    return str(refused.value)


def test_an_adapter_is_kept_under_the_hash_of_its_content(folder, store):
    (folder / "README.md").write_text("beside")
    first = resolved(named("legal", folder), store)
    assert (first.facts.rank, first.facts.base_model) == (4, "base")
    assert first.facts.modules == ("down_proj", "q_proj", "v_proj")
    assert sorted(file.name for file in first.folder.iterdir()) == ["adapter_config.json", WEIGHTS]
    assert resolved(named("other", folder), store).folder == first.folder
    write_adapter(folder, SHAPE, seed=1)
    second = resolved(named("legal", folder), store)
    assert second.folder != first.folder
    assert sorted(store.iterdir()) == sorted([first.folder, second.folder])


def test_a_hash_in_the_spec_holds(folder, store):
    with pytest.raises(SpecError, match="has the SHA-256"):
        resolved(named("legal", folder, sha256="0" * 64), store)


class Planted:
    """Runs when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.canary}",)

    canary = ""


@pytest.mark.parametrize("name", ["adapter_model.bin", "adapter_model.pt", "adapter_model.pth"])
def test_a_pickle_is_refused_by_its_name_and_not_read(folder, store, tmp_path, name):
    Planted.canary = str(tmp_path / "canary")
    (folder / WEIGHTS).unlink()
    (folder / name).write_bytes(pickle.dumps(Planted()))
    assert f"{name}, a pickle, which runs code when it is read" in refusal(folder, store)
    (folder / WEIGHTS).write_bytes(pickle.dumps(Planted()))
    assert "is no safetensors file" in refusal(folder, store)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"peft_type": "IA3"}, "kind 'IA3'"),
        ({"r": 0}, "the rank r as 0"),
        ({"r": True}, "the rank r as True"),
        ({"r": 16}, "has rank 16, above engine.max_lora_rank 8"),
        ({"lora_alpha": -1}, "lora_alpha as -1"),
        ({"lora_alpha": "x"}, "lora_alpha as 'x'"),
        ({"bias": "all"}, "trains biases"),
        ({"use_dora": True}, "use_dora"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"init_lora_weights": "pissa"}, "changes the base model too"),
        ({"rank_pattern": {"(a+)+$": 4}}, "rank_pattern is no mapping of modules' names"),
        ({"alpha_pattern": {"q_proj|x": 4}}, "alpha_pattern is no mapping"),
        ({"rank_pattern": {"q_proj": "4"}}, "what is no number"),
        ({"rank_pattern": {"q_proj": 0.5}}, "no whole number above 0"),
        ({"rank_pattern": {"q_proj": 9}}, "has rank 9"),
    ],
)
def test_a_config_that_vllm_cannot_compute_is_refused(tmp_path, store, config, words):
    assert words in refusal(write_adapter(tmp_path / "adapter", SHAPE, **config), store)


@pytest.mark.parametrize("text", ["{", "[1]", "[" * 100_000, "\ufeff{}", "null"])
def test_a_config_that_is_no_object_is_refused(folder, store, text):
    (folder / "adapter_config.json").write_text(text)
    assert "adapter_config.json is" in refusal(folder, store)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model.layers.2.mlp.up_proj": (64, 96)}, "changes layer 2, and the model has 2"),
        ({"model.layers.0.mlp.up_proj": (65, 96)}, "up_proj 65 inputs, and the model's has 64"),
        ({"model.layers.0.mlp.up_proj": (64, 97)}, "up_proj 97 outputs, and the model's has 96"),
    ],
)
def test_an_adapter_of_another_model_is_refused(folder, store, change, words):
    tensors = dict(factors(SHAPE, 4, ("q_proj",)))
    for module, (inputs, outputs) in change.items():
        tensors[f"base_model.model.{module}.lora_A.weight"] = torch.zeros(4, inputs)
        tensors[f"base_model.model.{module}.lora_B.weight"] = torch.zeros(outputs, 4)
    save_file(tensors, folder / WEIGHTS)
    assert words in refusal(folder, store)


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("base_model.model.model.layers.0.self_attn.q_proj.weight", torch.zeros(64, 64)),
        ("base_model.model.../../x.lora_A.weight", torch.zeros(4, 64)),
        ("x.lora_A.weight", torch.zeros(4)),
        ("x.lora_A.weight", torch.zeros(4, 64, dtype=torch.int8)),
        ("x.lora_magnitude_vector", torch.zeros(4, 64)),
    ],
)
def test_a_tensor_that_is_no_factor_is_refused(folder, store, name, tensor):
    save_file({**factors(SHAPE, 4, ("q_proj",)), name: tensor}, folder / WEIGHTS)
    assert "which is no factor" in refusal(folder, store)


def test_one_factor_without_the_other_is_refused(folder, store):
    tensors = dict(factors(SHAPE, 4, ("q_proj",)))
    tensors.pop("base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight")
    save_file(tensors, folder / WEIGHTS)
    assert "two factors of each module" in refusal(folder, store)


def test_tensors_of_a_larger_rank_than_the_config_says_are_refused(folder, store):
    save_file(dict(factors(SHAPE, 9, ("q_proj",))), folder / WEIGHTS)
    assert "has rank 9, above engine.max_lora_rank 8" in refusal(folder, store)


@pytest.mark.parametrize("size", [0, 4, 100])
def test_a_torn_file_is_refused(folder, store, size):
    file = folder / WEIGHTS
    file.write_bytes(file.read_bytes()[:size])
    assert "is no safetensors file" in refusal(folder, store)


def test_a_file_larger_than_any_adapter_of_the_model_is_not_copied(folder, store):
    with (folder / WEIGHTS).open("ab") as file:
        file.truncate(2**40)
    assert "more than any adapter of this model" in refusal(folder, store)


@pytest.mark.parametrize("missing", ["adapter_config.json", WEIGHTS])
def test_a_folder_without_an_adapter_is_refused(folder, store, missing):
    (folder / missing).unlink()
    assert f"holds no {missing}" in refusal(folder, store)
    (folder / missing).mkdir()
    assert f"holds no {missing}" in refusal(folder, store)


def test_a_folder_that_is_not_there_is_refused(tmp_path, store):
    assert "no such folder" in refusal(tmp_path / "nowhere", store)


def test_names_and_places_are_checked_before_anything_is_fetched():
    check_publishable(named("legal"), "bot", ENGINE, {"medical"})
    check_publishable(named("legal"), "bot", ENGINE, {"medical", "legal"})
    with pytest.raises(SpecError, match="is the deployment's own"):
        check_publishable(named("bot"), "bot", ENGINE, set())
    with pytest.raises(SpecError, match="every place is taken: art, medical"):
        check_publishable(named("legal"), "bot", ENGINE, {"medical", "art"})
    with pytest.raises(SpecError, match="the engine has none"):
        check_publishable(named("legal"), "bot", EngineSpec(), set())


def test_what_changed_is_withdrawn_and_published():
    legal, medical, art = named("legal"), named("medical"), named("art")
    moved = named("legal", "adapters/new")
    assert adapter_changes((legal, medical), (legal, medical)) == AdapterChanges((), ())
    changes = adapter_changes((legal, medical), (art, moved))
    assert changes.withdrawn == ("legal", "medical")
    assert changes.published == (art, moved)


def spec(*adapters: AdapterSpec, name: str = "bot", **engine: object) -> ServeSpec:
    listed = [adapter.model_dump(mode="json") for adapter in adapters]
    return ServeSpec.parse(
        {"name": name, "model": {"directory": "m"}, "engine": {**engine, "adapters": listed}}
    )


def test_a_list_of_adapters_needs_no_new_engine_but_more_places_do():
    legal = named("legal")
    without = without_adapters(spec(legal, max_adapters=2))
    assert without == without_adapters(spec(max_adapters=2))
    assert without != without_adapters(spec(max_adapters=3))
    assert without != without_adapters(spec(legal, max_adapters=2, seed=1))
    # Without places of their own there are as many as adapters.
    assert without_adapters(spec(legal)) == without_adapters(spec(max_adapters=1))
    assert with_adapters(spec(legal), ()) == spec(max_adapters=1)


def test_publishing_puts_one_in_the_place_of_its_name():
    legal, medical, newer = named("legal"), named("medical"), named("legal", "adapters/new")
    assert published((), legal) == (legal,)
    assert published((legal, medical), newer) == (medical, newer)
    assert withdrawn((legal, medical), "legal") == (medical,)
    with pytest.raises(SpecError, match="no adapter of that name") as refused:
        withdrawn((legal, medical), "art")
    assert "legal, medical" in str(refused.value)


def test_one_name_is_one_model():
    legal = named("legal")
    check_names_free(spec(legal), [spec(named("art"), name="other")])
    for other in (spec(legal, name="other"), spec(name="legal")):
        with pytest.raises(SpecError, match="answers to it already"):
            check_names_free(spec(legal), [other])
    with pytest.raises(SpecError, match="other answers to it already"):
        check_names_free(spec(), [spec(named("bot"), name="other")])


def test_what_was_checked_is_what_replicas_get(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    fixed = pinned(named("legal", folder.name), SHAPE, ENGINE, TrackingSpec())
    assert fixed.source.directory == str(folder)
    assert fixed.sha256 is not None
    write_adapter(folder, SHAPE, seed=9)
    with pytest.raises(SpecError, match="has the SHA-256"):
        resolved(fixed, tmp_path / "kept")
