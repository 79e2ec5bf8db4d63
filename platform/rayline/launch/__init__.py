"""From this machine to a cluster: jobs sent and followed to their true end, and a doctor.

Jobs, the doctor and what there is on a cluster need the thin core only: dashboard.py speaks to
Ray's dashboard over HTTP. cluster_state.py reads a cluster from within, and probes.py runs on its
nodes.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from rayline.launch.doctor import doctor
from rayline.launch.finding import Finding

if TYPE_CHECKING:
    from rayline.launch.job_status import JobStatus as JobStatus
    from rayline.launch.jobs import list_jobs as list_jobs
    from rayline.launch.jobs import logs as logs
    from rayline.launch.jobs import status as status
    from rayline.launch.jobs import stop as stop
    from rayline.launch.jobs import wait as wait
    from rayline.launch.submission import Submission as Submission
    from rayline.launch.submission import submit as submit

_HOMES = {
    "JobStatus": "job_status",
    "Submission": "submission",
    "list_jobs": "jobs",
    "logs": "jobs",
    "status": "jobs",
    "stop": "jobs",
    "submit": "submission",
    "wait": "jobs",
}
__all__ = [
    "Finding",
    "JobStatus",
    "Submission",
    "doctor",
    "list_jobs",
    "logs",
    "status",
    "stop",
    "submit",
    "wait",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"rayline.launch.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'rayline.launch' has no attribute {name!r}")
