"""Jobs on a cluster, through Ray's dashboard: watched to their true end, and stopped.

`ray job submit` gives up watching when a connection breaks. Here a job is polled until it has
ended, whatever happens to the connection meanwhile, and its log comes over whole.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import NoReturn

from ray.job_submission import JobSubmissionClient

from rayline.errors import PlacementError, SpecError
from rayline.launch.connection import connect, reaching
from rayline.launch.job_log import JobLog
from rayline.launch.job_status import JobStatus, status_of, waiting_for

_POLL_S = 1.0
_RECONNECT_S = 60.0
"""How long a dashboard that answered once may be silent while a job is watched."""
_LAST_WORDS_S = 5.0
"""How long the rest of a log may take that cannot be asked for as a whole."""
_STOP_SLACK_S = 60.0
"""How much longer than its grace a stopped job may take until Ray says that it has ended."""


def status(job_id: str, *, address: str | None = None) -> JobStatus:
    """Where a job stands, and why it waits. Raises SpecError where the cluster does not know it."""
    client = connect(address)
    found = _ask(client, job_id, address)
    if found.state != "running":
        return found
    with reaching(address):
        log: str = client.get_job_logs(job_id)
    return replace(found, waiting=waiting_for(found.state, found.message, log))


def list_jobs(*, address: str | None = None) -> list[JobStatus]:
    """The jobs that were submitted to the cluster, the newest first."""
    client = connect(address)
    with reaching(address):
        known = [status_of(details) for details in client.list_jobs() if details.submission_id]
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
                    _finish(log, address)
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


def logs(job_id: str, *, address: str | None = None) -> str:
    """Everything that the job has printed so far."""
    client = connect(address)
    _ask(client, job_id, address)
    with reaching(address):
        text: str = client.get_job_logs(job_id)
    return text


def stop(job_id: str, *, address: str | None = None) -> JobStatus:
    """End a job, and return once it has ended. One that has ended already stays as it is.

    Its process is asked to end (SIGTERM), finishes its step and saves a checkpoint; what has not
    ended after its `grace_s` is killed. Raises PlacementError where Ray does not end it either.
    """
    client = connect(address)
    found = _ask(client, job_id, address)
    if found.ended:
        return found
    with reaching(address):
        client.stop_job(job_id)
    return wait(job_id, address=address, timeout_s=found.grace_s + _STOP_SLACK_S)


def _ask(client: JobSubmissionClient, job_id: str, address: str | None) -> JobStatus:
    with reaching(address):
        try:
            return status_of(client.get_job_info(job_id))
        except RuntimeError as wrong:
            if "404" in str(wrong):
                _refuse_unknown(job_id, address)
            raise


def _finish(log: JobLog, address: str | None) -> None:
    """Hand on the rest of the log; what is on a node that is gone has no rest."""
    try:
        with reaching(address):
            log.finish()
    except PlacementError:
        log.follow(_LAST_WORDS_S)


def _refuse_unknown(job_id: str, address: str | None) -> NoReturn:
    known = ", ".join(job.job_id for job in list_jobs(address=address)[:5])
    raise SpecError(
        "job", "the cluster knows no such job", value=job_id, allowed=known or "none yet"
    )
