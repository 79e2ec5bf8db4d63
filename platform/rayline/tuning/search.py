"""search: draw, run as gangs, stop the weak early, keep the best.

    Drawing (Optuna) ── Ray Tune (ASHA) ── one process and one gang a trial ── Following
                                                     │
    parent run ◄───────────────────────────── child runs in the tracking store

Ray Tune decides when a trial starts and whether it goes on; what a trial runs is `actors.train`, as
for any job, inside the trial's placement group.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.error import TuneError
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler

import rayline
from rayline.actors import ensure_ray, nodes, refuse_impossible, trial_bundles
from rayline.actors.driver import anchored_job
from rayline.errors import SpecError
from rayline.spec import JobSpec, ModelRef, ModelShape, TuneSpec
from rayline.tracking import TrackedRun, database_file, open_run, resolve_model
from rayline.tuning.drawing import Draw, Drawing
from rayline.tuning.following import Following, TrialObserver
from rayline.tuning.outcome import SearchOutcome, TrialOutcome, as_table, ranked
from rayline.tuning.recording import best_yaml, recorded, refuse_incomplete
from rayline.tuning.space import check_space

_PIN = 0.001
"""Share of a node's own Ray resource that keeps a trial's process there."""


def search(spec: TuneSpec, *, observers: Sequence[TrialObserver] = ()) -> SearchOutcome:
    """Run a search and return its trials, best first. Called by the driver.

    `observers` get a TrialReport for every step of every trial. Writes best.yaml, a JobSpec, and
    trials.tsv into the search's folder and logs both with its run. A trial that fails, or whose
    values cannot run together, counts as a trial and does not end the search. Raises SpecError for
    a range that no trial could take, PlacementError where no trial finds room in time, WorkerError
    or SpecError where no trial finished, InterruptedByUser after Ctrl-C; no gang is left running.
    """
    check_space(spec)
    scheduler = _scheduler(spec)
    ensure_ray()
    folder = Path.cwd() / spec.directory
    folder.mkdir(parents=True, exist_ok=True)
    anchored = spec.model_copy(update={"job": anchored_job(spec.job, Path.cwd())})
    tags = {"rayline.fingerprint": spec.fingerprint(), "rayline.search": spec.search}
    with open_run(
        spec.job.tracking, name=spec.name, params=spec.flat(), tags=tags, directory=folder
    ) as run:
        ended = _run_trials(anchored, scheduler, run, folder, observers)
        trials = ranked(recorded(anchored, run.run_id, ended))
        table = as_table(trials)
        (folder / "trials.tsv").write_text(table, encoding="utf-8")
        run.log_text(table, "trials.tsv")
        refuse_incomplete(trials, spec)
        best_file = folder / "best.yaml"
        best_file.write_text(best_yaml(spec, trials[0], best_file), encoding="utf-8")
        run.log_artifact(best_file)
        run.tag("rayline.best_run", trials[0].run_id or "")
    return SearchOutcome(run.run_id, trials, str(best_file))


def _refuse_labels(job: JobSpec) -> None:
    if job.resources.labels:
        raise SpecError(
            "job.resources.labels",
            "Ray Tune places a trial's group without labels",
            value=job.resources.labels,
            allowed="{}",
            fix="ask for the nodes by job.resources.custom",
        )


def _run_trials(
    spec: TuneSpec,
    scheduler: TrialScheduler,
    run: TrackedRun,
    folder: Path,
    observers: Sequence[TrialObserver],
) -> list[TrialOutcome]:
    """Everything that Ray Tune does, from the first draw to the last trial's end."""
    shapes: dict[ModelRef, ModelShape] = {}

    def refuse(job: JobSpec) -> None:
        if job.model not in shapes:
            shapes[job.model] = _shape(job)
        job.check(shapes[job.model])
        _refuse_labels(job)
        refuse_impossible(trial_bundles(job, nodes()))

    def config(draw: Draw) -> dict[str, Any]:
        return {
            "bundles": [_head_bundle(draw.job), *trial_bundles(draw.job, nodes())],
            "trial": {
                "number": draw.number,
                "job": draw.job.model_dump(mode="json"),
                "parent_run_id": run.run_id,
                "window_steps": spec.metric_window_steps,
            },
        }

    # Each start of a search has its own folder, so that no trial goes on from another's checkpoint.
    own = folder / run.run_id[:8]
    drawing = Drawing(spec, str(own), refuse, config)
    following = Following(spec, drawing, observers)
    # The tracking store has every figure; Ray Tune's own CSV and TensorBoard files repeat them.
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    tuner = tune.Tuner(
        _trial_process(str(Path(rayline.__file__).parents[1])),
        tune_config=tune.TuneConfig(
            search_alg=drawing,
            scheduler=scheduler,
            num_samples=spec.trials,
            max_concurrent_trials=spec.concurrent,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(own),
            callbacks=[following],
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            verbose=0,
        ),
    )
    try:
        tuner.fit()
    except TuneError:
        if following.refused is not None:
            raise following.refused from None
        raise
    return following.outcomes()


def _trial_process(source: str) -> type[tune.Trainable]:
    """The class that Ray Tune makes one actor of for each trial.

    It is defined in a function so that Ray sends it by value: the actor's process may not know yet
    where rayline lies (from a checkout it is not installed).
    """

    class TrialProcess(tune.Trainable):
        @classmethod
        def default_resource_request(cls, config: dict[str, Any]) -> tune.PlacementGroupFactory:
            return tune.PlacementGroupFactory(config["bundles"])

        def setup(self, config: dict[str, Any]) -> None:
            if source not in sys.path:
                sys.path.insert(0, source)
            from rayline.tuning.trial import Trial, TrialConfig

            self._trial = Trial(TrialConfig.parse(config["trial"]))

        def step(self) -> dict[str, Any]:
            return self._trial.next_result()

        def cleanup(self) -> None:
            self._trial.end()

    return TrialProcess


def _scheduler(spec: TuneSpec) -> TrialScheduler:
    """ASHA over steps, or none. Raises SpecError where its first rung lies after the last step."""
    if spec.asha is None:
        return FIFOScheduler()
    steps = spec.space.get("steps")
    longest = spec.job.last_step
    if steps is not None:
        longest = int(steps.high) if steps.high is not None else max(steps.choices or [longest])
    if spec.asha.grace_steps > longest:
        raise SpecError(
            "asha.grace_steps",
            f"more than the {longest} steps of a trial, so none would ever be stopped",
            value=spec.asha.grace_steps,
            allowed=f"1..{longest}",
            fix="lower it, or remove asha",
        )
    # Ray Tune would stop a trial that reaches max_t; ours end by themselves at their last step.
    return ASHAScheduler(
        time_attr="step",
        metric=spec.metric,
        mode="min",
        max_t=longest + 1,
        grace_period=spec.asha.grace_steps,
        reduction_factor=spec.asha.reduction_factor,
    )


def _shape(job: JobSpec) -> ModelShape:
    folder = resolve_model(job.model, job.tracking, need_weights=job.init == "weights")
    try:
        return ModelShape.from_config(json.loads((folder / "config.json").read_text("utf-8")))
    except ValueError:
        raise SpecError(
            "model", f"{folder}/config.json is not JSON", value=str(job.model)
        ) from None


def _head_bundle(job: JobSpec) -> dict[str, float]:
    """What the trial's own process holds: nothing, or, where runs are recorded in a local file, a
    place on this node, which has that file."""
    if database_file(job.tracking) is None:
        return {}
    return {f"node:{ray.util.get_node_ip_address()}": _PIN}
