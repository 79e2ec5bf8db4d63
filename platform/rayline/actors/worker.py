"""The Ray actor of one rank: a process that trains in one thread and answers in another.

`run` takes as long as the training and brings back how it ended; Ray's own wait on it shows a dead
process at once. Meanwhile `reports` and `stop` are answered from a second thread. Errors come back
as values, so the first cause keeps its type, its traceback and its time.

A process outlives its run: after a neighbour was lost it drops everything that the run held and
waits for the next. One that has no rank yet, but everything imported, is a spare.
"""

from __future__ import annotations

import gc
import importlib
import logging
import os
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import ray
from ray.util import get_node_ip_address

from rayline.actors.effort import Effort, EffortMeter
from rayline.actors.failure import Failure, failure_of
from rayline.actors.progress import Progress, Standing
from rayline.actors.seating import Device, Whereabouts
from rayline.actors.worker_log import keep_log
from rayline.errors import SpecError
from rayline.planner import device_peak_flops_per_s, model_flops_per_token, read_model_shape
from rayline.spec import Coordinate, JobSpec, StepReport, TrainResult, WorkerContext, Yardstick
from rayline.train.imports import lasting_imports
from rayline.train.link import Link

log = logging.getLogger(__name__)

_GPU_DRIVERS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
"""What NVIDIA's, AMD's and WSL's drivers put up; without any of them torch need not be asked."""

RankFunction = Callable[[JobSpec, WorkerContext, Path, "Link"], TrainResult]
"""What a rank runs: job, context, model folder, link."""


def train_rank(
    job: JobSpec,
    context: WorkerContext,
    model_directory: Path,
    link: Link,
) -> TrainResult:
    """The RankFunction of a real job: rayline.train's loop.

    torch is imported here, in the worker: the driver does without.
    """
    with lasting_imports():
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
    return run_rank(job, context, model_directory, link, yardstick)


RankObserver = Callable[[StepReport, Callable[[], bool]], None]
"""Called with a step and with what tells whether the gang was asked to stop."""


def train_observed(
    observe: RankObserver,
    job: JobSpec,
    context: WorkerContext,
    model_directory: Path,
    link: Link,
) -> TrainResult:
    """The RankFunction, once `observe` is bound, of a real job whose rank 0 calls `observe` in its
    own process after every step, before the next one begins: for what must see each step, or may
    hold the gang back."""

    def told(report: StepReport) -> None:
        link.observe(report)
        observe(report, link.stop_requested)

    return train_rank(job, context, model_directory, replace(link, observe=told))


def _gpu_peak_flops_per_s(job: JobSpec, context: WorkerContext) -> float | None:
    """What this rank's GPU can do by its maker's word; None for a CPU and an unknown GPU."""
    if context.device == "cpu":
        return None
    import torch

    name = torch.cuda.get_device_name(context.local_rank)
    return device_peak_flops_per_s(name, job.precision)


def warm_modules(engine: str) -> list[str]:
    """What a spare imports: all that a run with this engine would."""
    name = "native" if engine == "native" else "deepspeed_engine"
    return ["rayline.train.loop", f"rayline.train.{name}"]


class Worker:
    """One rank's process, once it has settled. Made and called by the gang, in the order of the
    methods; `run` may be called again once it has returned."""

    def __init__(self) -> None:
        self._rank = -1
        self._coordinate = Coordinate(0, 0, 0, 0)
        self._reports: deque[StepReport] = deque()
        self._stop = threading.Event()
        self._progress = Progress()
        self._meter = EffortMeter(self._progress)

    def warm_up(self, modules: Sequence[str]) -> None:
        """Import what a run will need, as a spare that waits for one."""
        with lasting_imports():
            for module in modules:
                importlib.import_module(module)

    def settle(self, rank: int, coordinate: Coordinate, log_file: Path) -> Whereabouts:
        """Take a rank, open its log and say where this worker stands. Raises SpecError
        (output_dir)."""
        self._rank, self._coordinate = rank, coordinate
        address: str = get_node_ip_address()  # type: ignore[no-untyped-call]
        try:
            keep_log(log_file, f"rank {rank} {coordinate}")
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
            pid=os.getpid(),
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
        """The rank's whole life in one beginning of the gang; what it raises comes back as a
        Failure."""
        log.info("started, process %d on %s", os.getpid(), socket.gethostname())
        outcome = self._run(function, job, context, model_directory)
        if isinstance(outcome, Failure):
            _drop_what_the_run_held()
        else:
            log.info("done after step %d", outcome.last_step)
        return outcome

    def _run(
        self, function: RankFunction, job: JobSpec, context: WorkerContext, model_directory: Path
    ) -> TrainResult | Failure:
        self._progress.begin()
        link = Link(self._reports.append, self._stop.is_set, self._progress.around)
        # A rank alone has nobody to be compared with.
        alone = context.world_size == 1
        try:
            with nullcontext() if alone else self._meter.measuring():
                return function(job, context, model_directory, link)
        # User code may raise anything, SystemExit included; the gang decides what follows.
        except BaseException as wrong:
            log.exception("failed")
            return failure_of(self._rank, self._coordinate, wrong, time.time())

    @ray.method(concurrency_group="control")
    def reports(self) -> list[StepReport]:
        """The steps reported since the last call."""
        return [self._reports.popleft() for _ in range(len(self._reports))]

    @ray.method(concurrency_group="control")
    def standing(self) -> Standing:
        """Where the run stands now, with the stack of every thread."""
        return self._progress.standing()

    @ray.method(concurrency_group="control")
    def effort(self) -> Effort:
        """How much of its steps the run has spent on work of its own, so far."""
        return self._meter.effort()

    @ray.method(concurrency_group="control")
    def stop(self) -> None:
        """Ask the training to stop after the step in flight."""
        self._stop.set()


def _drop_what_the_run_held() -> None:
    """Free the memory of a run that failed, its cycles too, so that the next has room."""
    gc.collect()
    # A run that never came to use torch, or a GPU, has nothing there.
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
