"""Buckets of gradients: every one once, in order, none too full."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from rayline.parallel.replicas import fill_buckets


@given(
    sizes=st.lists(st.tuples(st.integers(0, 40), st.booleans()), max_size=30),
    limit=st.integers(1, 200),
)
def test_buckets_hold_every_gradient_once_and_in_order(
    sizes: list[tuple[int, bool]], limit: int
) -> None:
    gradients = [
        torch.zeros(size, dtype=torch.float64 if wide else torch.float32) for size, wide in sizes
    ]
    buckets = list(fill_buckets(gradients, limit))
    assert [id(one) for bucket in buckets for one in bucket] == [id(one) for one in gradients]
    for bucket in buckets:
        assert len({gradient.dtype for gradient in bucket}) == 1
        assert len(bucket) == 1 or sum(gradient.nbytes for gradient in bucket) <= limit


def test_small_gradients_travel_together() -> None:
    gradients = [torch.zeros(10) for _ in range(10)]
    assert [len(bucket) for bucket in fill_buckets(gradients, 160)] == [4, 4, 2]
