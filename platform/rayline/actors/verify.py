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
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rayline.actors.driver import anchored_job
from rayline.actors.failure import worker_name
from rayline.actors.local import RunCalls, local_processes
from rayline.errors import RaylineError, SpecError
from rayline.planner import read_model_config, read_model_shape
from rayline.spec import JobSpec, ModelShape, ParallelPlan
from rayline.tracking import resolve_model
from rayline.train.verify.forks import Call
from rayline.train.verify.shrink import Shrunk, as_it_is, shrink
from rayline.train.verify.trial import (
    STEPS,
    ReferenceResult,
    Trial,
    alone,
    check_followed,
    plan_axes,
    verified_job,
)
from rayline.train.verify.verdict import Verdict, did_not_run, guilty, judge

MODULES = tuple(f"rayline.train.verify.{name}" for name in ("folder", "rank", "measure"))
"""What every verification's processes need, whatever the engine."""
Processes = Callable[[Sequence[str], Path], AbstractContextManager[RunCalls]]
"""As `local_processes`: modules to import and a folder for the log in, a way to run calls out."""
WHOLE_PLAN, ONE_WORKER = "whole plan", "one worker"
_SHOWN = 3
_SMALL_TIMEOUT_S = 300.0
"""A collective that one rank never enters is an error after this; a small model's step takes far
less."""
_WHOLE_TIMEOUT_S = 1800.0
"""The same for a whole model, which may keep the others waiting on a CPU."""


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
            fix=f"look for the fault in what is to blame: {self.guilty}",
        )


def plan_verification(job: JobSpec, *, axis: str | None = None, whole: bool = False) -> VerifyPlan:
    """What would be run for `job`: shrunk to a laptop's size, or the `whole`; with `axis`, the plan
    reduced to that axis. Called by the driver. Raises SpecError where the job itself cannot work,
    asks for what the plain training does not do, or the plan has no such axis."""
    check_followed(job)
    if job.plan.auto:
        raise SpecError(
            "plan",
            "auto is chosen on a cluster, and what is verified is a plan",
            value="auto",
            fix="give --set plan.tensor=2 and others, or the plan that rayline plan shows",
        )
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
    processes: Processes = local_processes,
) -> Verification:
    """Run `plan` on this machine's CPU and compare. Called by the driver.

    `observe` gets a line for everything that begins. `build` (an EngineBuilder that can be imported
    by its name) makes the engines in place of the job's own; `processes` gives ranks theirs. Raises
    SpecError where the model cannot be built, WorkerError where a rank of the plan raised or died;
    no process is left in any case. Differences are no error: they are in the result.
    """
    with tempfile.TemporaryDirectory(prefix="rayline-verify-") as scratch:
        bench = Bench(plan, Path(scratch))
        with processes(bench.modules, Path(scratch)) as run:
            observe(f"reference: {STEPS} steps on one process, twice")
            reference = bench.prepare(run)

            def judged(label: str, on_trial: ParallelPlan) -> Verdict:
                count = on_trial.world_size
                observe(f"{label}: {on_trial}, {count} process{'es' if count > 1 else ''}")
                trial = bench.trial(label, on_trial, build)
                return bench.judged(run, {label: trial}, reference)[0]

            verdict = judged(plan.label, plan.job.plan)
            suspects = {} if verdict.equal else plan.suspects
            alone_verdicts = []
            for label, suspect in suspects.items():
                if suspect == plan.job.plan:
                    alone_verdicts.append(replace(verdict, label=label))
                    continue
                try:
                    alone_verdicts.append(judged(label, suspect))
                except RaylineError as wrong:
                    alone_verdicts.append(did_not_run(label, suspect, str(wrong)))
    blamed = guilty(verdict, alone_verdicts)
    return Verification(plan.changes, verdict, tuple(alone_verdicts), blamed)


class Bench:
    """The stations of one verification, on files below one folder; `verify` puts them in order."""

    def __init__(self, plan: VerifyPlan, scratch: Path) -> None:
        """`scratch` is an empty folder."""
        self._plan = plan
        self._scratch = scratch
        self._model = scratch / "model"
        self._chats = scratch / "chats.jsonl"
        self._job = plan.job
        if not plan.whole:
            made_up = {"files": [str(self._chats)], "mixture": None, "cache_dir": None}
            data = {f"data.{key}": value for key, value in made_up.items()}
            self._job = plan.job.changed({"data.kind": "chat", **data})
        self._calls = 0

    @property
    def modules(self) -> list[str]:
        """What the processes need, to be imported once."""
        engine = "deepspeed_engine" if self._job.engine == "deepspeed" else "native"
        return [f"rayline.train.{engine}", *MODULES]

    def prepare(self, run: RunCalls) -> ReferenceResult:
        """Write what is trained, and train it plainly. Called once, before everything else."""
        plan = self._plan
        self._model.mkdir()
        if plan.whole:
            seed = None if plan.job.init == "weights" else plan.job.seed
            whole = (self._model, plan.config, plan.source, seed)
            run([self._call("model", "folder:write_whole_model", *whole)])
        else:
            small = (self._model, plan.config, plan.job.seed)
            # No batch holds a chat twice, and the data still begins anew within the steps.
            count = 2 * plan.job.batch.sequences + 1
            run(
                [
                    self._call("model", "folder:write_small_model", *small),
                    self._call("data", "folder:write_chats", self._chats, count),
                ]
            )
        folder = self._scratch / "reference"
        folder.mkdir()
        arguments = (verified_job(self._job), self._model, folder, STEPS)
        result: ReferenceResult
        (result,) = run([self._call("reference", "reference:train_twice", *arguments)])
        return result

    def trial(
        self, name: str, plan: ParallelPlan, build: Callable[..., Any] | None = None
    ) -> Trial:
        """What the ranks of `plan` are to do; `name` is used once."""
        folder = self._scratch / f"trial-{name.replace(' ', '-')}"
        folder.mkdir()
        return Trial(
            job=self._job.changed({"plan": plan.model_dump(mode="json")}),
            model=self._model,
            folder=folder,
            build=build,
            collective_timeout_s=_WHOLE_TIMEOUT_S if self._plan.whole else _SMALL_TIMEOUT_S,
        )

    def judged(
        self, run: RunCalls, trials: Mapping[str, Trial], reference: ReferenceResult
    ) -> list[Verdict]:
        """The verdict on each trial, by its label; all have one world size, and are lived one after
        another by the same processes."""
        (count,) = {trial.job.plan.world_size for trial in trials.values()}
        ordered = list(trials.values())
        places = [ordered[0].job.plan.coordinate(rank) for rank in range(count)]
        lived, *_ = run(
            [
                self._call(worker_name(rank, place), "rank:live", ordered, rank)
                for rank, place in enumerate(places)
            ]
        )
        folder = self._scratch / "reference"
        arguments = (ordered, lived, folder, reference)
        (measured,) = run([self._call("comparison", "measure:measure", *arguments)])
        return [
            judge(label, trial.job.plan, self._job.precision, found, self._job.optim.kind)
            for (label, trial), found in zip(trials.items(), measured, strict=True)
        ]

    def _call(self, name: str, function: str, *arguments: Any) -> Call:
        self._calls += 1
        log = self._scratch / f"call-{self._calls}.log"
        return Call(name, f"rayline.train.verify.{function}", arguments, log)
