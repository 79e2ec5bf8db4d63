"""Communication that nothing hides: spans as values."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayline.train.communication import ENGINE_SPAN, Span, exposed_communication_s

TRAINING, GLOO = 1, 3


def engine(begin_us: float, end_us: float) -> Span:
    return Span(ENGINE_SPAN, begin_us, end_us, TRAINING, is_label=True)


def span(name: str, begin_us: float, end_us: float, thread: int = TRAINING) -> Span:
    return Span(name, begin_us, end_us, thread)


def kernel(name: str, begin_us: float, end_us: float) -> Span:
    return Span(name, begin_us, end_us, 7, on_gpu=True)


@pytest.mark.parametrize(
    ("spans", "exposed_us"),
    [
        ([], 0),
        # Waiting for a collective is communication.
        ([engine(0, 100), span("gloo:all_reduce", 10, 60, GLOO)], 50),
        # What is computed meanwhile hides it.
        (
            [
                engine(0, 100),
                span("gloo:all_reduce", 10, 60, GLOO),
                span("aten::mm", 20, 40),
            ],
            30,
        ),
        # gloo's own copies, in its thread, are part of the communication.
        (
            [
                engine(0, 100),
                span("gloo:all_gather", 10, 60, GLOO),
                span("aten::copy_", 20, 40, GLOO),
            ],
            50,
        ),
        # An operator that itself waits for a collective does not compute meanwhile.
        (
            [
                engine(0, 100),
                span("aten::mm", 0, 100),
                span("_c10d_functional::wait_tensor", 10, 60),
                span("aten::add", 60, 90),
            ],
            50,
        ),
        # Overlapping collectives count once; those outside of the engine's step not at all.
        (
            [
                engine(0, 100),
                span("gloo:all_reduce", 80, 150, GLOO),
                span("c10d::allreduce_", 70, 90),
            ],
            30,
        ),
        # On a GPU kernels tell, whatever the CPU does.
        (
            [
                engine(0, 100),
                span("aten::mm", 0, 100),
                kernel("ncclDevKernel_AllReduce_Sum_f32", 10, 60),
                kernel("ampere_sgemm_128x64", 40, 90),
            ],
            30,
        ),
    ],
)
def test_only_what_nothing_hides_counts(spans: list[Span], exposed_us: float) -> None:
    assert exposed_communication_s(spans) == pytest.approx(exposed_us / 1e6)


INTERVALS = st.lists(st.tuples(st.integers(0, 60), st.integers(1, 30)), max_size=8)


@given(INTERVALS, INTERVALS)
def test_it_is_what_a_look_at_every_microsecond_finds(
    talking: list[tuple[int, int]], computing: list[tuple[int, int]]
) -> None:
    spans = [engine(10, 70)]
    spans += [kernel("ncclKernel", begin, begin + length) for begin, length in talking]
    spans += [kernel("gemm", begin, begin + length) for begin, length in computing]

    def covered(spans: list[tuple[int, int]], moment: int) -> bool:
        return any(begin <= moment < begin + length for begin, length in spans)

    seen = sum(covered(talking, us) and not covered(computing, us) for us in range(10, 70))
    assert exposed_communication_s(spans) == pytest.approx(seen / 1e6)
