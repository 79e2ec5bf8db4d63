"""A job sent to a cluster once, however often it is asked for.

Its id is made of the spec's name and fingerprint, and Ray takes no id twice. So the second submit
of a spec, from another terminal or after a connection that broke in the first, finds the first
one's job and follows it. One that failed or was stopped is sent again, as another attempt.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rayline.errors import SpecError
from rayline.launch.addresses import OVERRIDING
from rayline.launch.connection import connect
from rayline.launch.dashboard import Dashboard
from rayline.launch.job_status import GRACE_VARIABLE, JobStatus, status_of
from rayline.launch.working_dir import packed, refuse_too_large
from rayline.spec import JobSpec, TuneSpec
from rayline.spec.document import read_yaml

GRACE_S = 90
"""How long a job that is stopped may take over its step in flight, its snapshot and its end. The
driver itself gives up after a minute."""
_FINGERPRINT_DIGITS = 8
_CLUSTERS_OWN = (*OVERRIDING, "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
"""A job has the cluster's."""


@dataclass(frozen=True, slots=True)
class Submission:
    """What became of a submit."""

    job_id: str
    is_new: bool
    """False where an earlier submit of the same spec had sent it."""
    note: str = ""
    """What to tell of earlier submits of the same spec; empty where there was none."""


def submit(
    spec_file: str | Path,
    overrides: Sequence[str] = (),
    *,
    address: str | None = None,
    working_dir: str | Path = ".",
    environment: Mapping[str, str] | None = None,
    grace_s: int = GRACE_S,
    again: bool = False,
) -> Submission:
    """Send a job or search spec to a cluster, unless it runs or ran there, and return at once.

    `working_dir` travels along, less what .gitignore and .rayignore name; it holds the spec and
    jobs/train.py. Of this process's environment nothing travels but `environment`. `again` sends
    the spec though it runs or ran. Raises SpecError where the spec cannot work or the folder is too
    large, PlacementError where the cluster cannot be reached.
    """
    home = Path(working_dir).absolute()
    script, spec = _script_for(spec_file, overrides)
    command = shlex.join(
        ["python", script, "--spec", _inside(home, Path(spec_file), script)]
        + [word for override in overrides for word in ("--set", override)]
    )
    refuse_too_large(home)
    stem = f"{spec.name}-{spec.fingerprint()[:_FINGERPRINT_DIGITS]}"
    dashboard = connect(address)
    attempt = next_attempt(stem, _known(dashboard), again)
    if not attempt.is_new:
        return attempt
    package = dashboard.send_package(*packed(home))
    variables = {**(environment or {}), GRACE_VARIABLE: str(grace_s)}
    if not dashboard.submit(attempt.job_id, command, package, variables):
        # Another submit of the same spec was first, by moments.
        return next_attempt(stem, _known(dashboard), again=False)
    return attempt


def next_attempt(stem: str, known: Sequence[JobStatus], again: bool) -> Submission:
    """The job to send, or the one to follow, where `known` are the cluster's jobs."""
    numbers = {number: job for job in known if (number := _number(stem, job.job_id)) is not None}
    if not numbers:
        return Submission(stem, is_new=True)
    newest = numbers[max(numbers)]
    following = f"{stem}-{max(numbers) + 1}"
    if again or newest.state in ("failed", "stopped"):
        return Submission(following, is_new=True, note=f"{newest.job_id} {_told(newest)} before")
    return Submission(
        newest.job_id,
        is_new=False,
        note=f"the same spec {_told(newest)} as {newest.job_id}, which is followed; --again sends "
        "it once more",
    )


def chosen_environment(names: Sequence[str], here: Mapping[str, str]) -> dict[str, str]:
    """The variables that are to travel, with their values here. Raises SpecError for one that is
    not set, or that a cluster has of its own."""
    for name in names:
        if "=" in name:
            raise SpecError(
                "--env",
                "takes the name of a variable: a value on a command line is seen by others",
                value=name.partition("=")[0],
                fix=f"export {shlex.quote(name)}, then --env {name.partition('=')[0]}",
            )
        if name in _CLUSTERS_OWN:
            raise SpecError("--env", "the cluster has its own", value=name, fix="leave it out")
        if name not in here:
            raise SpecError("--env", "is not set here", value=name, fix=f"export {name}=...")
    return {name: here[name] for name in names}


def _told(job: JobStatus) -> str:
    words = {"pending": "waits", "running": "runs", "stopped": "was stopped"}
    return words.get(job.state, job.state)


def _number(stem: str, job_id: str) -> int | None:
    """Which attempt of a spec a job is; None where it is another's."""
    found = re.fullmatch(rf"{re.escape(stem)}(?:-(\d+))?", job_id)
    return None if found is None else int(found.group(1) or 1)


def _known(dashboard: Dashboard) -> list[JobStatus]:
    return [status_of(details) for details in dashboard.jobs()]


def _script_for(spec_file: str | Path, overrides: Sequence[str]) -> tuple[str, JobSpec | TuneSpec]:
    """The script that runs the spec, and the spec; it is validated on the way."""
    if "space" in read_yaml(spec_file):
        return "jobs/tune.py", TuneSpec.load(spec_file, overrides)
    return "jobs/train.py", JobSpec.load(spec_file, overrides)


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
