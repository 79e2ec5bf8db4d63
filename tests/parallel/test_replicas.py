"""Gradients in buckets: every one once, none too full, summed while the backward pass goes on, in
one order on all ranks. Engines with replicas: tests/train."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from rayline.parallel.replicas import (
    BUCKET_BYTES,
    SMALL_BUCKET_BYTES,
    Departures,
    bucket_bytes,
    fill_buckets,
    order_of_arrival,
)


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


@given(st.data(), st.lists(st.integers(1, 4), min_size=1, max_size=6))
def test_buckets_set_off_in_one_order_whatever_order_gradients_come_in(
    data: st.DataObject, members: list[int]
) -> None:
    """Each as soon as it and all before it are full; those that some gradient never comes to at
    the end."""
    everything = [bucket for bucket, count in enumerate(members) for _ in range(count)]
    order = data.draw(st.permutations(everything))
    come = order[: data.draw(st.integers(0, len(order)))]
    departures = Departures(members)
    departed: list[int] = []
    for number, bucket in enumerate(come, start=1):
        departed += departures.arrive(bucket)
        full = [come[:number].count(one) == count for one, count in enumerate(members)]
        assert departed == list(range([*full, False].index(False)))
    departed += departures.rest()
    assert departed == list(range(len(members)))


def test_vectors_are_last_and_all_else_is_in_the_reverse_of_the_models_order() -> None:
    model = nn.Sequential(nn.Embedding(4, 8), nn.LayerNorm(8), nn.Linear(8, 8), nn.Linear(8, 4))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    ordered = [names[id(one)] for one in order_of_arrival(list(model.parameters()))]
    assert ordered[:3] == ["3.weight", "2.weight", "0.weight"]
    assert ordered[3:] == ["3.bias", "2.bias", "1.bias", "1.weight"]


@pytest.mark.parametrize(
    ("total", "expected"),
    [
        (100, SMALL_BUCKET_BYTES),
        (80 * 2**20, 10 * 2**20),
        (2**30, BUCKET_BYTES),
    ],
)
def test_buckets_are_small_enough_to_hide_and_large_enough_to_pay(
    total: int, expected: int
) -> None:
    assert bucket_bytes(total) == expected


@pytest.mark.dist
def test_sums_are_exact_and_set_off_during_the_backward_pass(tmp_path: Path) -> None:
    """Two ranks with other orders of autograd and other parameters unused; what is asserted stands
    in the ranks."""
    from support.engine_gang import run_ranks
    from support.replica_rank import sum_gradients

    run_ranks(tmp_path, 2, sum_gradients, tmp_path)
