"""The balance loss against transformers' own, and what even and uneven routing come to."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from rayline.parallel.routing import attach_loss, balance_loss, count_choices


def drawn(sequences: int, tokens: int, experts: int, seed: int) -> torch.Tensor:
    """Logits [sequences, tokens, experts]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(sequences, tokens, experts, generator=generator).requires_grad_()


@settings(deadline=None, max_examples=30)
@given(
    sequences=st.integers(1, 3),
    tokens=st.integers(1, 4),
    parts=st.integers(1, 3),
    experts=st.integers(2, 6),
    seed=st.integers(0, 99),
)
def test_parts_of_sequences_add_up_to_transformers_loss_of_each(
    sequences: int, tokens: int, parts: int, experts: int, seed: int
) -> None:
    whole = tokens * parts
    logits = drawn(sequences, whole, experts, seed)
    expected = torch.stack(
        [load_balancing_loss_func((own,), experts, 2) for own in logits.unbind()]
    ).sum()
    (gradient,) = torch.autograd.grad(expected, logits)

    choices = count_choices(logits.topk(2).indices.flatten(1), experts)
    found = sum(balance_loss(part, choices, whole) for part in logits.split(tokens, dim=1))

    assert isinstance(found, torch.Tensor)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    assert torch.allclose(torch.autograd.grad(found, logits)[0], gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("kept", "expected"), [(4, 2.0), (2, 4.0)])
def test_even_routing_comes_to_the_choices_and_half_the_experts_to_twice(
    kept: int, expected: float
) -> None:
    """Four tokens, two of four experts each; tokens that see `kept` experts as equals."""
    logits = torch.full((1, 4, 4), -1e4)
    logits[..., :kept] = 0
    chosen = torch.tensor([[[0, 1], [2, 3], [0, 1], [2, 3]]]) % kept
    choices = count_choices(chosen.flatten(1), 4)
    assert choices.sum() == 8
    assert balance_loss(logits, choices, 4).item() == pytest.approx(expected)


def test_an_attached_loss_sends_its_gradient_and_changes_nothing() -> None:
    carrier, weight = torch.ones(3, requires_grad=True), torch.tensor(2.0, requires_grad=True)
    carried = attach_loss(carrier, 5 * weight)
    assert torch.equal(carried, carrier)
    (7 * carried).sum().backward()
    assert carrier.grad is not None
    assert carrier.grad.tolist() == [7.0] * 3
    assert weight.grad == 5.0
