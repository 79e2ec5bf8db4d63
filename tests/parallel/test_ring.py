"""Attention in parts: on a ring of one rank it is torch's own, value and gradients; several ranks
are in tests/train/test_ring.py."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rayline.parallel import ring
from rayline.parallel.attention import causal_attention
from rayline.parallel.ring import Scores, ring_attention
from rayline.parallel.sequence import SequencePart


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("window", [None, 5, 100])
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_value_and_gradients_are_those_of_the_whole(
    softcap: float | None, window: int | None, kv_heads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Several parts of queries, the last one shorter.
    monkeypatch.setattr(ring, "_ROWS_AT_ONCE", 7)
    draw = torch.Generator().manual_seed(2)
    query = torch.randn(2, 4, 24, 8, generator=draw).requires_grad_()
    key, value = (torch.randn(2, kv_heads, 24, 8, generator=draw) for _ in range(2))
    inputs = (query, key.requires_grad_(), value.requires_grad_())
    wanted = torch.randn(2, 4, 24, 8, generator=draw)
    scores = Scores(0.4, window, softcap)
    found = ring_attention(*inputs, scores, SequencePart("ring", 1, 0), None)  # type: ignore[arg-type]
    module = torch.nn.Module()
    expected, _ = causal_attention(
        module, *inputs, None, scaling=0.4, sliding_window=window, softcap=softcap
    )
    expected = expected.transpose(1, 2)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    ours = torch.autograd.grad((found * wanted).sum(), inputs)
    theirs = torch.autograd.grad((expected * wanted).sum(), inputs)
    for one, other in zip(ours, theirs, strict=True):
        assert (one - other).norm() < 1e-6 * other.norm()


@given(
    first=st.integers(0, 30),
    queries=st.integers(1, 9),
    begin=st.integers(0, 30),
    keys=st.integers(1, 9),
    window=st.none() | st.integers(1, 12),
)
def test_what_is_hidden_is_what_no_place_sees(
    first: int, queries: int, begin: int, keys: int, window: int | None
) -> None:
    scores = Scores(1.0, window, None)
    ours, theirs = range(first, first + queries), range(begin, begin + keys)
    sees = [[0 <= q - k < (window or q + 1) for k in theirs] for q in ours]
    assert scores.sees_any(ours, theirs) == any(map(any, sees))
    hidden = scores.hidden(ours, theirs, torch.device("cpu"))
    if hidden is None:
        assert all(map(all, sees))
    else:
        assert hidden.tolist() == [[not seen for seen in row] for row in sees]
