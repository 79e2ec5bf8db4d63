"""What torch.profiler saw, as an answer to one question: how long did this rank only communicate?

On a GPU, NCCL's kernels communicate and all other kernels compute. On CPU, gloo's own spans (from
a collective's start to its end, in gloo's threads) and torch's calls that start or await
collectives communicate; what computes is the operators at the leaves of the training thread. Time
in which both go on is hidden communication and costs nothing, so it is not counted.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.autograd.profiler_util import FunctionEvent

ENGINE_SPAN = "engine"
"""Name of the span that the loop puts around the engine's step."""
_CPU_COMMUNICATION = ("gloo:", "c10d::", "_c10d_functional::", "_c10d_functional_autograd::")


@dataclass(frozen=True, slots=True)
class Span:
    """One thing that went on from `begin_us` to `end_us`."""

    name: str
    begin_us: float
    end_us: float
    thread: int
    on_gpu: bool = False
    is_label: bool = False
    """A name that a program put around its own statements, and no operator."""


def spans_of(events: Iterable[FunctionEvent]) -> list[Span]:
    """The profiler's events as spans."""
    return [
        Span(
            name=event.name,
            begin_us=event.time_range.start,
            end_us=event.time_range.end,
            thread=event.thread,
            on_gpu=event.device_type.name != "CPU",
            is_label=bool(event.is_user_annotation),
        )
        for event in events
    ]


def exposed_communication_s(spans: Sequence[Span]) -> float:
    """Seconds within the engine's steps in which communication went on and nothing was computed."""
    engine = [span for span in spans if span.name == ENGINE_SPAN and not span.on_gpu]
    if not engine:
        return 0.0
    work = [span for span in spans if not span.is_label]
    kernels = [span for span in work if span.on_gpu]
    if kernels:
        talking = [span for span in kernels if "nccl" in span.name.lower()]
        computing = [span for span in kernels if "nccl" not in span.name.lower()]
    else:
        talking = [span for span in work if span.name.startswith(_CPU_COMMUNICATION)]
        leaves = _leaves([span for span in work if span.thread == engine[0].thread])
        computing = [span for span in leaves if not span.name.startswith(_CPU_COMMUNICATION)]
    return _time_us(engine, talking, computing) / 1e6


def _leaves(spans: Sequence[Span]) -> list[Span]:
    """Spans of one thread within which none of the others begins."""
    ordered = sorted(spans, key=lambda span: (span.begin_us, -span.end_us))
    # The last one has nothing after it that could begin within it.
    following = itertools.chain((span.begin_us for span in ordered[1:]), [math.inf])
    return [span for span, begins in zip(ordered, following, strict=False) if begins >= span.end_us]


def _time_us(engine: Sequence[Span], talking: Sequence[Span], computing: Sequence[Span]) -> float:
    """Time in which a span of `engine` and one of `talking` is open and none of `computing`."""
    edges = sorted(
        (at, kind, change)
        for kind, spans in enumerate((engine, talking, computing))
        for span in spans
        for at, change in ((span.begin_us, 1), (span.end_us, -1))
    )
    open_spans = [0, 0, 0]
    total_us = before_us = 0.0
    for at_us, kind, change in edges:
        if open_spans[0] and open_spans[1] and not open_spans[2]:
            total_us += at_us - before_us
        open_spans[kind] += change
        before_us = at_us
    return total_us
