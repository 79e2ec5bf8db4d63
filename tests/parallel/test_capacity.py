"""What experts take of a sequence, counted out one choice after another."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rayline.parallel.capacity import Capacity, apply_kept, expert_capacity, places_in_line
from rayline.parallel.sequence import SequencePart


def drawn(sequences: int, tokens: int, experts: int, choices: int, seed: int) -> torch.Tensor:
    """Choices [sequences, tokens, choices], those of a token all different."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(sequences, tokens, experts, generator=generator)
    return scores.topk(choices).indices


def alone(factor: float, experts: int, tokens: int) -> Capacity:
    return Capacity(factor, experts, tokens, SequencePart(), None)


@settings(deadline=None, max_examples=60)
@given(
    sequences=st.integers(1, 3),
    tokens=st.integers(1, 9),
    experts=st.integers(1, 5),
    seed=st.integers(0, 99),
)
def test_places_are_those_of_counting_one_by_one(
    sequences: int, tokens: int, experts: int, seed: int
) -> None:
    chosen = drawn(sequences, tokens, experts, min(2, experts), seed).flatten(1)
    expected = [
        [row[:place].count(one) for place, one in enumerate(row)] for row in chosen.tolist()
    ]
    assert places_in_line(chosen, experts).tolist() == expected


@settings(deadline=None, max_examples=60)
@given(tokens=st.integers(2, 9), factor=st.sampled_from([0.5, 1.0, 1.25]), seed=st.integers(0, 99))
def test_what_is_dropped_depends_on_earlier_tokens_of_the_own_sequence_alone(
    tokens: int, factor: float, seed: int
) -> None:
    chosen = drawn(2, tokens, 4, 2, seed)
    kept = alone(factor, 4, tokens).kept(chosen.flatten(0, 1)).view(2, tokens, 2)
    changed = chosen.clone()
    changed[0, -1], changed[1] = drawn(1, 1, 4, 2, seed + 1)[0], drawn(1, tokens, 4, 2, seed + 2)[0]
    again = alone(factor, 4, tokens).kept(changed.flatten(0, 1)).view(2, tokens, 2)
    assert torch.equal(again[0, :-1], kept[0, :-1])


@settings(deadline=None, max_examples=60)
@given(
    tokens=st.integers(1, 12),
    experts=st.integers(2, 5),
    factor=st.floats(0.1, 4),
    seed=st.integers(0, 99),
)
def test_an_expert_takes_its_first_choices_up_to_its_capacity(
    tokens: int, experts: int, factor: float, seed: int
) -> None:
    chosen = drawn(1, tokens, experts, 2, seed)[0]
    kept = alone(factor, experts, tokens).kept(chosen)
    limit = expert_capacity(factor, tokens * 2, experts)
    for expert in range(experts):
        of_expert = kept[chosen == expert].tolist()
        taken = min(limit, len(of_expert))
        assert of_expert == [True] * taken + [False] * (len(of_expert) - taken)


@pytest.mark.parametrize(
    ("factor", "choices", "experts", "expected"),
    [(1.0, 48, 4, 12), (1.1, 100, 10, 11), (1.25, 48, 4, 15), (1.0, 3, 4, 1), (0.01, 8, 4, 1)],
)
def test_a_capacity_is_the_even_share_times_the_factor_rounded_up(
    factor: float, choices: int, experts: int, expected: int
) -> None:
    """1.1 x 100 / 10 is 11.000000000000002 in floating point; the capacity is 11."""
    assert expert_capacity(factor, choices, experts) == expected


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_only_kept_choices_are_computed_and_have_gradients(share: float) -> None:
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randn(6, 4, generator=generator, requires_grad=True)
    weights = torch.rand(6, 2, generator=generator, requires_grad=True)
    matrices = torch.randn(3, 4, 4, generator=generator, requires_grad=True)
    chosen = drawn(1, 6, 3, 2, 5)[0]
    kept = torch.rand(6, 2, generator=generator) < share
    rows_seen = []

    def compute(rows: torch.Tensor, numbers: torch.Tensor, weighed: torch.Tensor) -> torch.Tensor:
        rows_seen.append(len(rows))
        made = torch.einsum("rh,rkho->rko", rows, matrices[numbers])
        return (made * weighed.unsqueeze(-1)).sum(1)

    inputs = (tokens, weights, matrices)
    found = apply_kept(compute, kept, tokens, chosen, weights)
    gradients = torch.autograd.grad(found.square().sum(), inputs)
    assert rows_seen == [max(1, int(kept.sum()))]

    expected = compute(tokens, chosen, weights * kept)
    assert torch.allclose(found, expected, atol=1e-6)
    wanted = torch.autograd.grad(expected.square().sum(), inputs)
    for gradient, right in zip(gradients, wanted, strict=True):
        assert torch.allclose(gradient, right, atol=1e-5)
