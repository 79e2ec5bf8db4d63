"""TensorBoard: an event file in the job's folder, written by TensorBoard's own writer, which needs
neither TensorFlow nor torch. `tensorboard --logdir runs` shows it."""

from __future__ import annotations

from collections.abc import Mapping

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from rayline.tracking.sinks import Sink, SinkRun


class TensorBoard:
    """See Sink."""

    def __init__(self, run: SinkRun) -> None:
        self._writer = EventFileWriter(str(run.directory / "tensorboard"), flush_secs=10)

    def add(self, step: int, values: Mapping[str, float], time_ms: int) -> None:
        """See Sink."""
        points = [Summary.Value(tag=key, simple_value=value) for key, value in values.items()]
        self._writer.add_event(
            Event(wall_time=time_ms / 1000, step=step, summary=Summary(value=points))
        )

    def close(self, status: str) -> None:
        """See Sink."""
        self._writer.close()


def open_sink(run: SinkRun) -> Sink:
    """The sink of one run."""
    return TensorBoard(run)
