"""The one place that chooses an engine: a field of the spec."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from rayline.spec import JobSpec, WorkerContext
from rayline.train.compilation import check_compiler
from rayline.train.engine import Engine

EngineBuilder = Callable[[JobSpec, WorkerContext, Path, torch.device], Engine]
"""What makes a rank's engine: job, context, model folder, device."""


def build_engine(
    job: JobSpec, context: WorkerContext, model_directory: Path, device: torch.device
) -> Engine:
    """This rank's engine with its initial weights. Every rank calls it, after torch.distributed is
    set up. Raises SpecError where the model cannot be trained as planned, or not here."""
    check_compiler(job.compile, device)
    # Each engine is imported when it is asked for: DeepSpeed alone takes seconds.
    if job.engine == "deepspeed":
        from rayline.train.deepspeed_engine import build_deepspeed_engine

        return build_deepspeed_engine(job, context, model_directory, device)
    from rayline.train.native import build_native_engine

    return build_native_engine(job, context, model_directory, device)
