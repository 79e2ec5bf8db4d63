"""The Ray actor of one rank: a process that trains in one thread and answers in another.

`run` takes as long as the training and brings back how it ended; Ray's own wait on it shows a dead
process at once. Meanwhile `reports` and `stop` are answered from a second thread. Errors come back
as values, so the first cause keeps its type, its traceback and its time.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

import ray
from ray.util import get_node_ip_address

from rayline.actors.failure import Failure, failure_of
from rayline.actors.seating import Device, Whereabouts
from rayline.actors.worker_log import keep_log
from rayline.errors import SpecError
from rayline.planner import device_peak_flops_per_s, model_flops_per_token, read_model_shape
from rayline.spec import Coordinate, JobSpec, StepReport, TrainResult, WorkerContext, Yardstick

log = logging.getLogger(__name__)

_GPU_DRIVERS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
"""What NVIDIA's, AMD's and WSL's drivers put up; without any of them torch need not be asked."""

RankFunction = Callable[
    [JobSpec, WorkerContext, Path, Callable[[StepReport], None], Callable[[], bool]], TrainResult
]
"""What a rank runs: job, context, model folder, observe, stop_requested."""


def train_rank(
    job: JobSpec,
    context: WorkerContext,
    model_directory: Path,
    observe: Callable[[StepReport], None],
    stop_requested: Callable[[], bool],
) -> TrainResult:
    """The RankFunction of a real job: rayline.train's loop.

    torch is imported here, in the worker: the driver does without.
    """
    from rayline.tracking import resolve_model
    from rayline.train.loop import run_rank

    if not model_directory.is_dir():
        # The driver's copy lies on another node: this node fetches its own.
        model_directory = resolve_model(job.model, job.tracking, need_weights=job.init == "weights")
    yardstick = Yardstick(
        model_flops_per_token=model_flops_per_token(
            read_model_shape(model_directory), job.data.sequence_tokens
        ),
        device_peak_flops_per_s=_gpu_peak_flops_per_s(job, context),
    )
    return run_rank(job, context, model_directory, observe, stop_requested, yardstick)


def _gpu_peak_flops_per_s(job: JobSpec, context: WorkerContext) -> float | None:
    """What this rank's GPU can do by its maker's word; None for a CPU and an unknown GPU."""
    if context.device == "cpu":
        return None
    import torch

    name = torch.cuda.get_device_name(context.local_rank)
    return device_peak_flops_per_s(name, job.precision)


class Worker:
    """One rank's process. Made and called by the gang, in the order of the methods."""

    def __init__(self, rank: int, coordinate: Coordinate) -> None:
        self._rank = rank
        self._coordinate = coordinate
        self._reports: deque[StepReport] = deque()
        self._stop = threading.Event()

    def settle(self, log_file: Path) -> Whereabouts:
        """Open the log and say where this worker stands. Raises SpecError (output_dir)."""
        address: str = get_node_ip_address()  # type: ignore[no-untyped-call]
        try:
            keep_log(log_file, f"rank {self._rank} {self._coordinate}")
        except OSError as wrong:
            raise SpecError(
                "output_dir",
                f"node {address} cannot write there: {wrong.strerror}",
                value=str(log_file.parent),
                fix="choose a folder on storage that every node can write to",
            ) from None
        context = ray.get_runtime_context()
        return Whereabouts(
            node_id=context.get_node_id(),
            address=address,
            cores=len(os.sched_getaffinity(0)),
            gpus=tuple(context.get_accelerator_ids().get("GPU", [])),
        )

    def prepare(self, threads: int, visible_gpus: Sequence[str]) -> Device:
        """Take the share of this host that the gang allots: compute threads, and the GPUs of all
        the node's workers, so that NCCL reaches its neighbours' directly. Returns where torch
        computes: GPUs that Ray counts may not be real ones."""
        os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(threads)
        if not visible_gpus:
            return "cpu"
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(visible_gpus)
        if not any(Path(device).exists() for device in _GPU_DRIVERS):
            return "cpu"
        import torch

        return "cuda" if torch.cuda.is_available() else "cpu"

    def free_port(self) -> int:
        """A TCP port of this host that nothing listens on now; asked of rank 0."""
        with socket.socket() as probe:
            probe.bind(("", 0))
            port: int = probe.getsockname()[1]
            return port

    def run(
        self, function: RankFunction, job: JobSpec, context: WorkerContext, model_directory: Path
    ) -> TrainResult | Failure:
        """The rank's whole life; what it raises comes back as a Failure."""
        log.info("started, process %d on %s", os.getpid(), socket.gethostname())
        try:
            result = function(
                job, context, model_directory, self._reports.append, self._stop.is_set
            )
        # User code may raise anything, SystemExit included; the gang decides what follows.
        except BaseException as wrong:
            log.exception("failed")
            return failure_of(self._rank, self._coordinate, wrong, time.time())
        log.info("done after step %d", result.last_step)
        return result

    @ray.method(concurrency_group="control")
    def reports(self) -> list[StepReport]:
        """The steps reported since the last call."""
        return [self._reports.popleft() for _ in range(len(self._reports))]

    @ray.method(concurrency_group="control")
    def stop(self) -> None:
        """Ask the training to stop after the step in flight."""
        self._stop.set()
