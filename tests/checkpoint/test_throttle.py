"""How fast shards are written, by a clock of the test's own."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rayline.checkpoint import shard
from rayline.checkpoint.throttle import Throttle, pause_s


@pytest.mark.parametrize(
    ("written_bytes", "elapsed_s", "expected_s"),
    [(0, 0.0, 0.0), (100, 0.0, 10.0), (100, 4.0, 6.0), (100, 10.0, 0.0), (100, 99.0, 0.0)],
)
def test_the_pause_is_what_is_missing_to_the_bound(
    written_bytes: int, elapsed_s: float, expected_s: float
) -> None:
    assert pause_s(written_bytes, elapsed_s, bytes_per_s=10.0) == expected_s


class Clock:
    """Time passes by sleeping, and by `spend_s`."""

    def __init__(self) -> None:
        self.at_s = 1000.0

    def now(self) -> float:
        return self.at_s

    def spend_s(self, seconds: float) -> None:
        self.at_s += seconds


@given(
    st.lists(st.tuples(st.integers(1, 10**9), st.floats(0, 5)), min_size=1, max_size=20),
    st.floats(1e3, 1e9),
)
def test_no_more_is_written_than_the_bound_allows_and_no_time_is_lost(
    chunks: list[tuple[int, float]], bytes_per_s: float
) -> None:
    clock = Clock()
    throttle = Throttle(bytes_per_s, clock.now, clock.spend_s)
    written_bytes, slow = 0, 0.0
    for count, storage_s in chunks:
        clock.spend_s(storage_s)
        slow += storage_s
        throttle.wrote(count)
        written_bytes += count
        took_s = clock.at_s - 1000.0
        assert took_s >= written_bytes / bytes_per_s * (1 - 1e-6) - 1e-6
    assert took_s <= written_bytes / bytes_per_s + slow + 1e-3


def test_without_a_bound_nothing_waits() -> None:
    Throttle(None, sleep=lambda _: pytest.fail("slept")).wrote(10**12)


def test_a_shard_is_paced_as_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard, "_CHUNK_BYTES", 400)
    clock = Clock()
    pauses: list[float] = []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        clock.spend_s(seconds)

    file = shard.write_shard(
        tmp_path / "rank-00000.safetensors",
        [("w", torch.zeros(1000))],
        Throttle(100.0, clock.now, sleep),
    )
    assert sum(pauses) == pytest.approx(file.size_bytes / 100)
    # The header, then ten chunks of the tensor.
    assert pauses[1:] == pytest.approx([4.0] * 10)
