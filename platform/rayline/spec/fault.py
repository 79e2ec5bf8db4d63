"""Fault: one thing that goes wrong on purpose, at a place and a time."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field

from rayline.errors import SpecError
from rayline.spec.document import Document

FaultKind = Literal["kill", "hang", "stop", "raise", "node"]
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


class Fault(Document):
    """What happens to one rank, once, when it first comes to a phase of a step."""

    kind: FaultKind
    """kill: SIGKILL. hang: it sleeps. stop: SIGSTOP, so that it does not even answer. raise: its
    code raises an error. node: the loss of the rank's node, by SIGKILL of its raylet and itself."""
    rank: int = Field(ge=0)
    step: int = Field(ge=0)
    """Step in whose course it happens; 0 in phase start."""
    phase: FaultPhase = "backward"
    """Where in the step. collective: right before its first collective, while others enter it."""

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
                f"--{kind}",
                "says no rank and step",
                value=text,
                allowed="rank=R@step=S, with ,phase=PHASE where it matters",
            )
        return cls.parse(tree, origin=f"--{kind} {text}")
