"""Which tokens a rank of the context axis holds, and what that gives it to do."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rayline.parallel.sequence import SequencePart

METHODS = st.sampled_from(["ulysses", "ring"])


def places_of(part: SequencePart, tokens: int) -> list[int]:
    return [place for begin, end in part.spans(tokens) for place in range(begin, end)]


@given(METHODS, st.integers(1, 9), st.integers(1, 8))
def test_every_token_lies_on_one_rank_and_is_found_again(
    method: str, ranks: int, length: int
) -> None:
    parts = [SequencePart(method, ranks, place) for place in range(ranks)]
    tokens = length * len(parts[0].blocks(0))
    joined = [place for part in parts for place in places_of(part, tokens)]
    assert sorted(joined) == list(range(ranks * tokens))
    blocks = [joined[begin : begin + length] for begin in range(0, len(joined), length)]
    whole = [place for at in parts[0].order() for place in blocks[at]]
    assert whole == list(range(ranks * tokens))


@given(st.integers(2, 9), st.integers(1, 8))
def test_on_a_ring_every_rank_sees_as_many_tokens(ranks: int, length: int) -> None:
    seen = {
        sum(place + 1 for place in places_of(SequencePart("ring", ranks, at), 2 * length))
        for at in range(ranks)
    }
    assert len(seen) == 1
