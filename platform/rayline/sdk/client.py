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
from rayline.sdk.cluster_jobs import ClusterJobs
from rayline.sdk.run_records import RunRecords
from rayline.sdk.served_models import DEFAULT_URL, ServedModels
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
    from rayline.serving.client import Message
    from rayline.tracking import ModelSummary, RunNews, RunRecord, RunSummary
    from rayline.train.stored_export import ExportFormat, StoredExport
    from rayline.train.universal_import import ImportedCheckpoint
    from rayline.tuning import SearchOutcome, TrialReport


class Client(ClusterJobs, RunRecords, ServedModels, ServingAccess):
    """One user's view of one Ray cluster and one MLflow store.

    `address` is the Ray cluster to join (None starts one in this process); `jobs_url` is Ray's
    dashboard, where jobs are submitted (None takes the cluster on this machine); `tracking` is the
    store that `runs` and `models` read (a job writes to the store that its own spec names);
    `store` holds the keys and the usage of served models (GatewaySpec.store).
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
        ServedModels.__init__(self, address)
        ServingAccess.__init__(self, store)
        self.tracking = tracking or TrackingSpec()

    def plan(self, job: JobSpec) -> JobPlan:
        """What `job` would run, without starting anything. Raises SpecError where it cannot work.

        Of the model only its config is read (fetched where it is on a hub).
        """
        from rayline.planner import plan_job, read_model_shape

        return plan_job(job, read_model_shape(self._model_folder(job)))

    def model_shape(self, job: JobSpec) -> ModelShape:
        """The shape of the job's model; only its config is read (fetched where it is on a hub)."""
        from rayline.planner import read_model_shape

        return read_model_shape(self._model_folder(job))

    def check_data(self, job: JobSpec) -> None:
        """Read every line of the job's data. Raises SpecError naming the file and line that is
        wrong; the files must be on this machine."""
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
    ) -> JobOutcome:
        """Run `job` here and return when it is done: the run's id, result and model.

        Each of `observers` is called with every StepReport. Setting `stop` ends the job after the
        step in flight, with a checkpoint. `run_id` goes on under that run instead of a new one.
        Raises the RaylineError that the job ended with.

            client.train(job, observers=[lambda report: print(report.step, report.loss)])
        """
        with needing("train"):
            from rayline.actors import train as run_job

        self.check_data(job)
        if self.address is not None:
            self._join()
        return run_job(job, observers=observers, stop=stop, run_id=run_id)

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

            client.resume("9f2c...", ["steps=2000"])
        """
        job = self.resumed_job(run_id, overrides)
        return self.train(job, observers=observers, stop=stop, run_id=run_id)

    def resumed_job(self, run_id: str, overrides: Sequence[str] = ()) -> JobSpec:
        """The job that `resume` runs."""
        with needing("train"):
            from rayline.actors import job_of_run

        return job_of_run(self.tracking, run_id, overrides)

    def export(self, job: JobSpec) -> JobOutcome:
        """Export and register the newest checkpoint of `job`, without training further.

        The gang of the job's plan is started once more, so that the exported model's logits are
        compared with those of the checkpoint. Raises CheckpointError where there is none.
        """
        return self.train(self.export_job(job))

    def export_job(self, job: JobSpec) -> JobSpec:
        """The job that `export` runs: `job`, ending at its newest intact checkpoint."""
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
        goes on. Raises SpecError, CheckpointError."""
        with needing("train"):
            from rayline.train.universal_import import UniversalImport

        self.plan(job)
        prepared = UniversalImport.prepare(Path(source), job, self._model_folder(job))
        return prepared.outcome() if dry_run else prepared.run(observe)

    def tune(
        self,
        search: TuneSpec,
        *,
        observers: Sequence[Callable[[TrialReport], None]] = (),
        resume: bool | str = False,
    ) -> SearchOutcome:
        """Run a search and return its trials, best first; each is a child run in MLflow.

        Each of `observers` is called with every step of every trial, and with its end. `resume`
        goes on with the newest search of this spec that is not over, or with the one whose run has
        this id: no finished trial is run again, those under way go on from their checkpoints.
        Raises SpecError where no trial could run or none finished, and what `train` raises.

            client.tune(TuneSpec.load("tune/quickstart.yaml")).best.params
        """
        with needing("tune"):
            from rayline.tuning import search as run_search

        self.check_data(search.job)
        if self.address is not None:
            self._join()
        return run_search(search, observers=observers, resume=resume)

    def runs(self, limit: int = 20) -> list[RunSummary]:
        """The newest runs, newest first."""
        with needing("train"):
            from rayline.tracking import list_runs

        return list_runs(self.tracking, limit)

    def run(self, run_id: str) -> RunRecord:
        """One run with its parameters, events and every metric's history."""
        with needing("train"):
            from rayline.tracking import read_run

        return read_run(self.tracking, run_id)

    def follow(self, run_id: str) -> Iterator[RunNews]:
        """A run that another process drives, once a second, until it has ended or its driver has
        fallen silent.

            for news in client.follow("9f2c..."):
                print(news.summary.step, news.summary.loss)
        """
        with needing("train"):
            from rayline.tracking import follow_run

        return follow_run(self.tracking, run_id)

    def models(self) -> list[ModelSummary]:
        """The registered models, by name."""
        with needing("train"):
            from rayline.tracking import list_models

        return list_models(self.tracking)

    def chat(
        self,
        question: str | Sequence[Message],
        *,
        url: str = DEFAULT_URL,
        model: str | None = None,
        max_tokens: int | None = None,
        temperature: float | None = None,
        api_key: str | None = None,
    ) -> str:
        """The answer to a question, or to the newest of several turns; needs the thin core turns.

        Without `model` the first one behind the address answers; without `api_key` the one in
        RAYLINE_API_KEY opens it. Raises ServingError.

            client.chat("What is the capital of France?", temperature=0)
        """
        return "".join(
            self.stream(
                question,
                url=url,
                model=model,
                max_tokens=max_tokens,
                temperature=temperature,
                api_key=api_key,
            )
        )

    def stream(
        self,
        question: str | Sequence[Message],
        *,
        url: str = DEFAULT_URL,
        model: str | None = None,
        max_tokens: int | None = None,
        temperature: float | None = None,
        api_key: str | None = None,
    ) -> Iterator[str]:
        """As `chat`, piece by piece while it is generated."""
        from rayline.serving.client import stream_answer

        return stream_answer(
            url,
            question,
            model=model,
            max_tokens=max_tokens,
            temperature=temperature,
            api_key=api_key,
        )

    def _model_folder(self, job: JobSpec) -> Path:
        """Folder of the config and tokenizer of a job's model. Raises SpecError."""
        with needing("train"):
            from rayline.tracking import resolve_model

            return resolve_model(job.model, job.tracking, need_weights=False)

    def dashboard_url(self) -> str | None:
        """Ray's dashboard, where this process has joined a cluster that runs one."""
        ray = sys.modules.get("ray")
        if ray is None or not ray.is_initialized():
            return None
        # Asked again, ray.init only hands out what it knows of the cluster that was joined.
        address = ray.init(ignore_reinit_error=True, logging_level=logging.WARNING).dashboard_url
        return f"http://{address}" if address else None

    def close(self) -> None:
        """Leave the Ray cluster; one that this process started ends with all that runs on it."""
        ray = sys.modules.get("ray")
        if ray is not None and ray.is_initialized():
            ray.shutdown()

    def doctor(self, *, probe: bool = False) -> list[Finding]:
        """What stands in the way of training and serving here, and at `jobs_url` where given.
        `probe` measures the machine, or every node there, which takes a minute."""
        from rayline.launch import doctor

        return doctor(self.jobs_url, probe=probe, tracking_uri=self.tracking.uri)
