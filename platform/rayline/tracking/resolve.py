"""From a ModelRef to a folder on this machine that holds the model in Hugging Face's layout.

Nothing that could run code is fetched: weights are safetensors, everything else is text. Where the
reference carries hashes, every file is compared with them before the folder is handed out.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from rayline.errors import SpecError
from rayline.spec import ModelRef, TrackingSpec
from rayline.tracking.hashes import check_hashes
from rayline.tracking.registering import HASHES_FILE, HASHES_TAG, MODEL_FOLDER
from rayline.tracking.registry import find_version
from rayline.tracking.store import (
    anchored,
    connect,
    existing_run,
    first_line,
    holds_runs,
    store_errors,
)

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

_TEXT_FILES = ("*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken")
_WEIGHT_FILES = ("*.safetensors",)
_OTHER_LAYOUTS = ("*/*", "consolidated*")
"""Copies of the same weights in other layouts, which some hub repositories hold beside ours."""
_UNSAFE_WEIGHTS = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.gguf")


def resolve_model(ref: ModelRef, tracking: TrackingSpec, need_weights: bool = True) -> Path:
    """The folder of the model that `ref` names, fetched where it is not on this machine.

    `need_weights=False` asks for config and tokenizer only, as a plan does. Called by the driver
    and by each replica. Raises SpecError where there is no such model or it cannot be used, and
    CheckpointError naming the file that differs from the hash it was registered with.
    """
    if ref.directory is not None:
        folder = _directory(ref.directory)
    elif ref.hub is not None:
        folder = _from_hub(ref.hub, need_weights)
    elif ref.run is not None:
        folder = _from_run(ref.run, tracking)
    else:
        folder = _from_registry(ref, tracking)
    _check_layout(folder, ref, need_weights)
    return folder


def _directory(text: str) -> Path:
    folder = Path(text).expanduser().absolute()
    if not folder.is_dir():
        raise SpecError(
            "model.directory",
            "no such folder",
            value=text,
            fix="`rayline models tiny PATH` makes a small one to try with",
        )
    return folder


def _from_hub(hub_id: str, need_weights: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    wanted = [*_TEXT_FILES, *(_WEIGHT_FILES if need_weights else ())]
    try:
        return Path(
            snapshot_download(hub_id, allow_patterns=wanted, ignore_patterns=list(_OTHER_LAYOUTS))
        )
    except GatedRepoError:
        problem, fix = "the hub asks for its licence to be accepted", "accept it, then set HF_TOKEN"
    except RepositoryNotFoundError:
        problem, fix = "the hub has no such model, or it is private", "check the id; set HF_TOKEN"
    # The hub's client raises errors of httpx, of the file system and a dozen of its own.
    except Exception as wrong:  # noqa: BLE001
        problem = f"the hub cannot be reached, and there is no local copy: {first_line(wrong)}"
        fix = "download it elsewhere and use model.directory, or set HF_ENDPOINT to a mirror"
    raise SpecError("model.hub", problem, value=hub_id, fix=fix)


def _from_run(run_id: str, tracking: TrackingSpec) -> Path:
    if not holds_runs(tracking):
        raise SpecError("model.run", f"{tracking.uri} does not exist", value=run_id)
    client = connect(tracking)
    with store_errors(tracking):
        run = existing_run(client, tracking, run_id)
        run_id = run.info.run_id
        kept = {entry.path for entry in client.list_artifacts(run_id)}
        if MODEL_FOLDER not in kept:
            raise SpecError(
                "model.run",
                f"run {run.info.run_name or run_id} has no exported model",
                value=run_id,
                fix=f"`rayline export` makes one; it is {run.info.status.lower()}",
            )
        hashes = _run_hashes(client, run_id) if HASHES_FILE in kept else {}
        folder = _fetched(f"{run.info.artifact_uri}/{MODEL_FOLDER}", tracking)
    check_hashes(folder, hashes, f"run:{run_id}")
    return folder


def _run_hashes(client: MlflowClient, run_id: str) -> dict[str, str]:
    with tempfile.TemporaryDirectory() as scratch:
        file = client.download_artifacts(run_id, HASHES_FILE, scratch)
        return dict(json.loads(Path(file).read_text(encoding="utf-8")))


def _from_registry(ref: ModelRef, tracking: TrackingSpec) -> Path:
    _, version = find_version(ref, tracking)
    with store_errors(tracking):
        folder = _fetched(str(version.source), tracking)
    check_hashes(folder, json.loads(version.tags.get(HASHES_TAG, "{}")), str(ref))
    return folder


def _fetched(uri: str, tracking: TrackingSpec) -> Path:
    """An artifact folder: where it lies, or a copy in the user's cache, made once."""
    from mlflow.artifacts import download_artifacts

    address = urlsplit(uri)
    if address.scheme in ("", "file"):
        return Path(unquote(address.path))
    key = hashlib.sha256(f"{tracking.uri} {uri}".encode()).hexdigest()[:24]
    folder = Path.home() / ".cache" / "rayline" / "models" / key
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f"{key}.", dir=folder.parent))
        try:
            copy = download_artifacts(
                artifact_uri=uri, dst_path=str(scratch), tracking_uri=anchored(tracking).uri
            )
            # A whole copy or none: a download that broke off never gets the final name.
            if not folder.is_dir():
                Path(copy).rename(folder)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return folder


def _check_layout(folder: Path, ref: ModelRef, need_weights: bool) -> None:
    """Refuse a folder that is not a model in Hugging Face's layout."""
    if not (folder / "config.json").is_file():
        raise SpecError(
            "model",
            f"{folder} holds no config.json, so it is no model folder",
            value=str(ref),
            allowed="a folder in Hugging Face's layout: config.json, tokenizer, *.safetensors",
        )
    if not need_weights or any(folder.glob("*.safetensors")):
        return
    others = sorted(file.name for kind in _UNSAFE_WEIGHTS for file in folder.glob(kind))
    if others:
        raise SpecError(
            "model",
            f"{folder} holds weights only as {', '.join(others[:3])}, which are not read here",
            value=str(ref),
            allowed="*.safetensors",
            fix="convert them: AutoModelForCausalLM.from_pretrained(...).save_pretrained(folder)",
        )
    raise SpecError(
        "model",
        f"{folder} holds no weights (*.safetensors)",
        value=str(ref),
        fix="to train from its config alone: --set init=random",
    )
