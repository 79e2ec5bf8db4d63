"""Jobs on a cluster, through Ray's dashboard: sent, watched to their true end, stopped.

`ray job submit` exits 0 for a job that was stopped, and gives up watching when a connection breaks.
Here a job is polled until it has ended, whatever happens to the connection meanwhile, and its end
becomes the exit code that its own process had.
"""

from __future__ import annotations

import secrets
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NoReturn

from ray.job_submission import JobDetails, JobSubmissionClient

from rayline.errors import InterruptedByUser, PlacementError, SpecError, WorkerError
from rayline.launch.connection import connect, reaching
from rayline.launch.job_log import JobLog
from rayline.launch.working_dir import refuse_too_large
from rayline.spec import JobSpec, TuneSpec
from rayline.spec.document import read_yaml

State = Literal["pending", "running", "succeeded", "failed", "stopped"]

_POLL_S = 1.0
_RECONNECT_S = 60.0
"""How long a dashboard that answered once may be silent while a job is watched."""
_LAST_WORDS_S = 5.0
"""How long a job that ended may take to hand over the rest of its log."""


@dataclass(frozen=True, slots=True)
class JobStatus:
    """Where a submitted job stands."""

    job_id: str
    state: State
    entrypoint: str
    message: str
    """Ray's words about it."""
    driver_exit_code: int | None
    """Exit code of the job's own process, once known."""
    started_at: datetime | None
    ended_at: datetime | None

    @property
    def ended(self) -> bool:
        """Whether it will not change any more."""
        return self.state in ("succeeded", "failed", "stopped")

    @property
    def exit_code(self) -> int | None:
        """What a process that stands for the job exits with; None until the job has ended."""
        if not self.ended:
            return None
        if self.state == "stopped":
            return InterruptedByUser.exit_code
        if self.state == "succeeded":
            return 0
        code = self.driver_exit_code
        return code if code is not None and 0 < code < 256 else WorkerError.exit_code


def submit(
    spec_file: str | Path,
    overrides: Sequence[str] = (),
    *,
    address: str | None = None,
    working_dir: str | Path = ".",
) -> str:
    """Send a job or search spec to a cluster and return the job's id at once.

    `working_dir` travels along, less what .gitignore and .rayignore name; it holds the spec and
    jobs/train.py. Raises SpecError where the spec cannot work or the folder is too large,
    PlacementError where the cluster cannot be reached.
    """
    home = Path(working_dir).absolute()
    script, name = _script_for(spec_file, overrides)
    command = shlex.join(
        ["python", script, "--spec", _inside(home, Path(spec_file), script)]
        + [word for override in overrides for word in ("--set", override)]
    )
    refuse_too_large(home)
    client = connect(address)
    with reaching(address):
        job_id: str = client.submit_job(
            entrypoint=command,
            runtime_env={"working_dir": str(home)},
            submission_id=f"{name}-{secrets.token_hex(4)}",
        )
    return job_id


def status(job_id: str, *, address: str | None = None) -> JobStatus:
    """Where a job stands. Raises SpecError where the cluster does not know it."""
    return _ask(connect(address), job_id, address)


def list_jobs(*, address: str | None = None) -> list[JobStatus]:
    """The jobs that were submitted to the cluster, the newest first."""
    client = connect(address)
    with reaching(address):
        known = [_status_of(details) for details in client.list_jobs() if details.submission_id]
    oldest = datetime.min.replace(tzinfo=UTC)
    return sorted(known, key=lambda job: job.started_at or oldest, reverse=True)


def wait(
    job_id: str,
    *,
    address: str | None = None,
    timeout_s: float | None = None,
    on_log: Callable[[str], None] | None = None,
) -> JobStatus:
    """Return once the job has ended; its `exit_code` says how.

    `on_log` gets what the job prints, as it comes, and nothing twice. A dashboard that falls silent
    is asked again for a minute. Raises PlacementError after that, or after `timeout_s`; the job
    goes on in either case.
    """
    client = connect(address)
    deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
    heard_s = time.monotonic()
    with JobLog(client, job_id, on_log) as log:
        while True:
            try:
                now = _ask(client, job_id, address)
                heard_s = time.monotonic()
                if now.ended:
                    log.follow(_LAST_WORDS_S)
                    return now
            except PlacementError:
                if time.monotonic() - heard_s > _RECONNECT_S:
                    raise
            if deadline_s is not None and time.monotonic() > deadline_s:
                raise PlacementError(
                    "job",
                    f"{job_id} has not ended within {timeout_s:g} s; it goes on",
                    fix=f"rayline status {job_id}, or rayline stop {job_id}",
                )
            log.follow(_POLL_S)
            if log.complete:
                time.sleep(_POLL_S)


def logs(job_id: str, *, address: str | None = None) -> str:
    """Everything that the job has printed so far."""
    client = connect(address)
    _ask(client, job_id, address)
    with reaching(address):
        text: str = client.get_job_logs(job_id)
    return text


def stop(job_id: str, *, address: str | None = None) -> JobStatus:
    """End a job, and return once it has ended. One that has ended already stays as it is.

    Ray gives the job's process 3 s to end by itself (RAY_JOB_STOP_WAIT_TIME_S on the cluster).
    """
    client = connect(address)
    if _ask(client, job_id, address).ended:
        return _ask(client, job_id, address)
    with reaching(address):
        client.stop_job(job_id)
    return wait(job_id, address=address)


def _script_for(spec_file: str | Path, overrides: Sequence[str]) -> tuple[str, str]:
    """The script that runs the spec, and the spec's name; the spec is validated on the way."""
    if "space" in read_yaml(spec_file):
        return "jobs/tune.py", TuneSpec.load(spec_file, overrides).name
    return "jobs/train.py", JobSpec.load(spec_file, overrides).name


def _inside(home: Path, spec_file: Path, script: str) -> str:
    """The spec's path as the job will see it."""
    if not (home / script).is_file():
        raise SpecError(
            "working_dir",
            f"holds no {script}, which runs the spec on the cluster",
            value=str(home),
            fix="submit from the folder that holds jobs/",
        )
    path = spec_file.absolute()
    if not path.is_relative_to(home):
        raise SpecError(
            "spec",
            f"lies outside the working directory {home}, so it would not travel with the job",
            value=str(spec_file),
            fix="move it there, for instance into jobs/specs/",
        )
    return str(path.relative_to(home))


def _ask(client: JobSubmissionClient, job_id: str, address: str | None) -> JobStatus:
    with reaching(address):
        try:
            return _status_of(client.get_job_info(job_id))
        except RuntimeError as wrong:
            if "404" in str(wrong):
                _refuse_unknown(job_id, address)
            raise


def _refuse_unknown(job_id: str, address: str | None) -> NoReturn:
    known = ", ".join(job.job_id for job in list_jobs(address=address)[:5])
    raise SpecError(
        "job", "the cluster knows no such job", value=job_id, allowed=known or "none yet"
    )


def _status_of(details: JobDetails) -> JobStatus:
    state: Any = str(details.status.value).lower()
    return JobStatus(
        job_id=str(details.submission_id or details.job_id),
        state=state,
        entrypoint=details.entrypoint,
        message=details.message or "",
        driver_exit_code=details.driver_exit_code,
        started_at=_time(details.start_time),
        ended_at=_time(details.end_time),
    )


def _time(milliseconds: int | None) -> datetime | None:
    return None if not milliseconds else datetime.fromtimestamp(milliseconds / 1000, UTC)
