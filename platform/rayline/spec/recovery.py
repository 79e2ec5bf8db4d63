"""RecoverySpec: what is kept so that little is lost, and how often a gang may begin again."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from rayline.spec.document import Document


class RecoverySpec(Document):
    """What a job does about workers and nodes that it loses."""

    max_restarts: int = Field(default=0, ge=0)
    """How often a gang that lost a worker goes on, from its newest snapshot or checkpoint."""
    window_s: float | None = Field(default=None, gt=0)
    """Restarts older than this many seconds are not counted; null counts all of the run."""
    snapshot_every_steps: int | None = Field(default=None, ge=1)
    """Steps between copies of every worker's state in its node's memory; null keeps none. A copy
    takes as long as memory takes to copy the state, and twice its size on the node."""
    peer_copies: bool = True
    """Send every snapshot to another of the gang's nodes too, so that the loss of a node loses
    nothing."""
    elastic: bool = False
    """Go on with fewer workers where there is no room for all within `patience_s`, and with all
    again once there is. Batch, data order and schedule stay; the plan's data axis gives way first,
    then the pipeline, then tensor."""
    patience_s: float = Field(default=30.0, gt=0)
    """How long an elastic job waits for the room of its whole plan."""
    spares: int = Field(default=0, ge=0)
    """Processes that stand by on each node with torch imported, to take a lost worker's place at
    once. They hold no CPU or GPU of their own, and some 300 MiB of memory."""
    hang_after_s: float = Field(default=12.0, gt=0)
    """A step that takes longer than this and than five times the median step is looked into."""
    stragglers: Literal["report", "replace"] = "report"
    """What is done about a worker that takes more than 1.5 times as long for its own part of a step
    as its peers, for twenty steps: an event and a warning, or a new process in its place too, once,
    while `max_restarts` allows it."""

    @model_validator(mode="after")
    def _can_replace(self) -> Self:
        if self.stragglers == "replace" and not self.max_restarts:
            raise ValueError("stragglers can't be replaced while max_restarts is 0")
        return self
