"""How many floating point operations training needs for one token, from the model's shape alone.

Only matrix products count, a multiplication and an addition each: what Megatron-LM (Narayanan et
al. 2021, appendix) and PaLM (Chowdhery et al. 2022, appendix B) count, so that figures can be
compared with theirs:

    6 x (weights of the matrices that one token meets) + 12 x layers x heads x head_dim x tokens

Six is two for the forward pass and four for the backward pass. The second term is queries times
keys and attention times values; it is NOT halved for the causal mask, as in both papers, although
a kernel may leave masked blocks out. Recomputed activations are not counted. A look-up in the
embedding is no product; the head is one even where its matrix is the embedding's. Of a mixture
of experts only the experts that a token is sent to count, and the router. Norms, biases, rotary
positions, softmax and the optimizer are left out.
"""

from __future__ import annotations

from rayline.spec import ModelShape

_FORWARD_AND_BACKWARD = 3
"""The backward pass makes two products, for the input's and for the weight's gradient, of each of
the forward pass."""
_MULTIPLY_ADD = 2


def matrix_parameters_per_token(shape: ModelShape) -> int:
    """Weights of all matrices that one token is multiplied with on its way to the logits."""
    return shape.layers * shape.layer_matrices_per_token + shape.vocab * shape.hidden


def forward_flops_per_token(shape: ModelShape, sequence_tokens: int) -> int:
    """Operations of the forward pass for one token of a sequence of `sequence_tokens`."""
    # Queries times keys, and attention times values: each heads x head_dim x tokens.
    attention = 2 * shape.layers * shape.heads * shape.head_dim * sequence_tokens
    return _MULTIPLY_ADD * (matrix_parameters_per_token(shape) + attention)


def model_flops_per_token(shape: ModelShape, sequence_tokens: int) -> int:
    """Operations of forward and backward for one token. Called in the worker, for the Yardstick."""
    return _FORWARD_AND_BACKWARD * forward_flops_per_token(shape, sequence_tokens)
