"""Plans that are searched, and promises that are tried: what is asked before a cluster is trusted
with a job."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rayline.errors import needing
from rayline.sdk.joining import Joining
from rayline.spec import Fault, JobSpec

if TYPE_CHECKING:
    from rayline.actors.judging import ChaosReport
    from rayline.planner.choice import Choice


class Planning(Joining):
    """Finds the fastest plans on machines that need not be there, and tries a job's promises."""

    def plans(
        self,
        job: str | Path | JobSpec,
        *,
        gpus: int | None = None,
        gpu_type: str | None = None,
        cluster: str | Path | None = None,
        count: int = 5,
        calibration: str | Path | None = None,
    ) -> Choice:
        """The fastest plans for `job` on so many GPUs of a kind, or on those of a cluster's file.

        `job` is a spec, its file, or a model by its name in the catalogue or its folder.
        `calibration` is a file of curves to predict with. Needs the thin core alone. Raises
        SpecError where none fits.

        >>> found = client.plans("meta-llama/Llama-3-8B", gpus=8, gpu_type="H100")
        >>> found.best[0].plan.world_size, len(found.best)
        (8, 5)
        """
        from rayline.planner import read_model_shape
        from rayline.planner.calibration_file import best_calibration
        from rayline.planner.choice import choose
        from rayline.planner.request import job_of, known_shape, machines_of

        wanted = job if isinstance(job, JobSpec) else job_of(str(job), [])
        machines = machines_of(gpus, gpu_type, None if cluster is None else Path(cluster))
        curves = best_calibration(None if calibration is None else Path(calibration)).curves
        shape = known_shape(wanted.model)
        if shape is None:
            with needing("train"):
                from rayline.tracking import resolve_model

            folder = resolve_model(wanted.model, wanted.tracking, need_weights=False)
            shape = read_model_shape(folder)
        return choose(wanted, shape, machines, curves, count=count, everything=True)

    def chaos(
        self, job: JobSpec, faults: Sequence[Fault] = (), *, kills: int = 0, seed: int = 0
    ) -> ChaosReport:
        """Run `job` in peace and then under `faults`, with `kills` further ones drawn from `seed`,
        and say which promises were kept. Raises SpecError where a fault names no rank or step.

        >>> report = client.chaos(job, faults)  # such as Fault.read("kill", "rank=0@step=3")
        >>> report.passed, report.weights_equal
        (True, True)
        """
        with needing("train"):
            from rayline.actors.chaos import chaos, draw_faults

        if self.address is not None:
            self._join()
        return chaos(job, [*faults, *draw_faults(job, kills, seed)])
