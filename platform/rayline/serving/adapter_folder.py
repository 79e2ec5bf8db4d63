"""Whether a folder is an adapter that vLLM can compute, and one of this model.

Nothing in an adapter runs: its weights are safetensors, of which only the header is read here, and
its config is data. What vLLM cannot compute (DoRA, trained biases, whole modules), what does not
fit the model's matrices, and patterns that vLLM would compile as regular expressions are refused
with the reason (vllm 0.32, lora/peft_helper.py and lora/lora_model.py).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rayline.errors import SpecError
from rayline.spec import ModelShape
from rayline.tracking.adapters import CONFIG_FILE, WEIGHTS_FILE

_TYPES = frozenset({"F32", "F16", "BF16"})
_PLAIN = re.compile(r"[A-Za-z0-9_.]{1,200}")
_TENSOR = re.compile(r"(?:base_model\.model\.)?([A-Za-z0-9_.]{1,300})\.lora_([AB])\.weight")
_LAYER = re.compile(r"(?:^|\.)layers\.(\d{1,6})\.")
_PLAIN_STARTS = frozenset({"gaussian", "eva", "orthogonal", "mica", "lora_ga"})
"""How an adapter's weights may have begun without the base model's having been changed for it."""
_UNABLE = (
    *("use_dora", "lora_bias", "alora_invocation_tokens", "layer_replication", "use_bdlora"),
    *("use_qalora", "modules_to_save"),
)


@dataclass(frozen=True, slots=True)
class AdapterFacts:
    """What an adapter's two files say."""

    rank: int
    """The largest of its matrices'."""
    modules: tuple[str, ...]
    """Kinds of matrices that it changes, such as q_proj."""
    base_model: str
    """What its config says it was trained on; empty where it says nothing."""


def check_adapter(name: str, folder: Path, shape: ModelShape, max_rank: int) -> AdapterFacts:
    """Read the two files in `folder`. `shape` is the served model's. Raises SpecError naming the
    adapter and what is wrong with it."""
    config = _read_config(name, folder / CONFIG_FILE)
    _check_config(name, config, max_rank)
    tensors = _read_header(name, folder / WEIGHTS_FILE)
    ranks, modules = _check_tensors(name, tensors, shape)
    if max(ranks) > max_rank:
        raise _rank_error(name, max(ranks), max_rank)
    base = config.get("base_model_name_or_path")
    return AdapterFacts(max(ranks), tuple(sorted(modules)), base if isinstance(base, str) else "")


def matrix_sizes(shape: ModelShape) -> dict[str, tuple[int, int]]:
    """Inputs and outputs of each kind of matrix of a layer."""
    query, key_value = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    ffn = shape.expert_ffn or shape.ffn
    return {
        "q_proj": (shape.hidden, query),
        "k_proj": (shape.hidden, key_value),
        "v_proj": (shape.hidden, key_value),
        "o_proj": (query, shape.hidden),
        "gate_proj": (shape.hidden, ffn),
        "up_proj": (shape.hidden, ffn),
        "down_proj": (ffn, shape.hidden),
    }


def wrong_adapter(name: str, problem: str, allowed: str = "", fix: str = "") -> SpecError:
    """An adapter that is not served, and why."""
    return SpecError(f"adapter {name}", problem, allowed=allowed, fix=fix)


def _read_config(name: str, file: Path) -> Mapping[str, Any]:
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        raise wrong_adapter(name, f"{CONFIG_FILE} is not JSON") from None
    if not isinstance(config, dict):
        raise wrong_adapter(name, f"{CONFIG_FILE} is JSON, but no object")
    return config


