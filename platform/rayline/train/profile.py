"""torch.profiler around chosen steps: the traces that were asked for, and now and then one step of
rank 0 to learn how much of it is communication.

A sampled step is slower than others, and reading it takes time. So a sample is taken only when a
hundred times what the one before it cost has gone by: whatever the model, sampling takes at most
1 % of a run. The first one, whose price is not known yet, waits until even FIRST_COST_S would be
that little; a run of a few minutes is not sampled at all.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import TracebackType
from typing import Self

from torch.profiler import ProfilerActivity, profile, record_function

from rayline.spec import ProfileSpec, WorkerContext
from rayline.train.communication import ENGINE_SPAN, Span, exposed_communication_s, spans_of

FIRST_COST_S = 3.0
"""What a first sample is taken to cost: starting torch's profiler takes this long once."""
LARGEST_SHARE = 0.01
"""Of a run's time, for sampling."""


def sample_due(now_s: float, sampled_s: float, cost_s: float) -> bool:
    """Whether to sample at `now_s`, the latest sample having ended at `sampled_s` and cost
    `cost_s`."""
    return (now_s - sampled_s) * LARGEST_SHARE >= cost_s


class StepProfiler:
    """Used by the loop of every rank, as a context manager around all its steps: `begin` and `end`
    around each. Traces lie in `folder`, one file a rank, once the last step asked for is done."""

    def __init__(
        self,
        window: ProfileSpec | None,
        folder: Path,
        context: WorkerContext,
        first_cost_s: float = FIRST_COST_S,
    ) -> None:
        self._window = window
        self._file = folder / f"rank-{context.rank:05d}-{context.coordinate}.json.gz"
        self._samples = context.rank == 0
        self._activities = [ProfilerActivity.CPU]
        if context.device == "cuda":
            self._activities.append(ProfilerActivity.CUDA)
        self._recording: profile | None = None
        self._traces = False
        self._until_step = 0
        self._steps = 0
        self._label: record_function | None = None
        self._sampled_s = time.perf_counter()
        self._cost_s = first_cost_s
        self._began_s = self._sampled_s
        self._usual_s = 0.0
        self.trace: Path | None = None
        """This rank's trace, once it is written."""

    def begin(self, step: int) -> None:
        """Before anything of `step`: start recording where that is due."""
        self._began_s = time.perf_counter()
        if self._recording is None:
            self._traces = self._window is not None and self._window.holds(step)
            if self._traces and self._window is not None:
                self._until_step = self._window.last_step
            elif self._samples and sample_due(self._began_s, self._sampled_s, self._cost_s):
                self._until_step = step
            else:
                return
            self._recording = profile(activities=self._activities)
            self._recording.start()
            self._steps = 0
        self._label = record_function(f"step {step}")
        self._label.__enter__()

    @contextmanager
    def engine(self) -> Iterator[None]:
        """Around the engine's step, within `begin` and `end`."""
        with record_function(ENGINE_SPAN) if self._recording else nullcontext():
            yield

    def end(self, step: int) -> float | None:
        """After everything of `step`. Where recording ends with it: seconds in which this rank only
        communicated, the mean of the recorded steps. Else None."""
        if self._recording is None:
            self._usual_s = time.perf_counter() - self._began_s
            return None
        self._close_label()
        self._steps += 1
        if step < self._until_step:
            return None
        communication_s = exposed_communication_s(self._stop()) / self._steps
        self._sampled_s = time.perf_counter()
        self._cost_s = max(0.0, self._sampled_s - self._began_s - self._usual_s)
        return communication_s

    def _close_label(self) -> None:
        if self._label is not None:
            self._label.__exit__(None, None, None)
            self._label = None

    def _stop(self) -> list[Span]:
        """End the recording: its trace is written, where one was asked for; its spans come back."""
        recording, self._recording = self._recording, None
        if recording is None:
            return []
        recording.stop()
        if self._traces:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            recording.export_chrome_trace(str(self._file))
            self.trace = self._file
        return spans_of(recording.events())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        wrong: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """A job that ends within the traced steps keeps the trace of those that were done."""
        self._close_label()
        self._stop()
