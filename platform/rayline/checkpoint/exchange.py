"""What the ranks of one save tell each other: short texts, to and from rank 0.

Texts travel between live processes of one gang by torch.distributed and are never stored; the
checkpoint itself goes to storage and nowhere else. Sidecar files in place of messages would lean
on every storage showing one node's new file to another node at once, which network file systems
do not promise, and could not carry a rank's failure to the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch.distributed as dist


class Exchange(Protocol):
    """Collective: every rank calls each method, in the same order."""

    @property
    def rank(self) -> int:
        """This process's number; 0 is the one that commits."""
        ...

    def gather(self, text: str) -> list[str] | None:
        """Every rank's text, in the order of ranks, on rank 0; None elsewhere."""
        ...

    def broadcast(self, text: str) -> str:
        """Rank 0's text, on every rank."""
        ...


@dataclass(frozen=True, slots=True)
class Alone:
    """One process and no process group."""

    rank: int = 0

    def gather(self, text: str) -> list[str] | None:
        """The own text."""
        return [text]

    def broadcast(self, text: str) -> str:
        """The own text."""
        return text


@dataclass(frozen=True, slots=True)
class ProcessGroup:
    """All ranks of torch.distributed's `group`; None is the default group."""

    group: dist.ProcessGroup | None = None

    @property
    def rank(self) -> int:
        """Rank within the group."""
        return dist.get_rank(self.group)

    def gather(self, text: str) -> list[str] | None:
        """Every rank's text on the group's rank 0."""
        texts: list[str] | None = [""] * dist.get_world_size(self.group) if self.rank == 0 else None
        dist.gather_object(text, texts, group=self.group, group_dst=0)
        return texts

    def broadcast(self, text: str) -> str:
        """The text of the group's rank 0."""
        texts = [text]
        dist.broadcast_object_list(texts, group=self.group, group_src=0)
        return texts[0]


def exchange() -> Exchange:
    """The default process group where torch.distributed is initialised, else `Alone`."""
    return ProcessGroup() if dist.is_initialized() else Alone()
