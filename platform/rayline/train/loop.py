"""One rank's whole life: join, build, restore, then step and report until done, export, leave.

    joined ── build_engine ── restore ──┬─ batch ── engine.step ── evaluate? ── save? ─┐
                                        └──────────────── observe ── snapshot? ────────┘
    ── export ── left

Every rank runs the same statements in the same order; what only rank 0 does (reports, the choice
of a checkpoint) is told to the others before it matters. Ray is not known here: the caller hands
in the WorkerContext, and gets StepReports back through a Link of plain functions.
"""

from __future__ import annotations

import logging
import time
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.distributed as dist

from rayline import checkpoint
from rayline.data import collate
from rayline.errors import CheckpointError, SpecError
from rayline.models.stage import load_config
from rayline.spec import (
    EvalReport,
    ExportReport,
    JobSpec,
    ModelShape,
    StepParts,
    StepReport,
    TrainResult,
    WorkerContext,
    Yardstick,
)
from rayline.spec.job_file import keep_job
from rayline.train.build import EngineBuilder, build_engine
from rayline.train.chance import step_seed
from rayline.train.engine import Engine, StepOutcome
from rayline.train.export import export_verified
from rayline.train.feed import HeldOutFeed, TrainingFeed
from rayline.train.keeping import Snapshots
from rayline.train.link import Link
from rayline.train.memory import peak_memory_bytes, peak_memory_of_ranks
from rayline.train.pace import Pace
from rayline.train.prefetch import Prefetch
from rayline.train.process_group import any_rank, joined
from rayline.train.profile import StepProfiler
from rayline.train.speed import Utilization, measure_utilization

log = logging.getLogger(__name__)


def run_rank(
    job: JobSpec,
    context: WorkerContext,
    model_directory: Path,
    link: Link,
    yardstick: Yardstick | None = None,
    build: EngineBuilder = build_engine,
) -> TrainResult:
    """Train as `job` says; called once in each worker process, by every rank.

    Without a `yardstick` reports say nothing of the devices' utilization; `build` makes the engine.
    Raises SpecError, CheckpointError, or what torch raised.
    """
    with ExitStack() as held:
        clock = _Clock()
        with link.around("start", 0):
            shape = ModelShape.from_config(load_config(model_directory).to_dict())
            job.check(shape)
            _check_storage(job, context)
            feed = TrainingFeed.load(job, context.coordinate, model_directory)
            held_out = HeldOutFeed.load(job, context.coordinate, model_directory)
            loaded_s = clock.lap_s()
            device = held.enter_context(joined(context))
            joined_s = clock.lap_s()
            utilization = None
            if yardstick is not None:
                utilization = measure_utilization(yardstick, device, job.precision)
            engine = build(job, context, model_directory, device)
            run = _Run(
                job,
                context,
                link,
                engine,
                Pace(job),
                feed,
                held_out,
                utilization,
                checkpoint.model_fingerprint(shape),
                device,
                held.enter_context(closing(Snapshots(job, context))),
            )
            built_s = clock.lap_s()
            first_step = run.restore() + 1
            told = "data in %.2f s, joined in %.2f s, built in %.2f s, restored in %.2f s"
            log.info(told, loaded_s, joined_s, built_s, clock.lap_s())
        with (
            StepProfiler(job.profile, Path(job.directory) / "profile", context) as profiler,
            Prefetch(feed.batch, job.last_step) as batches,
        ):
            last_step = run.train(first_step, batches, profiler)
        memory = peak_memory_of_ranks(device)
        finished = last_step >= job.steps
        report = run.export(model_directory, last_step) if finished else None
    saved = None if run.newest is None else str(run.newest)
    trace = None if profiler.trace is None else str(profiler.trace)
    return TrainResult(first_step, last_step, finished, saved, report, memory, trace)


def _check_storage(job: JobSpec, context: WorkerContext) -> None:
    """Refuse a folder of checkpoints that this node cannot use, before anything is trained. A gang
    that begins again has been there, and may go on from memory while storage rests."""
    first = context.epoch == 1 and context.local_rank == 0
    if first and job.checkpoint.directory is not None:
        checkpoint.check_access(checkpoint.located(job.checkpoint_directory))


