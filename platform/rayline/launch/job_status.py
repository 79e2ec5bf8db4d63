"""Where a submitted job stands, as a value: its state, the exit code that stands for it, and why.

Ray says less than it knows: `ray job submit` exits 0 for a job that was stopped, and a job whose
process was killed carries the signal as a negative code. What a process that stands for the job
exits with is decided here.
"""

from __future__ import annotations

import signal
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from rayline.errors import InterruptedByUser, WorkerError

State = Literal["pending", "running", "succeeded", "failed", "stopped"]
GRACE_VARIABLE = "RAY_JOB_STOP_WAIT_TIME_S"
"""Read by the process that watches a job, in whose environment a submission can put it."""
RAYS_GRACE_S = 3.0
WAITING = "waiting for room"
"""How the line begins that a driver prints while its gang is not placed."""
_SHELL_SIGNALS = 128
"""A shell exits with this plus the number of the signal that killed its command."""


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
    error_type: str = ""
    """Ray's word for what went wrong, beside the process itself."""
    grace_s: float = RAYS_GRACE_S
    """How long the job may take to end by itself once it is stopped."""
    waiting: str = ""
    """Why it is not running yet, or its gang not placed; only where one job was asked for."""

    @property
    def ended(self) -> bool:
        """Whether it will not change any more."""
        return self.state in ("succeeded", "failed", "stopped")

    @property
    def exit_code(self) -> int | None:
        """What a process that stands for the job exits with; None until the job has ended.

        The job's own code; 128 and the signal's number where its process was killed, as a shell
        says it; 130 where it was stopped; 4 where Ray lost it and knows no code.
        """
        if not self.ended:
            return None
        if self.state == "stopped":
            return InterruptedByUser.exit_code
        if self.state == "succeeded":
            return 0
        code = self.driver_exit_code
        if code is not None and -_SHELL_SIGNALS < code < 0:
            return _SHELL_SIGNALS - code
        return code if code is not None and 0 < code < 256 else WorkerError.exit_code

    @property
    def reason(self) -> str:
        """How it ended, in a line; empty where it succeeded or goes on."""
        if self.state == "stopped":
            return "it was stopped before its end"
        if self.state != "failed":
            return ""
        killed_by = _signal(self.exit_code or 0)
        if killed_by is not None:
            memory = ", as the kernel does where memory is short" if killed_by == "SIGKILL" else ""
            return f"its process was killed by {killed_by}{memory}"
        if self.driver_exit_code is not None:
            return f"its process exited with {self.driver_exit_code}"
        return _first_line(self.message) or "Ray lost it"


def status_of(details: Mapping[str, Any]) -> JobStatus:
    """What Ray tells of a job, as the document that its Jobs API sends."""
    state = details["status"].lower()
    message = details.get("message") or ""
    return JobStatus(
        job_id=details.get("submission_id") or details["job_id"],
        state=state,
        entrypoint=details["entrypoint"],
        message=message,
        driver_exit_code=details.get("driver_exit_code"),
        started_at=_time(details.get("start_time")),
        ended_at=_time(details.get("end_time")),
        error_type=details.get("error_type") or "",
        grace_s=_grace_s(details.get("runtime_env") or {}),
        waiting=waiting_for(state, message, ""),
    )


def waiting_for(state: str, message: str, log: str) -> str:
    """Why a job does not do anything yet; empty where it does."""
    if state == "pending":
        return message
    if state != "running":
        return ""
    lines = [line for line in log.splitlines() if line.strip()]
    return lines[-1] if lines and lines[-1].startswith(WAITING) else ""


def _grace_s(environment: dict[str, Any]) -> float:
    told = (environment.get("env_vars") or {}).get(GRACE_VARIABLE, "")
    return float(told) if str(told).isdigit() else RAYS_GRACE_S


def _signal(exit_code: int) -> str | None:
    """Name of the signal that an exit code tells of, as a shell counts."""
    try:
        return signal.Signals(exit_code - _SHELL_SIGNALS).name
    except ValueError:
        return None


def _time(milliseconds: int | None) -> datetime | None:
    return None if not milliseconds else datetime.fromtimestamp(milliseconds / 1000, UTC)


def _first_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0][:300] if lines else ""
