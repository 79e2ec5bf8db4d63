"""Client: each method a thin call into the room that does the work."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rayline.errors import needing
from rayline.sdk.access import ServingAccess
from rayline.sdk.asking import Asking
from rayline.sdk.cluster_jobs import ClusterJobs
from rayline.sdk.clusters import Clusters
from rayline.sdk.joining import Joining
from rayline.sdk.notebook import display, tables
from rayline.sdk.notebook.live_loss import live_loss
from rayline.sdk.planning import Planning
from rayline.sdk.served_models import ServedModels
from rayline.sdk.specs import SpecFiles
from rayline.spec import (
    CheckpointSource,
    JobSpec,
    ModelShape,
    StepReport,
    TrackingSpec,
    TuneSpec,
)

if TYPE_CHECKING:
    from rayline.actors import JobOutcome
    from rayline.actors.verify import Verification
    from rayline.launch import Finding
    from rayline.planner import JobPlan
    from rayline.tracking import ModelSummary, RunNews, RunRecord, RunSummary
    from rayline.train.stored_export import ExportFormat, StoredExport
    from rayline.train.universal_import import ImportedCheckpoint
    from rayline.tuning import SearchOutcome, TrialReport


class Client(ClusterJobs, ServedModels, ServingAccess, Asking, Planning, SpecFiles):
    """One user's view of one Ray cluster and one MLflow store.

    `address` is the Ray cluster to join (None starts one in this process); `jobs_url` is Ray's
    dashboard, where jobs are submitted (None takes the cluster on this machine); `tracking` is the
    store that `runs` and `models` read (a job writes to the store that its own spec names);
    `store` holds the keys and the usage of served models (GatewaySpec.store). `cluster` brings
    machines up and ends them. In a notebook, what the methods hand out draws itself: tables, plans,
    curves. `AsyncClient` has the same methods for an event loop.

    >>> client = Client(tracking=TrackingSpec(uri="sqlite:///mlflow.db"))
    """

    def __init__(
        self,
        *,
        address: str | None = None,
        jobs_url: str | None = None,
        tracking: TrackingSpec | None = None,
        store: str | None = None,
    ) -> None:
        ClusterJobs.__init__(self, jobs_url)
        Joining.__init__(self, address)
        ServingAccess.__init__(self, store)
        SpecFiles.__init__(self, jobs_url)
        self.tracking = tracking or TrackingSpec()
        self.cluster = Clusters()
        display.register()

    def plan(self, job: JobSpec) -> JobPlan:
        """What `job` would run, without starting anything. Raises SpecError where it cannot work.

        Of the model only its config is read (fetched where it is on a hub).

        >>> plan = client.plan(JobSpec.load("jobs/specs/tiny-3d.yaml"))
        >>> plan.parameters, len(plan.workers), plan.workers[5].pipeline
        (658560, 8, 1)
        """
        from rayline.planner import plan_job, read_model_shape

        return plan_job(job, read_model_shape(self._model_folder(job)))

    def model_shape(self, job: JobSpec) -> ModelShape:
        """The shape of the job's model; only its config is read (fetched where it is on a hub).

        >>> client.model_shape(JobSpec.load("jobs/specs/quickstart.yaml")).layers
        4
        """
        from rayline.planner import read_model_shape

        return read_model_shape(self._model_folder(job))

    def check_data(self, job: JobSpec) -> None:
        """Read every line of the job's data. Raises SpecError naming the file and line that is
        wrong; the files must be on this machine.

        >>> client.check_data(JobSpec.load("jobs/specs/quickstart.yaml"))
        """
        with needing("train"):
            from rayline.data import HELD_OUT_FILES, check_files

        check_files(job.data)
        if job.evaluation_data not in (None, job.data):
            check_files(job.evaluation_data, HELD_OUT_FILES)

    def verify(
        self,
        job: JobSpec,
        *,
        axis: str | None = None,
        whole: bool = False,
        observe: Callable[[str], None] = lambda line: None,
    ) -> Verification:
        """Whether the plan of `job` computes what one process computes, on this machine's CPU.

        Every gradient of step 1, five steps and a resume are compared, of a model made small unless
        `whole`; `axis` reduces the plan to one axis. Differences are in the result, with the axis
        to blame. Raises SpecError where the job cannot work, WorkerError where a rank raised.

        >>> client.verify(JobSpec.load("jobs/specs/quickstart.yaml"), axis="data").equal
        True
        """
        with needing("train"):
            from rayline.actors.verify import plan_verification, verify

        return verify(plan_verification(job, axis=axis, whole=whole), observe=observe)

    def train(
        self,
        job: JobSpec,
        *,
        observers: Sequence[Callable[[StepReport], None]] = (),
        stop: threading.Event | None = None,
        run_id: str | None = None,
        chart: bool = True,
    ) -> JobOutcome:
        """Run `job` here and return when it is done: the run's id, result and model.

        Each of `observers` is called with every StepReport. Setting `stop` ends the job after the
        step in flight, with a checkpoint. `run_id` goes on under that run instead of a new one. In
        a notebook `chart` draws the loss as it comes. Raises the RaylineError that the job ended
        with.

        >>> losses = []
        >>> outcome = client.train(job, observers=[lambda report: losses.append(report.loss)])
        >>> outcome.result.finished, losses[-1] < losses[0]
        (True, True)
        """
        with needing("train"):
            from rayline.actors import train as run_job

        self.check_data(job)
        if self.address is not None:
            self._join()
        watching = list(observers)
        if chart:
            watching += live_loss(job)
        return run_job(job, observers=watching, stop=stop, run_id=run_id)

    def resume(
        self,
        run_id: str,
        overrides: Sequence[str] = (),
        *,
        observers: Sequence[Callable[[StepReport], None]] = (),
        stop: threading.Event | None = None,
    ) -> JobOutcome:
        """Go on with a run whose driver ended, under the same id, from its newest checkpoint.

        `overrides` change its spec, as `--set` does. Raises SpecError where the store has no such
        run, it is finished or its driver lives, and what `train` raises.

        >>> client.resume(ended.run_id, ["steps=8"]).result.last_step
        8
        """
        job = self.resumed_job(run_id, overrides)
        return self.train(job, observers=observers, stop=stop, run_id=run_id)

    def resumed_job(self, run_id: str, overrides: Sequence[str] = ()) -> JobSpec:
        """The job that `resume` runs. Raises SpecError where the store has no such run, it is
        finished or its driver lives.

        >>> client.resumed_job(ended.run_id, ["steps=8"]).steps
        8
        """
        with needing("train"):
            from rayline.actors import job_of_run

        return job_of_run(self.tracking, run_id, overrides)

    def export(self, job: JobSpec) -> JobOutcome:
        """Export and register the newest checkpoint of `job`, without training further.

        The gang of the job's plan is started once more, so that the exported model's logits are
        compared with those of the checkpoint. Raises CheckpointError where there is none.

        >>> export = client.export(ended_job).result.export
        >>> export.logit_difference <= export.logit_tolerance
        True
        """
        return self.train(self.export_job(job))

    def export_job(self, job: JobSpec) -> JobSpec:
        """The job that `export` runs: `job`, ending at its newest intact checkpoint. Raises
        CheckpointError where there is none.

        >>> client.export_job(ended_job).steps
        4
        """
        with needing("train"):
            from rayline.train.stored_export import find_stored

        found = find_stored(CheckpointSource.of_job(job), self._model_folder(job))
        return job.changed({"steps": found.manifest.step, "stop_after_step": None})

    def export_checkpoint(
        self,
        source: str | Path | JobSpec,
        to: str | Path,
        form: ExportFormat = "huggingface",
        *,
        step: int | None = None,
        overrides: Sequence[str] = (),
        dry_run: bool = False,
        observe: Callable[[int, int], None] = lambda done, total: None,
    ) -> StoredExport:
        """Write a stored checkpoint into the new folder `to`: for transformers and vLLM, or as a
        universal checkpoint for DeepSpeed. Needs no Ray and no device.

        `source` is a job or its spec's file, a checkpoint's folder or a run's id. Raises SpecError,
        CheckpointError.

        >>> client.export_checkpoint(job, "exported").step
        6
        """
        with needing("train"):
            from rayline.tracking import find_checkpoints
            from rayline.train.stored_export import export_stored

        meant = find_checkpoints(source, self.tracking, overrides, step)
        folder = self._model_folder(meant.job)
        return export_stored(meant, folder, Path(to), form, dry_run=dry_run, observe=observe)

    def import_checkpoint(
        self,
        source: str | Path,
        job: JobSpec,
        *,
        dry_run: bool = False,
        observe: Callable[[int, int], None] = lambda done, total: None,
    ) -> ImportedCheckpoint:
        """Make DeepSpeed's universal checkpoint `source` a checkpoint of `job`, from which `train`
        goes on. Raises SpecError, CheckpointError.

        >>> client.export_checkpoint(job, "for-deepspeed", "universal").format
        'universal'
        >>> other = job.changed({"name": "other", "output_dir": "runs/other"})
        >>> client.import_checkpoint("for-deepspeed", other).step
        6
        """
        with needing("train"):
            from rayline.train.universal_import import UniversalImport

        self.plan(job)
        prepared = UniversalImport.prepare(Path(source), job, self._model_folder(job))
        return prepared.outcome() if dry_run else prepared.run(observe)

    def tune(
        self, search: TuneSpec, *, observers: Sequence[Callable[[TrialReport], None]] = ()
    ) -> SearchOutcome:
        """Run a search and return its trials, best first; each is a child run in MLflow.

        Each of `observers` is called with every step of every trial. Raises SpecError where no
        trial could run or none finished, and what `train` raises.

        >>> client.tune(search).best.status
        'finished'
        """
        with needing("tune"):
            from rayline.tuning import search as run_search

        self.check_data(search.job)
        if self.address is not None:
            self._join()
        return run_search(search, observers=observers)

    def runs(self, limit: int = 20) -> list[RunSummary]:
        """The newest runs, newest first.

        >>> client.runs(limit=1)[0].status in ("running", "finished", "interrupted", "failed")
        True
        """
        with needing("train"):
            from rayline.tracking import list_runs

        return tables.runs(list_runs(self.tracking, limit))

    def run(self, run_id: str) -> RunRecord:
        """One run with its parameters, events and every metric's history. Raises SpecError where
        the store has no such run.

        >>> client.run(outcome.run_id).metrics["loss"][-1].step
        6
        """
        with needing("train"):
            from rayline.tracking import read_run

        return read_run(self.tracking, run_id)

    def attach(self, run_id: str) -> Iterator[RunNews]:
        """A run that another process drives, once a second, until it has ended or its driver has
        fallen silent. Raises SpecError where the store has no such run.

        >>> for news in client.attach(outcome.run_id):
        ...     print(news.summary.step, news.summary.status)
        6 finished
        """
        with needing("train"):
            from rayline.tracking import follow_run

        return follow_run(self.tracking, run_id)

    def models(self) -> list[ModelSummary]:
        """The registered models, by name.

        >>> [(model.name, model.newest_version) for model in client.models()]
        [('quickstart', 1)]
        """
        with needing("train"):
            from rayline.tracking import list_models

        return tables.models(list_models(self.tracking))

    def _model_folder(self, job: JobSpec) -> Path:
        """Folder of the config and tokenizer of a job's model. Raises SpecError."""
        with needing("train"):
            from rayline.tracking import resolve_model

            return resolve_model(job.model, job.tracking, need_weights=False)

    def dashboard_url(self) -> str | None:
        """Ray's dashboard, where this process has joined a cluster that runs one.

        >>> client.dashboard_url() is None
        True
        """
        ray = sys.modules.get("ray")
        if ray is None or not ray.is_initialized():
            return None
        # Asked again, ray.init only hands out what it knows of the cluster that was joined.
        address = ray.init(ignore_reinit_error=True, logging_level=logging.WARNING).dashboard_url
        return f"http://{address}" if address else None

    def close(self) -> None:
        """Leave the Ray cluster; one that this process started ends with all that runs on it.

        >>> client.close()
        """
        ray = sys.modules.get("ray")
        if ray is not None and ray.is_initialized():
            ray.shutdown()

    def doctor(self, *, probe: bool = False) -> list[Finding]:
        """What stands in the way of training and serving here, and at `jobs_url` where given.
        `probe` measures the machine, or every node there, which takes a minute.

        >>> next(finding.level for finding in client.doctor() if finding.name == "python")
        'ok'
        """
        from rayline.launch import doctor

        found = doctor(self.jobs_url, probe=probe, tracking_uri=self.tracking.uri)
        return tables.findings(found)