class _Clock:
    """Wall time, lap by lap."""

    def __init__(self) -> None:
        self._lap_s = time.perf_counter()

    def lap_s(self) -> float:
        """Seconds since the last call, or since the clock was made."""
        began_s, self._lap_s = self._lap_s, time.perf_counter()
        return self._lap_s - began_s


@dataclass(slots=True)
class _Run:
    """What the stations of one rank's life share."""

    job: JobSpec
    context: WorkerContext
    link: Link
    engine: Engine
    pace: Pace
    feed: TrainingFeed
    held_out: HeldOutFeed | None
    utilization: Utilization | None
    model_fingerprint: str
    device: torch.device
    snapshots: Snapshots
    newest: checkpoint.Location | None = None
    """Folder of the newest checkpoint that this run wrote or resumed from."""

    @property
    def _checkpoints(self) -> checkpoint.Location:
        return checkpoint.located(self.job.checkpoint_directory)

    def restore(self) -> int:
        """Take over the snapshot that the gang goes on from, else the newest intact checkpoint, if
        there is one; returns the steps done."""
        kept = self.snapshots.restore(self.engine, self.link.observe)
        if kept is None:
            return self._restore_checkpoint()
        self.pace.restore(kept.header.scalars)
        log.info("resumed after step %d from memory", kept.header.step)
        return kept.header.step

    def _restore_checkpoint(self) -> int:
        """As `restore`, from storage. Rank 0 chooses, so that all ranks agree even while storage
        changes."""
        chosen: list[object] = [None]
        if self.context.rank == 0:
            chosen = [self._choose()]
        dist.broadcast_object_list(chosen, src=0)
        folder = chosen[0]
        if isinstance(folder, CheckpointError | SpecError):
            raise folder
        if not isinstance(folder, checkpoint.Location):
            return 0
        manifest = checkpoint.read_manifest(folder)
        pieces = self.engine.pieces()
        checkpoint.read_into(folder, manifest, pieces)
        self.engine.restore(pieces, manifest.scalars)
        self.pace.restore(manifest.scalars)
        self.newest = folder
        batch = self.job.batch
        expected = batch.samples_after(manifest.step)
        if manifest.samples_consumed != expected:
            ramp = "" if batch.ramp is None else " and its ramp"
            raise CheckpointError(
                str(folder),
                f"{manifest.samples_consumed} samples were used in {manifest.step} steps; with "
                f"batch.sequences {batch.sequences}{ramp} it would have been {expected}",
                fix="resume with the batch size that wrote the checkpoint",
            )
        log.info("resumed after step %d from %s", manifest.step, folder)
        return manifest.step

    def _choose(self) -> checkpoint.Location | CheckpointError | SpecError | None:
        """The folder to resume from, None for a fresh start, or the error all ranks shall raise."""
        try:
            # A gang that begins again goes on from what it left itself.
            if self.job.checkpoint.resume == "never" and not self.context.has_stepped:
                if checkpoint.list_steps(self._checkpoints):
                    return SpecError(
                        "checkpoint.resume",
                        f"never, but a checkpoint stands in {self._checkpoints}",
                        value="never",
                        allowed="auto, never",
                        fix="set it to auto to go on from there, or choose another output_dir or "
                        "checkpoint.directory",
                    )
                return None
            found = checkpoint.newest_intact(self._checkpoints, self.model_fingerprint)
        except CheckpointError as wrong:
            return wrong
        for reason in found.skipped if found else ():
            log.warning("a damaged checkpoint was passed over: %s", reason)
        return found.folder if found else None

    def train(self, first_step: int, batches: Prefetch, profiler: StepProfiler) -> int:
        """Steps until done or asked to stop; returns the last step done."""
        around = self.link.around
        self._keep_job()
        unreported = self._evaluate(0) if first_step == 1 else ()
        for step in range(first_step, self.job.last_step + 1):
            clock = _Clock()
            profiler.begin(step)
            profile_s = clock.lap_s()
            with around("data", step):
                batch = batches.batch(step)
            data_s = clock.lap_s()
            torch.manual_seed(step_seed(self.job.seed, step, self.context.coordinate))
            lr = self.pace.learning_rate(step)
            with around("engine", step), profiler.engine():
                outcome = self.engine.step(batch, lr, self.pace.admits)
            skipped = self.pace.done(step, outcome)
            engine_s = clock.lap_s()
            evaluations = unreported + self._evaluate(step)
            evaluation_s = clock.lap_s()
            saved = step == self.job.last_step
            if saved:
                self._save(step)
            elif self._is_due(step):
                saved = self._save_beside(step)
            checkpoint_s = clock.lap_s()
            communication_s = profiler.end(step)
            profile_s += clock.lap_s()
            if self.context.rank == 0:
                parts = StepParts(
                    data_s, engine_s, communication_s, evaluation_s, checkpoint_s, profile_s
                )
                report = self._report(step, lr, outcome, skipped, parts, evaluations)
                self.snapshots.note(report)
                self.link.observe(report)
            unreported = ()
            if self.snapshots.is_due(step):
                with around("snapshot", step):
                    self.snapshots.keep(self._header(step), self.engine)
            if any_rank(self.link.stop_requested()):
                if not saved:
                    self._save(step)
                return step
        return max(first_step - 1, self.job.last_step)

    def _keep_job(self) -> None:
        """Beside the checkpoints. Storage that cannot take it ends no job: a save will tell."""
        if self.context.rank == 0:
            try:
                keep_job(self.job)
            except OSError as wrong:
                log.warning("the job's spec is not kept in its output_dir: %s", wrong)

    def _evaluate(self, step: int) -> tuple[EvalReport, ...]:
        """The evaluation that follows `step`, where one does."""
        asked = self.job.evaluation
        if asked is None or self.held_out is None or not asked.is_due(step, self.job.steps):
            return ()
        with self.link.around("evaluate", step):
            return (self.held_out.evaluate(self.engine, step),)

    def _report(
        self,
        step: int,
        lr: float,
        outcome: StepOutcome,
        skipped: str,
        parts: StepParts,
        evaluations: tuple[EvalReport, ...],
    ) -> StepReport:
        report = StepReport(
            step=step,
            loss=outcome.loss,
            grad_norm=outcome.grad_norm,
            lr=lr,
            tokens=outcome.tokens,
            processed_tokens=self.job.batch.sequences_at(step) * self.job.data.sequence_tokens,
            seconds=parts.total_s,
            memory_bytes=peak_memory_bytes(self.device),
            at_s=time.time(),
            skipped=skipped,
            routing=outcome.routing,
            workers=self.context.world_size,
            parts=parts,
            evaluations=evaluations,
        )
        if self.utilization is None:
            return report
        return replace(report, mfu=self.utilization.mfu(report.tokens_per_s))

    def _is_due(self, step: int) -> bool:
        every = self.job.checkpoint.every_steps
        return every is not None and step % every == 0

    def _header(self, step: int) -> checkpoint.CheckpointHeader:
        """What a checkpoint or a snapshot of this step says of the run."""
        return checkpoint.CheckpointHeader(
            step=step,
            samples_consumed=self.job.batch.samples_after(step),
            plan=self.job.plan,
            engine=self.job.engine,
            spec_fingerprint=self.job.fingerprint(),
            model_fingerprint=self.model_fingerprint,
            scalars={**self.engine.scalars(), **self.pace.scalars()},
        )

    def _save(self, step: int) -> None:
        bytes_per_s = self.job.checkpoint.write_bytes_per_s
        with self.link.around("save", step):
            self.newest = checkpoint.save(
                self._checkpoints,
                self._header(step),
                self.engine.pieces(),
                checkpoint.exchange(),
                keep=self.job.checkpoint.keep,
                bytes_per_s=bytes_per_s and bytes_per_s / self.context.workers_on_node,
            )

    def _save_beside(self, step: int) -> bool:
        """A checkpoint while training goes on, where there is a keeper that writes it; whether it
        is on storage when this returns."""
        if not self.snapshots.post_to_storage:
            self._save(step)
            return True
        with self.link.around("save", step):
            if not self.snapshots.post(self._header(step), self.engine):
                log.warning(
                    "step %d is not saved: storage is still busy with the checkpoint before", step
                )
        return False

    def export(self, model_directory: Path, step: int) -> ExportReport:
        """The trained model as a Hugging Face folder, its logits checked."""
        if self.job.ema is not None and self.job.ema.export:
            self.engine.take_average()
        probe = collate(self.feed.dataset, [0])[0]
        target = Path(self.job.directory) / "export"
        with self.link.around("export", step):
            return export_verified(self.engine, self.job, model_directory, target, probe, step)
