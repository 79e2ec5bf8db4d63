"""Jobs on a cluster, as one user sees them through Ray's dashboard."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rayline.sdk.notebook import tables

if TYPE_CHECKING:
    from rayline.launch import JobStatus, Submission


class ClusterJobs:
    """Sends jobs to the cluster behind `jobs_url`, Ray's dashboard, and asks for them; None takes
    the cluster on this machine."""

    def __init__(self, jobs_url: str | None) -> None:
        self.jobs_url = jobs_url

    def submit(
        self,
        spec_file: str | Path,
        overrides: Sequence[str] = (),
        working_dir: str | Path = ".",
        *,
        environment: Sequence[str] = (),
        grace_s: int | None = None,
        again: bool = False,
    ) -> Submission:
        """Send a job or search spec to the cluster, unless it runs or ran there, and return at
        once.

        `working_dir` travels along; it holds the spec and jobs/. Of the environment only the
        variables named travel. `grace_s` is what a stop leaves it to save a checkpoint and end;
        `again` sends a spec that runs or ran. `is_new` of the result says whether it was sent.
        Raises SpecError, PlacementError, as all below. Needs the thin core alone, as all below.

        >>> sent = client.submit("jobs/specs/quickstart.yaml", ["optim.lr=1e-3"])
        >>> sent.job_id, sent.is_new
        ('quickstart-...', True)
        """
        from rayline.launch.submission import GRACE_S, chosen_environment, submit

        return submit(
            spec_file,
            overrides,
            address=self.jobs_url,
            working_dir=working_dir,
            environment=chosen_environment(environment, os.environ),
            grace_s=GRACE_S if grace_s is None else grace_s,
            again=again,
        )

    def jobs(self) -> list[JobStatus]:
        """The jobs that were submitted to the cluster, newest first.

        >>> [job.job_id for job in client.jobs()]
        ['quickstart-...']
        """
        from rayline.launch import list_jobs

        return tables.jobs(list_jobs(address=self.jobs_url))

    def status(self, job_id: str) -> JobStatus:
        """Where a submitted job stands, and why it waits where it does.

        >>> client.status(sent.job_id).state in ("pending", "running", "succeeded")
        True
        """
        from rayline.launch import status

        return status(job_id, address=self.jobs_url)

    def wait(
        self,
        job_id: str,
        *,
        timeout_s: float | None = None,
        on_log: Callable[[str], None] | None = None,
    ) -> JobStatus:
        """Return once a submitted job has ended; `exit_code` of the result says how.

        `on_log` gets what the job prints, as it comes, in this thread. Raises PlacementError after
        `timeout_s`; the job goes on.

        >>> client.wait(sent.job_id, on_log=log.append).exit_code
        0
        """
        from rayline.launch import wait

        return wait(job_id, address=self.jobs_url, timeout_s=timeout_s, on_log=on_log)

    def logs(self, job_id: str) -> str:
        """Everything that a submitted job has printed so far.

        >>> client.logs(sent.job_id) == "".join(log)
        True
        """
        from rayline.launch import logs

        return logs(job_id, address=self.jobs_url)

    def stop(self, job_id: str) -> JobStatus:
        """End a submitted job and return once it has ended: by itself, with a checkpoint, or killed
        once its grace is over. One that has ended stays as it is.

        >>> client.stop(sent.job_id).state
        'succeeded'
        """
        from rayline.launch import stop

        return stop(job_id, address=self.jobs_url)
