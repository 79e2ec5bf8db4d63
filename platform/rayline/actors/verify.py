"""verify: a user's own model and plan against one process that shares no parallel code with them.

    resolve, check, shrink ── reference ── ranks of the whole plan ── measure ── judge
                                             └─ where it differs: one worker, then each axis alone

A mistake in a parallel engine seldom stops it: a sum that is left out makes one parameter's
gradient wholly wrong and moves the loss by a millionth. So every parameter is compared by itself.

Ranks are plain processes of this machine on gloo (see `rayline.actors.local`), not a Ray gang: what
is compared is what a rank computes, which is the same code in both, and a laptop without a cluster
can run it. What Ray adds, placement and restarts, has nothing to be compared with.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rayline.actors.driver import anchored_job
from rayline.actors.failure import worker_name
from rayline.actors.local import RunCalls, free_ports, local_processes
from rayline.errors import RaylineError
from rayline.planner import read_model_config, read_model_shape
from rayline.spec import JobSpec, ModelShape, ParallelPlan
from rayline.tracking import resolve_model
from rayline.train.verify.forks import Call
from rayline.train.verify.shrink import Shrunk, as_it_is, shrink
from rayline.train.verify.trial import (
    LIVES,
    STEPS,
    ReferenceResult,
    Trial,
    alone,
    plan_axes,
    verified_job,
)
from rayline.train.verify.verdict import Verdict, did_not_run, guilty, judge

WHOLE_PLAN, ONE_WORKER = "whole plan", "one worker"
_SHOWN = 3
_WHOLE_TIMEOUT_S = 1800.0
"""A whole model on CPU may keep the others waiting this long."""


@dataclass(frozen=True, slots=True)
class VerifyPlan:
    """What a verification would run; nothing is started yet."""

    job: JobSpec
    """As it is verified: shrunk, or the whole."""
    config: dict[str, Any]
    """The model's config.json as it is verified."""
    source: Path
    """The model's own folder."""
    whole: bool
    changes: tuple[str, ...]
    """What differs from the user's own job and model, a line each."""
    label: str
    """`whole plan`, or the one axis that was asked for."""
    suspects: dict[str, ParallelPlan]
    """What is tried after a difference, to name the axis: plan by label."""


@dataclass(frozen=True, slots=True)
class Verification:
    """What a verification found."""

    changes: tuple[str, ...]
    verdict: Verdict
    alone: tuple[Verdict, ...]
    """After a difference: one worker, then each axis by itself."""
    guilty: str
    """Which axis is to blame; empty where nothing differs."""

    @property
    def equal(self) -> bool:
        """The plan computes what one process computes, and resumes to the bit."""
        return self.verdict.equal

    def error(self) -> RaylineError | None:
        """What is wrong, as a door shows it; None where nothing is."""
        if self.equal:
            return None
        offences = self.verdict.offences
        named = "; ".join(
            f"{offence.check} of {offence.name}: {offence.hint}" for offence in offences[:_SHOWN]
        )
        more = f" (and {len(offences) - _SHOWN} more)" if len(offences) > _SHOWN else ""
        return RaylineError(
            f"verify {self.verdict.label} ({self.verdict.plan})",
            f"does not compute what one process computes: {named}{more}",
            fix=f"to blame: {self.guilty}; train without it until it is mended",
        )


def plan_verification(job: JobSpec, *, axis: str | None = None, whole: bool = False) -> VerifyPlan:
    """What would be run for `job`: shrunk to a laptop's size, or the `whole`; with `axis`, the plan
    reduced to that axis. Called by the driver. Raises SpecError where the job itself cannot work or
    the plan has no such axis."""
    anchored = anchored_job(job, Path.cwd())
    need_weights = whole and job.init == "weights"
    source = resolve_model(anchored.model, anchored.tracking, need_weights=need_weights)
    anchored.check(read_model_shape(source))
    config = read_model_config(source)
    small: Shrunk = as_it_is(anchored, config) if whole else shrink(anchored, config)
    full = small.job.plan
    plan = alone(full, axis) if axis is not None else full
    verified = small.job.changed({"plan": plan.model_dump(mode="json")})
    verified.check(ModelShape.from_config(small.config))
    axes = plan_axes(plan)
    suspects = {label: alone(plan, label) for label in (ONE_WORKER, *axes)} if axes else {}
    return VerifyPlan(
        job=verified,
        config=small.config,
        source=source,
        whole=whole,
        changes=small.changes,
        label=axis or WHOLE_PLAN,
        suspects=suspects,
    )


