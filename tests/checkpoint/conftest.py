"""What the checkpoint tests share: a gang of threads, and grids that cut tensors over its ranks."""

import itertools
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from rayline import checkpoint
from rayline.checkpoint import CheckpointHeader
from rayline.errors import CheckpointError
from rayline.parallel.piece import Piece
from rayline.spec import ParallelPlan

Cuts = tuple[int, ...]
"""Parts along each dim of a tensor; one rank owns one part."""


@dataclass
class Threads:
    """An `Exchange` between threads of this process: processes would cost seconds a test."""

    rank: int
    barrier: threading.Barrier
    texts: list[str]

    def gather(self, text: str) -> list[str] | None:
        self.texts[self.rank] = text
        self.barrier.wait()
        found = list(self.texts) if self.rank == 0 else None
        self.barrier.wait()
        return found

    def broadcast(self, text: str) -> str:
        if self.rank == 0:
            self.texts[0] = text
        self.barrier.wait()
        found = self.texts[0]
        self.barrier.wait()
        return found


@dataclass
class Outcome:
    """What each rank's save returned or raised."""

    folders: list[Path] = field(default_factory=list)
    errors: list[CheckpointError] = field(default_factory=list)


class Gang:
    """Saves and layouts for any number of ranks."""

    model = "architecture=Llama layers=4 hidden=64"
    tensors = {
        "weight/a": torch.arange(60.0).reshape(6, 10),
        "weight/b": torch.arange(7.0),
        "optimizer/exp_avg/a": -torch.arange(60.0).reshape(6, 10),
    }
    cuts: dict[str, Cuts] = {"weight/a": (2, 2), "weight/b": (2,), "optimizer/exp_avg/a": (3, 1)}

    def header(self, step: int, **changes: Any) -> CheckpointHeader:
        values: dict[str, Any] = {
            "step": step,
            "samples_consumed": step * 8,
            "plan": ParallelPlan(),
            "engine": "native",
            "spec_fingerprint": "0123456789abcdef",
            "model_fingerprint": self.model,
            "scalars": {"optimizer_steps": step, "scale": 0.1},
        }
        return CheckpointHeader(**{**values, **changes})

    def save(
        self,
        root: Path,
        header: CheckpointHeader,
        shares: Sequence[Sequence[Piece]],
        keep: int = 2,
    ) -> Outcome:
        """`checkpoint.save` by one thread a rank."""
        outcome = Outcome()
        barrier = threading.Barrier(len(shares), timeout=20)
        texts = [""] * len(shares)

        def one(rank: int) -> None:
            ranks = Threads(rank, barrier, texts)
            try:
                outcome.folders.append(checkpoint.save(root, header, shares[rank], ranks, keep))
            except CheckpointError as wrong:
                outcome.errors.append(wrong)

        threads = [threading.Thread(target=one, args=(rank,)) for rank in range(len(shares))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return outcome

    def cut(
        self, tensors: dict[str, torch.Tensor], cuts: dict[str, Cuts], world: int
    ) -> list[list[Piece]]:
        """Each tensor cut into a grid of views, its parts dealt to the ranks in turn."""
        shares: list[list[Piece]] = [[] for _ in range(world)]
        for name, whole in tensors.items():
            edges = [_edges(n, parts) for n, parts in zip(whole.shape, cuts[name], strict=True)]
            for number, spans in enumerate(itertools.product(*edges)):
                data = whole[tuple(slice(*span) for span in spans)] if spans else whole
                offset = tuple(begin for begin, _ in spans)
                piece = Piece(name, tuple(whole.shape), offset, data, owner=True)
                shares[(number + len(name)) % world].append(piece)
        return shares


def _edges(size: int, parts: int) -> list[tuple[int, int]]:
    """As torch.chunk cuts, with empty parts at the end."""
    step = -(-size // parts)
    return [(min(i * step, size), min((i + 1) * step, size)) for i in range(parts)]


@pytest.fixture(scope="session")
def gang() -> Gang:
    return Gang()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints"


@pytest.fixture
def save_step(root: Path, gang: Gang) -> Callable[..., Path]:
    """save_step(3) writes the small tensors by two ranks and returns the folder."""

    def run(step: int, keep: int = 10, **changes: Any) -> Path:
        shares = gang.cut(gang.tensors, gang.cuts, 2)
        outcome = gang.save(root, gang.header(step, **changes), shares, keep)
        assert not outcome.errors, outcome.errors
        assert len(set(outcome.folders)) == 1
        return outcome.folders[0]

    return run
