"""Tensors become figures."""

from __future__ import annotations

import pytest
import torch

from rayline.train.verify.measure import figures_of
from rayline.train.verify.verdict import hint


def tensor(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def test_the_same_tensor_is_not_apart() -> None:
    found = figures_of("w", tensor(8, 4), tensor(8, 4))
    assert (found.error, found.permuted) == (0.0, False)
    assert found.cosine == pytest.approx(1.0)


def test_a_doubled_tensor_is_once_its_norm_apart() -> None:
    found = figures_of("w", 2 * tensor(8, 4), tensor(8, 4))
    assert found.error == pytest.approx(1.0)
    assert found.cosine == pytest.approx(1.0)
    assert not found.permuted


def test_swapped_halves_are_recognized() -> None:
    whole = tensor(8, 4)
    found = figures_of("w", whole.roll(4, 0), whole)
    assert found.permuted
    assert hint(found, {}) == "the right values in the wrong places: swapped shard"


def test_half_of_the_rows_left_out_is_a_partial_sum() -> None:
    whole = tensor(64, 4)
    half = whole.clone()
    half[::2] = 0
    found = figures_of("w", half, whole)
    assert not found.permuted
    assert hint(found, {"tensor": 2}).startswith("partial sum")


def test_nothing_but_zeros_is_no_division_by_zero() -> None:
    found = figures_of("w", torch.zeros(4), torch.zeros(4))
    assert (found.error, found.cosine) == (0.0, 0.0)
