"""Provenance: what a run was made of, so that it can be found again and compared.

The driver hands over what only it knows; the rest is found out beside the first steps, in the
background, for git, hundreds of packages and many files take time that nobody should wait for.
"""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rayline.spec import ModelRef
from rayline.tracking.data_print import data_print
from rayline.tracking.project import GitState, git_state, installed_packages
from rayline.tracking.registry import model_version
from rayline.tracking.rows import DatasetRow
from rayline.tracking.run import TrackedRun

ENVIRONMENT_FILE = "environment.json"
PACKAGES_FILE = "environment/requirements.txt"
BASE_MODEL_TAG = "rayline.base_model"
"""Tag of a run: the model it began from, a registry's alias told as the version it meant."""
CHECKPOINT_TAG = "rayline.checkpoint"
"""Tag of a run: its newest checkpoint, as JSON."""
_NAMED_FILES = 3


@dataclass(frozen=True, slots=True)
class Origins:
    """What only the driver of a job knows of its origins."""

    folder: Path
    """Where it stands: the user's code."""
    model: ModelRef
    training: Sequence[str]
    """Files, folders and addresses of the training data."""
    evaluation: Sequence[str] = ()
    """The same of held-out data, where it is not the training data's."""
    hardware: Mapping[str, Any] = field(default_factory=dict)
    """Nodes of the cluster and what they have, as plain values."""

    @property
    def parts(self) -> tuple[Callable[[TrackedRun], None], ...]:
        """What finds the rest out and records it, to be called in the background; each may fail
        without the others."""
        return (self._record_environment, self._record_base_model, self._record_data)

    def _record_environment(self, run: TrackedRun) -> None:
        packages = installed_packages()
        state = git_state(self.folder)
        run.log_text("\n".join(packages.lines) + "\n", PACKAGES_FILE)
        environment = self._environment(packages.sha256, state)
        run.log_text(json.dumps(environment, indent=1), ENVIRONMENT_FILE)
        run.tag("rayline.packages_sha256", packages.sha256)
        if state is not None:
            run.tag("rayline.project.commit", state.commit)
            run.tag("rayline.project.branch", state.branch or "(none)")
            run.tag("rayline.project.dirty", str(state.dirty).lower())
            run.tag("rayline.project.diff_sha256", state.diff_sha256)

    def _record_base_model(self, run: TrackedRun) -> None:
        told = str(self.model)
        if self.model.registry is not None:
            name = self.model.registry.partition("@")[0]
            told = f"registry:{name}@{model_version(self.model, run.tracking)}"
        run.tag(BASE_MODEL_TAG, told)

    def _record_data(self, run: TrackedRun) -> None:
        for context, files in (("training", self.training), ("evaluation", self.evaluation)):
            if files:
                run.add(_dataset(context, files))

    def _environment(self, packages_sha256: str, state: GitState | None) -> dict[str, Any]:
        return {
            "host": platform.node(),
            "system": platform.platform(),
            "processor": _processor(),
            "python": platform.python_version(),
            "command": sys.argv,
            "packages_sha256": packages_sha256,
            "git": None if state is None else asdict(state),
            "hardware": dict(self.hardware),
        }


def record_checkpoint(run: TrackedRun, directory: str, plan: str) -> None:
    """Say which checkpoint is the run's newest: its folder, whose name tells the step."""
    step = Path(directory).name.rpartition("-")[2]
    told = {"directory": directory, "step": int(step) if step.isdigit() else None, "plan": plan}
    run.tag(CHECKPOINT_TAG, json.dumps(told))


def _dataset(context: str, files: Sequence[str]) -> DatasetRow:
    found = data_print(files)
    more = len(files) - _NAMED_FILES
    names = ", ".join(file.rstrip("/").rpartition("/")[2] for file in files[:_NAMED_FILES])
    return DatasetRow(
        name=names + (f" and {more} more" if more > 0 else ""),
        digest=found.digest,
        source_type="files",
        source=json.dumps({"files": list(files)[:200]}),
        profile=found.profile(),
        context=context,
    )


def _processor() -> str:
    """As its maker calls it; what Python says where Linux does not tell."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor()
