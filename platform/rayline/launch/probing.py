"""The probes, run: here, or on every node of a cluster as a job that brings them along.

A job needs nothing but the dashboard, which is all of a cluster that most users reach, and nothing
of rayline on the nodes.
"""

from __future__ import annotations

import json
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rayline.errors import PlacementError, RaylineError
from rayline.launch import probes
from rayline.launch.finding import Finding
from rayline.launch.node_health import node_findings

_TIMEOUT_S = 300.0
_KEPT_LINES = 3


def probe_findings(address: str | None, here: Mapping[str, str | None]) -> Iterator[Finding]:
    """What the probes find on this machine, or on the cluster behind `address`; `here` is this
    machine's versions. Takes a minute; raises nothing."""
    try:
        document = probes.measure_here() if address is None else _measured_by_job(address)
    except RaylineError as wrong:
        yield Finding("probes", "error", f"{wrong.subject}: {wrong.problem}", wrong.fix)
        return
    except (ModuleNotFoundError, OSError) as missing:
        yield Finding("probes", "warning", str(missing), "pip install 'rayline[train]'")
        return
    yield from node_findings(document, here)


def _measured_by_job(address: str) -> dict[str, Any]:
    from rayline.launch.connection import connect
    from rayline.launch.jobs import logs, stop, wait
    from rayline.launch.working_dir import packed

    dashboard = connect(address)
    job_id = f"rayline-doctor-{secrets.token_hex(4)}"
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(Path(probes.__file__), folder)
        package = dashboard.send_package(*packed(Path(folder)))
    dashboard.submit(job_id, "python probes.py", package, {})
    try:
        wait(job_id, address=address, timeout_s=_TIMEOUT_S)
    except PlacementError:
        # It hangs, in spite of all its time limits.
        stop(job_id, address=address)
        raise
    return document_in(logs(job_id, address=address))


def document_in(log: str) -> dict[str, Any]:
    """The document in what the probes printed. Raises RaylineError with their last words where it
    is not there."""
    for line in reversed(log.splitlines()):
        if line.startswith(probes.MARK):
            document: dict[str, Any] = json.loads(line.removeprefix(probes.MARK))
            return document
    last = " / ".join(log.strip().splitlines()[-_KEPT_LINES:]) or "it printed nothing"
    raise RaylineError("probes", f"did not come to an end: {last}")
