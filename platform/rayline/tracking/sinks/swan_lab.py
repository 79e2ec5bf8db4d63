"""SwanLab: to its server where the user has a key, else into the job's folder (`swanlab sync` sends
it). SwanLab has one run in a process: where the user's code has one, it is left alone."""

from __future__ import annotations

import os
from collections.abc import Mapping

import swanlab

from rayline.tracking.sinks import Sink, SinkRun

_STATES = {"finished": "success", "failed": "crashed", "interrupted": "aborted"}


class SwanLab:
    """See Sink."""

    def __init__(self, run: SinkRun) -> None:
        if swanlab.has_run():
            raise RuntimeError("this process has a SwanLab run of its own already")
        folder = run.directory / "swanlab"
        folder.mkdir(parents=True, exist_ok=True)
        self._run = swanlab.init(
            project=run.project,
            name=run.name,
            config=dict(run.params),
            log_dir=str(folder),
            mode=os.environ.get("SWANLAB_MODE") or ("online" if _has_key() else "offline"),
            settings=swanlab.Settings(
                # The driver's output is the user's; machine, packages and git are recorded already.
                interactive=False,
                terminal=swanlab.Settings.Terminal(proxy_type="none"),
                probe=swanlab.Settings.Probe(
                    hardware=False, runtime=False, requirements=False, git=False, monitor=False
                ),
            ),
        )

    def add(self, step: int, values: Mapping[str, float], time_ms: int) -> None:
        """See Sink."""
        self._run.log(dict(values), step=step)

    def close(self, status: str) -> None:
        """See Sink."""
        self._run.finish(state=_STATES[status], error=None if status == "finished" else status)


def open_sink(run: SinkRun) -> Sink:
    """The sink of one run."""
    return SwanLab(run)


def _has_key() -> bool:
    home = swanlab.Settings.get_user_config_dir()
    return bool(os.environ.get("SWANLAB_API_KEY")) or (home / ".netrc").is_file()