def verify(
    plan: VerifyPlan,
    *,
    observe: Callable[[str], None] = lambda line: None,
    build: Callable[..., Any] | None = None,
) -> Verification:
    """Run `plan` on this machine's CPU and compare. Called by the driver.

    `observe` gets a line for everything that begins. `build` (an EngineBuilder that can be imported
    by its name) makes the engines in place of the job's own. Raises SpecError where the model
    cannot be built, WorkerError where a rank of the plan raised or died; no process is left in any
    case. Differences are no error: they are in the result.
    """
    with tempfile.TemporaryDirectory(prefix="rayline-verify-") as scratch:
        bench = _Bench(plan, Path(scratch), observe, build)
        with local_processes(_modules(plan.job), Path(scratch)) as run:
            return bench.verify(run)


def _modules(job: JobSpec) -> list[str]:
    engine = "deepspeed_engine" if job.engine == "deepspeed" else "native"
    room = "rayline.train"
    return [f"{room}.{engine}", f"{room}.verify.rank", f"{room}.verify.measure"]


class _Bench:
    """The stations of one verification, on files below one folder."""

    def __init__(
        self,
        plan: VerifyPlan,
        scratch: Path,
        observe: Callable[[str], None],
        build: Callable[..., Any] | None,
    ) -> None:
        self._plan = plan
        self._scratch = scratch
        self._observe = observe
        self._build = build
        self._model = scratch / "model"
        self._job = plan.job
        if not plan.whole:
            chats = scratch / "chats.jsonl"
            self._job = plan.job.changed({"data.kind": "chat", "data.files": [str(chats)]})
        self._calls = 0

    def verify(self, run: RunCalls) -> Verification:
        """Everything, in order."""
        plan = self._plan
        self._observe(f"reference: {STEPS} steps on one process, twice")
        self._prepare(run)
        reference = self._reference(run)
        whole = self._judged(run, plan.label, plan.job.plan, reference)
        suspects: list[Verdict] = []
        for label, suspect in () if whole.equal else plan.suspects.items():
            if suspect == whole.plan:
                suspects.append(replace(whole, label=label))
                continue
            try:
                suspects.append(self._judged(run, label, suspect, reference))
            except RaylineError as wrong:
                suspects.append(did_not_run(label, suspect, str(wrong)))
        return Verification(plan.changes, whole, tuple(suspects), guilty(whole, suspects))

    def _prepare(self, run: RunCalls) -> None:
        plan = self._plan
        self._model.mkdir()
        if plan.whole:
            draw_seed = None if plan.job.init == "weights" else plan.job.seed
            arguments = (self._model, plan.config, plan.source, draw_seed)
            run([self._call("model", "folder:write_whole_model", *arguments)])
            return
        arguments = (self._model, plan.config, plan.job.seed)
        run([self._call("model", "folder:write_small_model", *arguments)])
        (chats,) = self._job.data.files
        run([self._call("data", "folder:write_chats", Path(chats))])

    def _reference(self, run: RunCalls) -> ReferenceResult:
        folder = self._scratch / "reference"
        folder.mkdir()
        arguments = (verified_job(self._job), self._model, folder, STEPS)
        result: ReferenceResult
        (result,) = run([self._call("reference", "reference:train_twice", *arguments)])
        return result

    def _judged(
        self, run: RunCalls, label: str, plan: ParallelPlan, reference: ReferenceResult
    ) -> Verdict:
        count = plan.world_size
        self._observe(f"{label}: {plan}, {count} process{'es' if count > 1 else ''}")
        trial = self._trial(label, plan)
        lived, *_ = run(
            [
                self._call(worker_name(rank, plan.coordinate(rank)), "rank:live", trial, rank)
                for rank in range(count)
            ]
        )
        arguments = (trial, lived, self._scratch / "reference", reference)
        (measured,) = run([self._call("comparison", "measure:measure", *arguments)])
        return judge(label, plan, self._job.precision, measured)

    def _trial(self, label: str, plan: ParallelPlan) -> Trial:
        folder = self._scratch / label.replace(" ", "-")
        folder.mkdir()
        trial = Trial(
            job=self._job.changed({"plan": plan.model_dump(mode="json")}),
            model=self._model,
            folder=folder,
            ports=free_ports(LIVES),
            build=self._build,
        )
        return replace(trial, collective_timeout_s=_WHOLE_TIMEOUT_S) if self._plan.whole else trial

    def _call(self, name: str, function: str, *arguments: Any) -> Call:
        self._calls += 1
        log = self._scratch / f"call-{self._calls}.log"
        return Call(name, f"rayline.train.verify.{function}", arguments, log)
