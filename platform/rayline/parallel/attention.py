"""Causal attention for training, told by the model through transformers' own interface.

transformers' models call whatever attention function their config names, and prepare masks for it
from the length of what they are given. Under sequence or context parallelism that length is a
part's, so this function needs no mask: training sequences are causal, padded at their ends only,
and a sliding window is told by the model. Where sequences are packed with documents that do not see
each other, the mask is `documents_mask`, made once and handed through the model. It also applies
the softcap that the fused attention of transformers leaves out in silence.

A model whose masks say more than that (chunks, blocks that look ahead) keeps transformers' own
attention and prepared masks, and can't be split along its sequences.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    PretrainedConfig,
    PreTrainedModel,
)

from rayline.errors import SpecError
from rayline.parallel.collectives import exchange
from rayline.parallel.ring import Scores, ring_attention
from rayline.parallel.sequence import SequencePart

NAME = "rayline_causal"
"""What a config calls this function; it never reaches an exported config."""
TOKENS_DIM, HEADS_DIM = 1, 2
"""Dims of what attention returns."""
_SHARED = "shared_sequences"
"""Attribute of an attention module: a SharedSequences, where ranks hold its sequences together."""
_KNOWN_LAYER_TYPES = {"full_attention", "sliding_attention"}


@dataclass(frozen=True, slots=True)
class SharedSequences:
    """The ranks that hold sequences together, and which part is this rank's."""

    part: SequencePart
    group: dist.ProcessGroup


def causal_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """`query` [sequences, heads, tokens, head size], `key` and `value` with as many heads or fewer;
    returns [sequences, tokens, heads, head size]. `attention_mask`: a `documents_mask`, or None
    where a sequence is one document. Called by the model's attention layers."""
    if others.get("s_aux") is not None:
        raise SpecError("model", f"{type(module).__name__} has attention sinks, which is not known")
    shared: SharedSequences | None = getattr(module, _SHARED, None)
    if shared is not None and shared.part.method == "ring":
        if dropout:
            raise SpecError(
                "model config.json, attention_dropout",
                "the ring keeps no shares of the attention that it could drop",
                value=dropout,
                allowed="0.0",
                fix="--set plan.context_method=ulysses, or set it to 0.0",
            )
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        how = Scores(scale, sliding_window, softcap)
        output = ring_attention(query, key, value, how, shared.part, shared.group)
        return output.transpose(1, 2).contiguous(), None
    if shared is not None:
        query, key, value = _tokens_for_heads(query, key, value, shared.group)
    tokens = query.shape[2]
    window = None if sliding_window is None or sliding_window >= tokens else sliding_window
    seen = _seen(attention_mask, tokens, window, query.device)
    if softcap is not None:
        output = _softcapped(query, key, value, scaling, softcap, seen, dropout)
    else:
        output = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=seen,
            dropout_p=dropout,
            is_causal=seen is None,
            scale=scaling,
            enable_gqa=key.shape[1] != query.shape[1],
        )
    output = output.transpose(1, 2)
    if shared is not None:
        output = exchange(output, TOKENS_DIM, HEADS_DIM, shared.group)
    return output.contiguous(), None


def share_sequences(layers: nn.Module, shared: SharedSequences) -> None:
    """Let every attention below `layers` see the tokens that all ranks of the group hold. By
    ulysses ranks exchange heads for tokens before it, and tokens for heads behind it (Jacobs et al.
    2023); by ring keys and values go round."""
    for module in layers.modules():
        if hasattr(module, "num_key_value_groups"):
            setattr(module, _SHARED, shared)


def _tokens_for_heads(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, group: dist.ProcessGroup
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """[sequences, heads, own tokens, size] to [sequences, own heads, tokens, size]."""
    ranks = dist.get_world_size(group)
    # Fewer key-value heads than ranks: each is sent to all the ranks whose queries ask it.
    copies = ranks // gcd(key.shape[1], ranks)
    if copies > 1:
        key, value = (part.repeat_interleave(copies, dim=1) for part in (key, value))
    return (
        exchange(query, 1, 2, group),
        exchange(key, 1, 2, group),
        exchange(value, 1, 2, group),
    )


def is_plain_causal(config: PretrainedConfig) -> bool:
    """Whether causal order and sliding windows are all that the model's masks say."""
    kinds = set(getattr(config, "layer_types", None) or [])
    bidirectional = getattr(config, "use_bidirectional_attention", False)
    chunks = getattr(config, "attention_chunk_size", None)
    return kinds <= _KNOWN_LAYER_TYPES and not bidirectional and chunks is None


def check_packing(model: PreTrainedModel, packing: str) -> None:
    """Refuse data.packing documents for a model of which not every layer attends by
    `causal_attention`, to which a `documents_mask` is told: convolutions and states, say, carry
    over from one document to the next. `model` may be a stage. Raises SpecError."""
    attending = sum(hasattr(module, "num_key_value_groups") for module in model.modules())
    plain = is_plain_causal(model.config) and attending == model.config.num_hidden_layers
    if packing == "documents" and not plain:
        raise SpecError(
            "data.packing",
            f"not every layer of {type(model).__name__} is plain causal attention, so documents of "
            "one sequence can't be kept apart",
            value=packing,
            allowed="dense",
        )


def training_attention(config: PretrainedConfig) -> str | None:
    """The attention that a model of this config trains with: this one, or None for transformers'
    own choice."""
    return NAME if is_plain_causal(config) else None


def documents_mask(positions: torch.Tensor) -> torch.Tensor:
    """bool [sequences, 1, tokens, tokens]: True where a token (row) sees another: itself and those
    before it in its document. `positions` int64 [sequences, tokens]: each token's place in its
    document, from 0."""
    # No token before a document's first one is in it.
    place = torch.arange(positions.shape[1], device=positions.device)
    begins = (place - positions).unsqueeze(2)
    return ((place.unsqueeze(1) >= place) & (place >= begins)).unsqueeze(1)


def _seen(
    documents: torch.Tensor | None, tokens: int, window: int | None, device: torch.device
) -> torch.Tensor | None:
    """What a token sees, where that is less than all before it."""
    if window is None:
        return documents
    band = _band(tokens, window, device)
    return band if documents is None else documents & band


def _band(tokens: int, window: int, device: torch.device) -> torch.Tensor:
    """bool [tokens, tokens]: True where a token (row) sees another: itself and those before it, of
    which `window` in all."""
    place = torch.arange(tokens, device=device)
    distance = place.unsqueeze(1) - place
    return (distance >= 0) & (distance < window)


def _softcapped(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float | None,
    softcap: float,
    seen: torch.Tensor | None,
    dropout: float,
) -> torch.Tensor:
    """Scores squeezed into (-softcap, softcap) before the softmax (Gemma 2, section 2), which no
    fused attention of torch does."""
    groups = query.shape[1] // key.shape[1]
    keys, values = (part.repeat_interleave(groups, dim=1) for part in (key, value))
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = torch.tanh(query @ keys.transpose(2, 3) * scale / softcap) * softcap
    if seen is None:
        seen = _band(query.shape[2], query.shape[2], query.device)
    shares = scores.float().masked_fill(~seen, float("-inf")).softmax(-1).to(query.dtype)
    return F.dropout(shares, dropout) @ values


def _no_mask(*_: Any, **__: Any) -> None:
    """transformers asks each attention function for its kind of mask."""


AttentionInterface.register(NAME, causal_attention)
AttentionMaskInterface.register(NAME, _no_mask)