def _check_config(name: str, config: Mapping[str, Any], max_rank: int) -> None:
    kind = config.get("peft_type", "LORA")
    if str(kind).upper() != "LORA":
        raise wrong_adapter(name, f"is of PEFT's kind {kind!r}", "LORA")
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if type(rank) is not int or rank < 1:
        raise wrong_adapter(name, f"{CONFIG_FILE} gives the rank r as {rank!r}", "1 or more")
    if not isinstance(alpha, int | float) or not _is_number(alpha) or alpha <= 0:
        raise wrong_adapter(name, f"{CONFIG_FILE} gives lora_alpha as {alpha!r}", "above 0")
    if config.get("bias", "none") != "none":
        raise wrong_adapter(name, "trains biases, which vLLM does not compute", "bias: none")
    for field in _UNABLE:
        if config.get(field):
            raise wrong_adapter(name, f"uses {field}, which vLLM does not compute", "plain LoRA")
    start = config.get("init_lora_weights", True)
    if isinstance(start, str) and start.lower() not in _PLAIN_STARTS:
        raise wrong_adapter(
            name,
            f"began with init_lora_weights {start!r}, which changes the base model too",
            fix="convert it with PEFT's path_initial_model_for_weight_conversion",
        )
    ranks = _patterns(name, config, "rank_pattern")
    _patterns(name, config, "alpha_pattern")
    if not all(type(one) is int and one >= 1 for one in ranks.values()):
        raise wrong_adapter(name, "rank_pattern holds a rank that is no whole number above 0")
    most = max([rank, *ranks.values()])
    if most > max_rank:
        raise _rank_error(name, most, max_rank)


def _patterns(name: str, config: Mapping[str, Any], field: str) -> Mapping[str, Any]:
    """PEFT takes regular expressions here, and so does vLLM, from whoever wrote the file: one that
    runs for hours would hold the engine. Names of modules are all that PEFT itself writes."""
    entry = config.get(field) or {}
    if not isinstance(entry, dict) or not all(_PLAIN.fullmatch(key) for key in entry):
        raise wrong_adapter(name, f"{field} is no mapping of modules' names", "plain names")
    if not all(_is_number(value) for value in entry.values()):
        raise wrong_adapter(name, f"{field} holds what is no number")
    return entry


def _is_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isfinite(value)


def _rank_error(name: str, rank: int, max_rank: int) -> SpecError:
    return wrong_adapter(
        name,
        f"has rank {rank}, above engine.max_lora_rank {max_rank}",
        f"1..{max_rank}",
        f"deploy with engine.max_lora_rank {rank} or more",
    )


def _read_header(name: str, file: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Type and shape of each tensor; safetensors refuses a header that does not add up."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="np") as tensors:
            slices = {key: tensors.get_slice(key) for key in tensors.keys()}  # noqa: SIM118
            return {
                key: (str(one.get_dtype()), tuple(one.get_shape())) for key, one in slices.items()
            }
    except (SafetensorError, OSError, ValueError) as wrong:
        raise wrong_adapter(
            name, f"{WEIGHTS_FILE} is no safetensors file: {wrong}", fix="save or fetch it again"
        ) from None


def _check_tensors(
    name: str, tensors: Mapping[str, tuple[str, tuple[int, ...]]], shape: ModelShape
) -> tuple[list[int], set[str]]:
    """The ranks, and the kinds of matrices."""
    sizes = matrix_sizes(shape)
    ranks, modules, sides = [], set(), {"A": set[str](), "B": set[str]()}
    for key, (kind, extent) in tensors.items():
        found = _TENSOR.fullmatch(key)
        if found is None or len(extent) != 2 or kind not in _TYPES:
            raise wrong_adapter(
                name,
                f"{WEIGHTS_FILE} holds {key[:120]} ({kind} {list(extent)}), which is no factor",
                "MODULE.lora_A.weight and MODULE.lora_B.weight, in float32, float16 or bfloat16",
            )
        module, side = found[1], found[2]
        rank, width = extent if side == "A" else reversed(extent)
        sides[side].add(module)
        ranks.append(rank)
        modules.add(module.rpartition(".")[2])
        _check_place(name, module, side, width, shape, sizes)
    if not ranks or sides["A"] != sides["B"]:
        raise wrong_adapter(name, f"{WEIGHTS_FILE} does not hold two factors of each module")
    return ranks, modules


def _check_place(
    name: str,
    module: str,
    side: str,
    width: int,
    shape: ModelShape,
    sizes: Mapping[str, tuple[int, int]],
) -> None:
    """Whether the served model has such a layer and such a matrix."""
    layer = _LAYER.search(module)
    if layer is not None and int(layer[1]) >= shape.layers:
        raise wrong_adapter(
            name, f"changes layer {layer[1]}, and the model has {shape.layers}: it is another's"
        )
    kind = module.rpartition(".")[2]
    if layer is None or kind not in sizes or ".experts" in module:
        return
    has = sizes[kind][0 if side == "A" else 1]
    if width != has:
        what = "inputs" if side == "A" else "outputs"
        raise wrong_adapter(
            name, f"gives {kind} {width} {what}, and the model's has {has}: it is another's"
        )
