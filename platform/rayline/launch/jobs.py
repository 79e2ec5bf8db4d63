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

from rayline.errors import PlacementError, SpecError, meant
from rayline.launch.connection import connect
from rayline.launch.dashboard import Dashboard
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
    dashboard = connect(address)
    found = _ask(dashboard, job_id)
    if found.state != "running":
        return found
    log = dashboard.log(job_id)
    return replace(found, waiting=waiting_for(found.state, found.message, log))


def list_jobs(*, address: str | None = None) -> list[JobStatus]:
    """The jobs that were submitted to the cluster, the newest first."""
    return _listed(connect(address))


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
    dashboard = connect(address)
    deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
    heard_s = time.monotonic()
    with JobLog(dashboard, job_id, on_log) as log:
        while True:
            try:
                now = _ask(dashboard, job_id)
                heard_s = time.monotonic()
                if now.ended:
                    _finish(log)
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
    dashboard = connect(address)
    _ask(dashboard, job_id)
    return dashboard.log(job_id)


def stop(job_id: str, *, address: str | None = None) -> JobStatus:
    """End a job, and return once it has ended. One that has ended already stays as it is.

    Its process is asked to end (SIGTERM), finishes its step and saves a checkpoint; what has not
    ended after its `grace_s` is killed. Raises PlacementError where Ray does not end it either.
    """
    dashboard = connect(address)
    found = _ask(dashboard, job_id)
    if found.ended:
        return found
    dashboard.stop(job_id)
    return wait(job_id, address=address, timeout_s=found.grace_s + _STOP_SLACK_S)


def _ask(dashboard: Dashboard, job_id: str) -> JobStatus:
    details = dashboard.job(job_id)
    if details is None:
        _refuse_unknown(dashboard, job_id)
    return status_of(details)


def _listed(dashboard: Dashboard) -> list[JobStatus]:
    known = [status_of(details) for details in dashboard.jobs()]
    oldest = datetime.min.replace(tzinfo=UTC)
    return sorted(known, key=lambda job: job.started_at or oldest, reverse=True)


def _finish(log: JobLog) -> None:
    """Hand on the rest of the log; what is on a node that is gone has no rest."""
    try:
        log.finish()
    except PlacementError:
        log.follow(_LAST_WORDS_S)


def _refuse_unknown(dashboard: Dashboard, job_id: str) -> NoReturn:
    known = [job.job_id for job in _listed(dashboard)]
    raise SpecError(
        "job",
        "the cluster knows no such job",
        value=job_id,
        allowed=", ".join(known[:5]) or "none yet",
        fix=meant(job_id, known, otherwise="rayline list shows all of them"),
    )
