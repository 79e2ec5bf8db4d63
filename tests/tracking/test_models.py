"""From an export to a registered version and back to a folder, and every way that fails."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from rayline.errors import CheckpointError, SpecError
from rayline.spec import ExportReport, ModelRef, TrackingSpec
from rayline.tracking import (
    Served,
    check_registered_name,
    keep_model,
    list_models,
    list_versions,
    model_version,
    open_run,
    record_deployment,
    register_model,
    registered_version,
    resolve_model,
)
from rayline.tracking.deployments import deployments_of
from rayline.tracking.store import connect

Export = tuple[Path, ExportReport]


def register(tracking: TrackingSpec, export: Export, name: str, alias: str) -> ModelRef:
    with open_run(tracking, name="job", params={}, tags={}) as run:
        return register_model(tracking, run, export[0], name, alias, export[1])


def test_versions_count_up_and_the_alias_moves(tracking: TrackingSpec, export: Export) -> None:
    first = register(tracking, export, "bot", "champion")
    assert first == ModelRef(registry="bot@champion")
    assert model_version(first, tracking) == 1
    old = resolve_model(first, tracking)
    register(tracking, export, "bot", "champion")
    assert model_version(first, tracking) == 2
    assert resolve_model(first, tracking) != old
    assert resolve_model(ModelRef(registry="bot@1"), tracking) == old
    assert sorted(file.name for file in old.iterdir()) == sorted(export[1].sha256)
    register(tracking, export, "art", "latest")
    models = {model.name: model for model in list_models(tracking)}
    assert list(models) == ["art", "bot"]
    assert (models["bot"].newest_version, models["bot"].aliases) == (2, {"champion": 2})
    assert models["bot"].run_id


def test_an_alias_follows_what_is_served_and_the_version_says_so(
    tracking: TrackingSpec, export: Export
) -> None:
    for alias in ("champion", "candidate"):
        register(tracking, export, "bot", alias)
    found = registered_version(ModelRef(registry="bot@candidate"), tracking)
    assert (found.name, found.version, found.alias) == ("bot", 2, "candidate")
    assert found.run_id
    assert registered_version(ModelRef(registry="bot@2"), tracking).alias is None
    assert registered_version(ModelRef(registry="bot@latest"), tracking).alias is None

    def served(version: int, number: int, *, stable: bool = True) -> None:
        told = Served("bot", version, "chat", number, f"print-{number}", "champion", stable)
        record_deployment(tracking, told)

    served(2, 3, stable=False)
    assert model_version(ModelRef(registry="bot@champion"), tracking) == 1
    served(2, 3)
    assert model_version(ModelRef(registry="bot@champion"), tracking) == 2
    told = json.loads(connect(tracking).get_model_version("bot", "2").tags["rayline.served"])
    assert (told["as"], told["before"]) == ("chat version 3", "1")
    served(1, 2)
    assert model_version(ModelRef(registry="bot@champion"), tracking) == 1
    first, second = (
        deployments_of(connect(tracking).get_model_version("bot", version).tags)
        for version in ("1", "2")
    )
    assert [(one.served, one.number, one.revision) for one in first] == [("chat", 2, "print-2")]
    assert (first[0].until, second[0].until) == (None, first[0].stable_since)
    # Told late that it was up, which it has been for long.
    served(1, 2, stable=False)
    assert deployments_of(connect(tracking).get_model_version("bot", "1").tags) == first
    with pytest.raises(SpecError, match="no such registered"):
        served(9, 9)


def test_latest_is_the_newest_version(tracking: TrackingSpec, export: Export) -> None:
    latest = register(tracking, export, "bot", "latest")
    assert latest == ModelRef(registry="bot@latest")
    register(tracking, export, "bot", "champion")
    assert model_version(latest, tracking) == 2
    assert (resolve_model(latest, tracking) / "config.json").is_file()


def test_the_version_carries_what_was_verified(tracking: TrackingSpec, export: Export) -> None:
    with open_run(tracking, name="job", params={}, tags={}) as run:
        register_model(tracking, run, export[0], "bot", "champion", export[1])
    version = run.client.get_model_version("bot", "1")
    assert float(version.tags["rayline.logit_difference"]) == export[1].logit_difference
    assert version.tags["rayline.step"] == "7"
    assert version.run_id == run.run_id


def test_versions_say_where_they_came_from_and_where_they_went(
    tracking: TrackingSpec, export: Export
) -> None:
    for alias in ("champion", "candidate"):
        register(tracking, export, "bot", alias)
    register(tracking, export, "art", "latest")
    record_deployment(tracking, Served("bot", 2, "chat", 3, "revision", "champion", stable=True))
    found = list_versions(tracking)
    assert [(one.name, one.version) for one in found] == [("art", 1), ("bot", 2), ("bot", 1)]
    newest = found[1]
    assert newest.aliases == ("candidate", "champion")
    assert newest.files == len(export[1].sha256)
    assert newest.verification["logit_difference"] == "2e-06"
    assert not {"sha256", "served"} & set(newest.verification)
    assert newest.served is not None
    assert (newest.served.name, newest.served.before) == ("chat version 3", "1")
    assert found[2].served is None
    assert [one.version for one in list_versions(tracking, "bot")] == [2, 1]


def test_a_run_gives_its_model_without_a_registry(tracking: TrackingSpec, export: Export) -> None:
    with open_run(tracking, name="job", params={}, tags={}) as run:
        ref = keep_model(run, *export)
    assert ref == ModelRef(run=run.run_id)
    assert (resolve_model(ref, tracking) / "model.safetensors").is_file()


@pytest.mark.parametrize("kind", ["registry", "run"])
@pytest.mark.parametrize("harm", ["changed", "missing"])
def test_a_harmed_file_is_found_and_named(
    tracking: TrackingSpec, export: Export, kind: str, harm: str
) -> None:
    with open_run(tracking, name="job", params={}, tags={}) as run:
        registered = register_model(tracking, run, export[0], "bot", "champion", export[1])
    ref = registered if kind == "registry" else ModelRef(run=run.run_id)
    weights = resolve_model(ref, tracking) / "model.safetensors"
    if harm == "missing":
        weights.unlink()
    else:
        content = bytearray(weights.read_bytes())
        content[1000] ^= 1
        weights.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        resolve_model(ref, tracking)


@pytest.mark.parametrize(
    ("registry", "named"),
    [
        ("bott@champion", ["'bott'", "did you mean 'bot'?"]),
        ("zzz@champion", ["'zzz'", "bot"]),
        ("bot@chempion", ["'chempion'", "champion", "latest", "did you mean 'champion'?"]),
        ("bot@7", ["'7'", "1"]),
    ],
)
def test_an_unknown_name_or_alias_is_answered_with_what_there_is(
    tracking: TrackingSpec, export: Export, registry: str, named: list[str]
) -> None:
    register(tracking, export, "bot", "champion")
    with pytest.raises(SpecError) as refused:
        resolve_model(ModelRef(registry=registry), tracking)
    for text in named:
        assert text in str(refused.value)


def test_a_registry_that_does_not_exist_is_not_made(tmp_path: Path) -> None:
    nowhere = TrackingSpec(uri=f"sqlite:///{tmp_path / 'none.db'}")
    assert list_models(nowhere) == []
    for ref in (ModelRef(registry="bot@champion"), ModelRef(run="0a1b")):
        with pytest.raises(SpecError, match="does not exist"):
            resolve_model(ref, nowhere)
    assert list(tmp_path.iterdir()) == []


def test_runs_without_a_model_are_refused(tracking: TrackingSpec) -> None:
    with open_run(tracking, name="plain", params={}, tags={}) as run:
        pass
    with pytest.raises(SpecError, match="plain has no exported model"):
        resolve_model(ModelRef(run=run.run_id), tracking)
    with pytest.raises(SpecError, match="0a1b"):
        resolve_model(ModelRef(run="0a1b"), tracking)


@pytest.mark.parametrize(
    ("files", "named"),
    [
        ([], "config.json"),
        (["config.json"], "init=random"),
        (["config.json", "pytorch_model.bin"], "pytorch_model.bin"),
        (["config.json", "model.gguf"], "convert"),
    ],
)
def test_a_folder_that_is_no_model_is_refused(tmp_path: Path, files: list[str], named: str) -> None:
    for file in files:
        (tmp_path / file).write_text("{}")
    ref = ModelRef(directory=str(tmp_path))
    with pytest.raises(SpecError, match=named):
        resolve_model(ref, TrackingSpec())
    if files:
        assert resolve_model(ref, TrackingSpec(), need_weights=False) == tmp_path


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="no such folder"):
        resolve_model(ModelRef(directory=str(tmp_path / "none")), TrackingSpec())


def test_a_relative_folder_and_a_relative_store_are_found(
    tmp_path: Path, empty_database: Path, export: Export, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    here = TrackingSpec()
    assert resolve_model(ModelRef(directory="export"), here) == export[0]
    ref = register(here, export, "bot", "champion")
    folder = resolve_model(ref, here)
    assert folder.is_relative_to(tmp_path / "mlartifacts")


def test_a_hub_out_of_reach_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(SpecError, match=r"model\.hub") as refused:
        resolve_model(ModelRef(hub="nobody/nothing-at-all"), TrackingSpec())
    assert refused.value.fix


@pytest.mark.parametrize("name", ["", " ", "a/b", "a:b", "a@b", "it's"])
def test_names_that_cannot_be_registered_are_refused_before_training(name: str) -> None:
    with pytest.raises(SpecError, match="register_as"):
        check_registered_name(name, "champion")


@pytest.mark.parametrize("alias", ["", "3", "v3", "a b", "a.b"])
def test_aliases_that_cannot_be_set_are_refused_before_training(alias: str) -> None:
    with pytest.raises(SpecError, match="alias"):
        check_registered_name("bot", alias)
    check_registered_name("bot", "latest")
