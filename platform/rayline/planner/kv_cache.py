"""What a sequence keeps in the paged KV cache, as vLLM lays it out.

The cache is cut into blocks of `block_tokens` tokens. A layer with full attention needs a block for
every `block_tokens` tokens of a sequence; one with a sliding window only for the tokens that the
window still covers and those of the step in flight. Layers of both kinds lie in groups of equally
many layers, and one block holds the keys and values of one group's layers (vllm 0.32,
v1/core/kv_cache_utils.py, `_get_kv_cache_groups_uniform_page_size`, and SlidingWindowSpec in
v1/kv_cache_interface.py). One block is never given out (BlockPool's null block).

Multi-head latent attention (DeepSeek-V2, section 2.1) keeps one compressed vector a token instead
of keys and values, whole on every tensor rank.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rayline.spec import ModelShape

_KEYS_AND_VALUES = 2
_GROUP_SPREAD = 1.5
"""Kinds of layers that differ in number by less than this share one group size, the larger one."""
_ENCODERS = frozenset(
    {
        *("bert", "camembert", "distilbert", "electra", "ernie", "gte", "jina_bert", "modernbert"),
        *("mpnet", "new", "nomic_bert", "roberta", "xlm-roberta"),
    }
)
"""Model types that see a text at once and keep nothing."""
_PATTERNS = {"gemma2": 2, "gemma3": 6, "gemma3_text": 6, "cohere2": 4}
"""Every how manieth layer attends to everything, where an older config.json does not say."""


@dataclass(frozen=True, slots=True)
class CacheShape:
    """What of each token stays, and in how many layers."""

    full_layers: int
    """Layers that keep every token."""
    window_layers: int
    """Layers that keep the last `window_tokens` tokens."""
    window_tokens: int
    """0 where no layer has a window."""
    heads: int
    """Key-value heads, shared out over tensor ranks; 1 where each rank keeps all."""
    values_per_head: int
    """Numbers that one head keeps of one token."""
    other_layers: int = 0
    """Layers that keep a state of another kind (linear attention, Mamba), which is not counted."""

    @property
    def layers(self) -> int:
        """Layers that have pages."""
        return self.full_layers + self.window_layers

    @classmethod
    def from_config(cls, config: Mapping[str, Any], shape: ModelShape) -> CacheShape:
        """Read a config.json; `shape` is read from the same one."""
        text = config.get("text_config") or config
        heads, values = shape.kv_heads, _KEYS_AND_VALUES * shape.head_dim
        latent = text.get("kv_lora_rank")
        if latent:
            heads, values = 1, int(latent) + int(text.get("qk_rope_head_dim") or 0)
        kinds = _layer_kinds(text, shape.layers)
        window = _window_tokens(text) if "window" in kinds else 0
        return cls(
            full_layers=kinds.count("full"),
            window_layers=kinds.count("window"),
            window_tokens=window,
            heads=heads,
            values_per_head=values,
            other_layers=kinds.count("other"),
        )


@dataclass(frozen=True, slots=True)
class CacheLayout:
    """A cache's pages on one device."""

    shape: CacheShape
    tensor: int
    """Ranks that share out the heads."""
    pipeline: int
    """Stages that share out the layers."""
    value_bytes: int
    block_tokens: int
    step_tokens: int
    """Tokens that may be in flight: a window's layers keep them too."""

    @property
    def group_layers(self) -> int:
        """Layers of one group, of all stages together."""
        full, window = self.shape.full_layers, self.shape.window_layers
        if not full or not window:
            return full or window
        least, most = min(full, window), max(full, window)
        return most if most < least * _GROUP_SPREAD else least

    @property
    def block_bytes(self) -> int:
        """Bytes of one block on one device."""
        heads = -(-self.shape.heads // self.tensor)
        layers = -(-self.group_layers // self.pipeline)
        values = heads * self.shape.values_per_head * self.value_bytes
        return layers * values * self.block_tokens

    @property
    def token_bytes(self) -> int:
        """Bytes that one more token takes on one device, while no window is full."""
        heads = -(-self.shape.heads // self.tensor)
        layers = -(-self.shape.layers // self.pipeline)
        return layers * heads * self.shape.values_per_head * self.value_bytes

    def blocks(self, tokens: int) -> int:
        """Blocks that one sequence of `tokens` tokens holds at most."""
        group = self.group_layers
        if not group:
            return 0
        full_groups = -(-self.shape.full_layers // group)
        window_groups = -(-self.shape.window_layers // group)
        kept = min(tokens, self.shape.window_tokens - 1 + self.step_tokens)
        # A window may begin in the middle of a block.
        window = -(-kept // self.block_tokens) + 1
        return full_groups * -(-tokens // self.block_tokens) + window_groups * window

    def usable_blocks(self, cache_bytes: int) -> int:
        """Blocks that sequences can have in a cache of `cache_bytes` on one device."""
        return max(0, cache_bytes // self.block_bytes - 1) if self.block_bytes else 0

    def sequences(self, cache_bytes: int, tokens: int) -> float:
        """Sequences of `tokens` tokens that are held at once; not a whole number."""
        if not self.block_bytes:
            return float("inf")
        return self.usable_blocks(cache_bytes) / self.blocks(tokens)

    def longest(self, cache_bytes: int, sequences: int, limit_tokens: int) -> int:
        """Most tokens, up to `limit_tokens`, of which `sequences` sequences are held at once."""
        if self.sequences(cache_bytes, limit_tokens) >= sequences:
            return limit_tokens
        held, refused = 0, limit_tokens
        while refused - held > 1:
            middle = (held + refused) // 2
            if self.sequences(cache_bytes, middle) >= sequences:
                held = middle
            else:
                refused = middle
        return held


def _layer_kinds(text: Mapping[str, Any], layers: int) -> list[str]:
    """full, window or other for each layer."""
    model_type = str(text.get("model_type", ""))
    if model_type in _ENCODERS:
        return []
    named = text.get("layer_types")
    if isinstance(named, list) and len(named) == layers:
        return [_kind(str(name)) for name in named]
    if not _window_tokens(text) or text.get("use_sliding_window") is False:
        return ["full"] * layers
    first_window = text.get("max_window_layers") if text.get("use_sliding_window") else 0
    pattern = text.get("sliding_window_pattern") or _PATTERNS.get(model_type)
    if pattern:
        return ["full" if (at + 1) % int(pattern) == 0 else "window" for at in range(layers)]
    return ["window" if at >= int(first_window or 0) else "full" for at in range(layers)]


def _kind(name: str) -> str:
    if name == "full_attention":
        return "full"
    return "window" if name in ("sliding_attention", "chunked_attention") else "other"


def _window_tokens(text: Mapping[str, Any]) -> int:
    return int(text.get("sliding_window") or text.get("attention_chunk_size") or 0)
