"""Prefetch: the next step's batch, prepared on a thread while this step computes."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

from rayline.train.engine import Batch


class Prefetch:
    """Batches of steps that follow each other, one ahead. A context: its thread ends with it.

    What a batch holds depends on its step alone, so nothing changes but when it is prepared.
    """

    def __init__(self, prepare: Callable[[int], Batch], last_step: int) -> None:
        """`prepare` makes the batch of a step; nothing is prepared beyond `last_step`."""
        self._prepare = prepare
        self._last_step = last_step
        self._ahead: tuple[int, Future[Batch]] | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetch")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)

    def batch(self, step: int) -> Batch:
        """The batch of `step`; the next one's is begun. Raises what preparing it raised."""
        ahead, self._ahead = self._ahead, None
        if ahead is None or ahead[0] != step:
            ahead = (step, self._thread.submit(self._prepare, step))
        found = ahead[1].result()
        if step < self._last_step:
            self._ahead = (step + 1, self._thread.submit(self._prepare, step + 1))
        return found
