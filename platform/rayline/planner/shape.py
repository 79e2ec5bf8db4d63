"""The model's shape, from the config.json of its folder: no weights are read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rayline.errors import SpecError
from rayline.spec import ModelShape

CONFIG_FILE = "config.json"


def read_model_shape(directory: Path) -> ModelShape:
    """The shape of the model in `directory`, a folder in Hugging Face's layout.

    Called on the driver. Raises SpecError where config.json is missing, is no JSON object, or lacks
    a size.
    """
    config = read_model_config(directory)
    try:
        return ModelShape.from_config(config)
    except SpecError as wrong:
        raise SpecError(
            str(directory / CONFIG_FILE),
            wrong.problem,
            allowed=wrong.allowed,
            fix="use a decoder-only model whose config.json gives its sizes",
        ) from None


def read_model_config(directory: Path) -> dict[str, Any]:
    """What config.json of the model in `directory` holds. Called on the driver. Raises SpecError
    where it is missing or no JSON object."""
    file = directory / CONFIG_FILE
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SpecError(
            f"model ({directory})",
            "holds no config.json",
            fix="give a folder in Hugging Face's layout: config.json, tokenizer, *.safetensors",
        ) from None
    except OSError as wrong:
        raise SpecError(str(file), f"can't be read: {wrong.strerror}") from None
    except ValueError as wrong:
        raise SpecError(
            str(file), f"is not JSON: {wrong}", fix="fetch or export the model again"
        ) from None
    if not isinstance(config, dict):
        raise SpecError(str(file), "is JSON, but no object", value=type(config).__name__)
    return config
