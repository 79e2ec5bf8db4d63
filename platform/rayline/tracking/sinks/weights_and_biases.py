"""W&B: to its server where the user has a key, else into the job's folder (`wandb sync` sends it).

W&B works in a service process of its own; it ends with the run, unless the user's code has runs of
its own there."""

from __future__ import annotations

import netrc
import os
from collections.abc import Mapping

import wandb

from rayline.tracking.sinks import Sink, SinkRun

_HOST = "api.wandb.ai"


class WeightsAndBiases:
    """See Sink."""

    def __init__(self, run: SinkRun) -> None:
        self._alone = wandb.run is None
        run.directory.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            project=run.project,
            name=run.name,
            config=dict(run.params),
            dir=str(run.directory),
            mode=None if os.environ.get("WANDB_MODE") else ("online" if _has_key() else "offline"),
            reinit="create_new",
            settings=wandb.Settings(
                silent=True,
                console="off",
                # What the machine does is recorded in MLflow already; git's state too.
                x_disable_stats=True,
                disable_git=True,
                save_code=False,
            ),
        )

    def add(self, step: int, values: Mapping[str, float], time_ms: int) -> None:
        """See Sink."""
        self._run.log(dict(values), step=step)

    def close(self, status: str) -> None:
        """See Sink."""
        self._run.finish(exit_code=0 if status == "finished" else 1)
        if self._alone and wandb.run is None:
            wandb.teardown()


def open_sink(run: SinkRun) -> Sink:
    """The sink of one run."""
    return WeightsAndBiases(run)


def _has_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators(_HOST) is not None
    except (OSError, netrc.NetrcParseError):
        return False
