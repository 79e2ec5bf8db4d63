"""Fault: one thing that goes wrong on purpose, at a place and a time."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from rayline.errors import SpecError
from rayline.spec.document import Document

FaultKind = Literal[
    "kill", "hang", "stop", "raise", "node", "slow", "partition", "corrupt", "disk_full"
]
FaultPhase = Literal[
    "start",
    "data",
    "forward",
    "backward",
    "collective",
    "optimizer",
    "evaluate",
    "save",
    "snapshot",
]


_PHASES_OF_A_STEP = ("data", "forward", "backward", "collective", "optimizer")


class Fault(Document):
    """What happens to one rank, once, when it first comes to a phase of a step; if it is slowness,
    from then on in every step of the process."""

    kind: FaultKind
    """kill: SIGKILL. hang: it sleeps. stop: SIGSTOP, so that it does not even answer. raise: its
    code raises an error. node: the loss of the rank's node, by SIGKILL of its raylet and itself.
    slow: it takes as long again as a whole step has taken, in every step. partition: the rank's
    node falls silent for a minute, by SIGSTOP of its raylet and all that it started, and then
    believes that nothing happened. corrupt: a byte of the newest checkpoint is flipped, and the
    rank killed. disk_full: the keeper of the rank's node cannot write files for some steps."""
    rank: int = Field(ge=0)
    step: int = Field(ge=0)
    """Step in whose course it happens; 0 in phase start."""
    phase: FaultPhase = "backward"
    """Where in the step. collective: right before its first collective, while others enter it."""

    @model_validator(mode="after")
    def _slow_in_steps(self) -> Self:
        if self.kind == "slow" and self.phase not in _PHASES_OF_A_STEP:
            allowed = ", ".join(_PHASES_OF_A_STEP)
            raise ValueError(f"a slow rank is slow in a phase that every step has: {allowed}")
        return self

    @property
    def ends_a_beginning(self) -> bool:
        """Whether the gang has to begin again after it."""
        return self.kind != "disk_full"

    def __str__(self) -> str:
        return f"{self.kind} rank={self.rank}@step={self.step},phase={self.phase}"

    @classmethod
    def read(cls, kind: FaultKind, text: str) -> Self:
        """From `rank=3@step=20,phase=backward`; the phase may be left out. Raises SpecError."""
        tree: dict[str, object] = {"kind": kind}
        for part in text.replace("@", ",").split(","):
            name, _, value = part.strip().partition("=")
            tree[name] = int(value) if value.isdigit() else value
        if not {"rank", "step"} <= tree.keys():
            raise SpecError(
                kind,
                "says no rank and step",
                value=text,
                allowed="rank=R@step=S, with ,phase=PHASE where it matters",
                fix="write it as rank=R@step=S, such as rank=0@step=3",
            )
        return cls.parse(tree, origin=f"{kind} {text}")
