"""The order of the samples: nothing lost, nothing twice, the same after any resume."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayline.data import MixtureOrder, SampleOrder, share
from rayline.errors import SpecError

ORDERS = st.builds(SampleOrder, samples=st.integers(1, 60), seed=st.integers(0, 2**70))


@given(ORDERS, st.integers(0, 5))
def test_an_epoch_holds_every_sample_once(order: SampleOrder, epoch: int) -> None:
    indices = order.indices(epoch * order.samples, order.samples)
    assert sorted(indices) == list(range(order.samples))


@settings(deadline=None)  # hundreds of epochs of a single sample take a while on a busy machine
@given(ORDERS, st.lists(st.integers(0, 100), max_size=8))
def test_any_cut_into_batches_gives_the_same_order(order: SampleOrder, counts: list[int]) -> None:
    parts, consumed = [], 0
    for count in counts:
        # A new object at each batch: what a process knows that has just been started.
        parts += SampleOrder(order.samples, order.seed).indices(consumed, count)
        consumed += count

    assert parts == order.indices(0, consumed)


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    first, second = SampleOrder(50, 7), SampleOrder(50, 8)

    assert first.indices(0, 50) != first.indices(50, 50)
    assert first.indices(0, 50) != second.indices(0, 50)
    assert first.indices(0, 50) != list(range(50))


def test_the_order_is_the_same_for_good() -> None:
    # A checkpoint of an older version counts on it.
    assert SampleOrder(8, seed=3).indices(5, 8) == [1, 5, 7, 7, 5, 6, 3, 1]


@given(st.integers(1, 8), st.integers(1, 8), st.lists(st.integers(), min_size=64, max_size=64))
def test_the_shares_of_all_data_ranks_make_the_batch(
    size: int, each: int, indices: list[int]
) -> None:
    batch = indices[: size * each]
    shares = [share(batch, rank, size) for rank in range(size)]

    assert [index for part in shares for index in part] == batch
    assert {len(part) for part in shares} == {each}


def test_a_batch_that_cannot_be_shared_evenly_is_refused() -> None:
    with pytest.raises(SpecError, match=r"not divisible by plan\.data = 2"):
        share([1, 2, 3], 0, 2)


def test_no_samples_is_refused() -> None:
    with pytest.raises(SpecError, match="hold no sample"):
        SampleOrder(0, seed=0)


SOURCES = st.lists(st.tuples(st.integers(1, 50), st.floats(0.001, 1000)), min_size=1, max_size=6)


@settings(deadline=None)
@given(SOURCES, st.integers(0, 10**12), st.integers(0, 2**70))
def test_every_source_of_a_mixture_gets_its_share(
    sources: list[tuple[int, float]], consumed: int, seed: int
) -> None:
    sizes, weights = zip(*sources, strict=True)
    taken = MixtureOrder(sizes, weights, seed).taken(consumed)
    assert sum(taken) == consumed
    for count, weight in zip(taken, weights, strict=True):
        share = weight / sum(weights)
        assert abs(count - share * consumed) <= 0.5 + share * len(sources) / 2 + consumed * 1e-15


@settings(deadline=None)
@given(SOURCES, st.integers(0, 200), st.lists(st.integers(0, 40), max_size=5))
def test_a_mixture_is_in_the_same_order_however_it_is_cut(
    sources: list[tuple[int, float]], begin: int, counts: list[int]
) -> None:
    sizes, weights = zip(*sources, strict=True)
    whole = MixtureOrder(sizes, weights, 5).indices(0, begin + sum(counts))
    parts, consumed = MixtureOrder(sizes, weights, 5).indices(0, begin), begin
    for count in counts:
        # A new object at each batch: what a process knows that has just been started.
        parts += MixtureOrder(sizes, weights, 5).indices(consumed, count)
        consumed += count
    assert parts == whole
    # What each source gave is that source's own order: epoch after epoch, each sample once.
    offset = 0
    for number, size in enumerate(sizes):
        own = [one - offset for one in whole if offset <= one < offset + size]
        assert own == SampleOrder(size, 5 + (number << 128)).indices(0, len(own))
        offset += size


def test_one_source_is_in_the_order_that_it_always_was() -> None:
    assert MixtureOrder((8,), (0.3,), seed=3).indices(5, 8) == [1, 5, 7, 7, 5, 6, 3, 1]


def test_sources_of_one_size_are_not_in_step() -> None:
    order = MixtureOrder((50, 50), (1.0, 1.0), seed=3).indices(0, 100)
    assert [one for one in order if one < 50] != [one - 50 for one in order if one >= 50]
