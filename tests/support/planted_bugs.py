"""Engines with a fault planted in them: each alters what the real engine does, nothing is faked.

Every function here has the form of rayline.train.build.build_engine, and ranks import it by name.
"""

from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from rayline.parallel.piece import Piece
from rayline.spec import JobSpec, WorkerContext
from rayline.train.build import build_engine
from rayline.train.engine import Admits, Batch, StepOutcome
from rayline.train.schedule import learning_rate
from rayline.train.tied import TiedCopies

Engine = Any


def partial_sum_left_out(
    job: JobSpec, context: WorkerContext, model: Path, device: torch.device
) -> Engine:
    """Tensor ranks keep the gradient of their own heads only, in the norms of queries and keys."""
    engine: Any = build_engine(job, context, model, device)
    engine._partial = {}
    return engine


def _scaled(engine: Any, factor: float) -> Engine:
    real = engine._forward_backward

    def forward_backward(batch: Batch) -> tuple[float, int]:
        told: tuple[float, int] = real(batch)
        for parameter in engine._parameters.values():
            if parameter.grad is not None:
                parameter.grad.mul_(factor)
        return told

    engine._forward_backward = forward_backward
    return engine


def scaled_by_data_size(
    job: JobSpec, context: WorkerContext, model: Path, device: torch.device
) -> Engine:
    return _scaled(build_engine(job, context, model, device), job.plan.data)


def averaged_over_data(
    job: JobSpec, context: WorkerContext, model: Path, device: torch.device
) -> Engine:
    return _scaled(build_engine(job, context, model, device), 1 / job.plan.data)


def scaled_by_microbatches(
    job: JobSpec, context: WorkerContext, model: Path, device: torch.device
) -> Engine:
    return _scaled(build_engine(job, context, model, device), job.plan.microbatches)


def experts_averaged(
    job: JobSpec, context: WorkerContext, model: Path, device: torch.device
) -> Engine:
    """The gradients of experts are means over the ranks that have a set of them between them."""
    engine: Any = build_engine(job, context, model, device)
    real = engine._forward_backward

    def forward_backward(batch: Batch) -> tuple[float, int]:
        told: tuple[float, int] = real(batch)
        for name in engine._layout.experts:
            engine._parameters[name].grad.mul_(1 / job.plan.expert)
        return told

    engine._forward_backward = forward_backward
    return engine


SWAPPED = "model.layers.0.mlp.up_proj.weight"


def shard_swapped(
    job: JobSpec, context: WorkerContext, model: Path, device: torch.device
) -> Engine:
    """The tensor ranks hold each other's part of one weight."""
    engine = build_engine(job, context, model, device)
    (piece,) = [piece for piece in engine.pieces() if piece.tensor == f"weight/{SWAPPED}"]
    parts = [torch.empty_like(piece.data) for _ in range(job.plan.world_size)]
    dist.all_gather(parts, piece.data.contiguous())
    (group,) = [group for group in job.plan.groups("tensor") if context.rank in group]
    other = group[(group.index(context.rank) + 1) % len(group)]
    piece.data.copy_(parts[other])
    return engine


class Altered:
    """An engine all of whose methods are the real one's, but for those that a subclass has."""

    def __init__(self, job: JobSpec, engine: Any) -> None:
        self.job = job
        self.engine = engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)


class _SameBatch(Altered):
    def _first(self, batch: Batch) -> Batch:
        for tensor in (batch.input_ids, batch.labels):
            dist.broadcast(tensor, src=0)
        return batch

    def step(self, batch: Batch, lr: float, admits: Admits) -> StepOutcome:
        return self.engine.step(self._first(batch), lr, admits)

    def gradients(self, batch: Batch) -> Any:
        yield from self.engine.gradients(self._first(batch))


def batch_duplicated(
    job: JobSpec, context: WorkerContext, model: Path, device: torch.device
) -> Engine:
    """Every data rank computes on the first one's sequences."""
    return _SameBatch(job, build_engine(job, context, model, device))


class _Unsummed(TiedCopies):
    def sum_gradients(self) -> None:
        """Left out."""


def tied_copy_not_summed(
    job: JobSpec, context: WorkerContext, model: Path, device: torch.device
) -> Engine:
    """The first and the last stage keep their own gradients of the embedding."""
    engine: Any = build_engine(job, context, model, device)
    engine.tied = _Unsummed(*(getattr(engine.tied, field.name) for field in fields(TiedCopies)))
    return engine


def norm_of_one_stage(
    job: JobSpec, context: WorkerContext, model: Path, device: torch.device
) -> Engine:
    """The global norm counts the first stage only, and clipping goes by it."""
    engine: Any = build_engine(job, context, model, device)
    real = engine._agree

    def agree(loss: float, tokens: int, gradients: dict[str, torch.Tensor]) -> StepOutcome:
        counted = gradients if context.coordinate.pipeline == 0 else {}
        outcome: StepOutcome = real(loss, tokens, counted)
        return outcome

    engine._agree = agree
    return engine


class _Forgetful(Altered):
    def restore(self, pieces: list[Piece], scalars: dict[str, float | int]) -> None:
        self.engine.restore(pieces, scalars)
        for piece in self.engine.pieces():
            if piece.tensor.startswith("optimizer/"):
                piece.data.zero_()


def optimizer_state_lost(
    job: JobSpec, context: WorkerContext, model: Path, device: torch.device
) -> Engine:
    """After a resume AdamW's running means begin at zero."""
    return _Forgetful(job, build_engine(job, context, model, device))


class _Late(Altered):
    resumed_at: int | None = None

    def restore(self, pieces: list[Piece], scalars: dict[str, float | int]) -> None:
        self.engine.restore(pieces, scalars)
        self.resumed_at = int(scalars["optimizer_steps"])

    def step(self, batch: Batch, lr: float, admits: Admits) -> StepOutcome:
        if self.resumed_at is not None:
            # The rate of the step before.
            lr = learning_rate(self.job.optim, self.resumed_at, self.job.steps)
            self.resumed_at += 1
        return self.engine.step(batch, lr, admits)


def rate_off_by_one(
    job: JobSpec, context: WorkerContext, model: Path, device: torch.device
) -> Engine:
    """After a resume the learning rate's schedule lags one step."""
    return _Late(job, build_engine(job, context, model, device))


_SEEN: dict[int, Batch] = {}
"""Batch of each step, in this process."""


class _Lagging(Altered):
    steps_done = 0
    resumed = False

    def restore(self, pieces: list[Piece], scalars: dict[str, float | int]) -> None:
        self.engine.restore(pieces, scalars)
        self.steps_done, self.resumed = int(scalars["optimizer_steps"]), True

    def step(self, batch: Batch, lr: float, admits: Admits) -> StepOutcome:
        self.steps_done += 1
        _SEEN[self.steps_done] = batch
        shown = _SEEN[self.steps_done - 1] if self.resumed else batch
        return self.engine.step(shown, lr, admits)


def data_shifted(job: JobSpec, context: WorkerContext, model: Path, device: torch.device) -> Engine:
    """After a resume the samples of the step before come again."""
    return _Lagging(job, build_engine(job, context, model, device))


def raising_on_rank_1(
    job: JobSpec, context: WorkerContext, model: Path, device: torch.device
) -> Engine:
    if context.rank == 1:
        raise ZeroDivisionError("the user's own mistake")
    return build_engine(job, context, model, device)
