"""How many parameters a model has, by component, from its shape alone.

The count is exact for the architectures of the tests (Llama, Mistral, Mixtral, Qwen2, Qwen3,
Qwen3-MoE, with the biases that their configs have by default). Another architecture is counted as
if it were a Llama: three feed-forward matrices, two norms a layer, no biases.
"""

from __future__ import annotations

from dataclasses import dataclass

from rayline.spec import ModelShape

_BIASED_QUERIES = frozenset({"Qwen2ForCausalLM"})
"""Architectures whose query, key and value projections have a bias."""
_NORMED_QUERIES = frozenset({"Qwen3ForCausalLM", "Qwen3MoeForCausalLM"})
"""Architectures that normalize queries and keys, head by head."""


@dataclass(frozen=True, slots=True)
class ParameterCounts:
    """Parameters of the parts of a model; those of a layer are given for one layer."""

    embedding: int
    layer_attention: int
    """Projections, of which each tensor rank holds its heads."""
    layer_ffn: int
    """Feed-forward matrices of all experts, of which each tensor rank holds a slice."""
    layer_whole: int
    """Norms and the experts' router, which every tensor rank holds whole."""
    final_norm: int
    head: int
    """The matrix that makes logits; 0 where it is the embedding's."""

    @property
    def layer(self) -> int:
        """Parameters of one layer."""
        return self.layer_attention + self.layer_ffn + self.layer_whole


def normalizes_queries(shape: ModelShape) -> bool:
    """Whether queries and keys are normalized, head by head."""
    return shape.architecture in _NORMED_QUERIES


def count_by_component(shape: ModelShape) -> ParameterCounts:
    """The parameters of each part of the model."""
    query = shape.heads * shape.head_dim
    key_value = 2 * shape.kv_heads * shape.head_dim
    attention = shape.hidden * (2 * query + key_value)
    if shape.architecture in _BIASED_QUERIES:
        attention += query + key_value
    whole = 2 * shape.hidden + shape.experts * shape.hidden
    if normalizes_queries(shape):
        whole += 2 * shape.head_dim
    table = shape.vocab * shape.hidden
    return ParameterCounts(
        embedding=table,
        layer_attention=attention,
        layer_ffn=3 * shape.hidden * (shape.experts * shape.expert_ffn or shape.ffn),
        layer_whole=whole,
        final_norm=shape.hidden,
        head=0 if shape.tied_embeddings else table,
    )


def count_parameters(shape: ModelShape) -> int:
    """The parameters of the whole model, tied ones once."""
    parts = count_by_component(shape)
    return parts.embedding + shape.layers * parts.layer + parts.final_norm + parts.head
