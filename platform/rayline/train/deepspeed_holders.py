"""Who holds which whole tensors under DeepSpeed: every rank of a stage has all of the stage's. Each
writes its rows of them to a checkpoint, and one of them sends them to rank 0 where that is asked
for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import nn

from rayline.parallel.piece import Piece
from rayline.spec import ParallelPlan


@dataclass(frozen=True, slots=True)
class HeldParameters:
    """The parameters that one rank trains."""

    by_name: dict[str, nn.Parameter]
    """Hugging Face name to the parameter; a tied one whose original lies on another stage goes by
    its own name."""
    copies: Mapping[str, str] = field(default_factory=dict)
    """Parameters whose original lies on another stage, to the original's name."""
    cut: Mapping[str, int] = field(default_factory=dict)
    """Parameters of which each tensor rank holds a part, to the dim that is cut."""

    def original(self, name: str) -> str:
        """The name by which a checkpoint knows the parameter."""
        return self.copies.get(name, name)


class StageHolders:
    """The ranks that hold this rank's stage, in order; a model that is not cut into stages is one
    stage of all ranks."""

    def __init__(
        self,
        plan: ParallelPlan,
        shapes: Mapping[str, tuple[int, ...]],
        group: dist.ProcessGroup | None,
        device: torch.device,
    ) -> None:
        """`shapes`: the whole tensors that rank 0 is ever to get of this stage, by name; `group`:
        the ranks, None for all. Every rank calls it."""
        self._group = group
        self._device = device
        self._rank, self._world = dist.get_rank(group), dist.get_world_size(group)
        self._leaders = plan.groups("pipeline")[0]
        told: list[Mapping[str, tuple[int, ...]]] = [{} for _ in range(dist.get_world_size())]
        if plan.pipeline > 1:
            dist.all_gather_object(told, shapes)
        self._shapes = [told[leader] for leader in self._leaders]

    def piece(self, key: str, shape: tuple[int, ...], whole: torch.Tensor, *, owner: bool) -> Piece:
        """This rank's rows of a whole tensor of this shape, copied to the CPU: DeepSpeed's own
        partitions are no rectangles. A tensor without dims is one row. The rank writes them where
        `owner` and where there are any."""
        rows, height = self._cut(shape)
        begin = min(self._rank * height, rows)
        data = whole.detach().reshape(shape or (1,))[begin : begin + height].cpu().clone()
        offset = (begin, *(0 for _ in shape[1:])) if shape else ()
        there = bool(data.numel())
        data = data.reshape(()) if there and not shape else data
        return Piece(key, shape, offset, data, owner=owner and there)

    def whole(self, piece: Piece) -> torch.Tensor:
        """The whole tensor, on the device, from every rank's rows; every rank of the stage calls
        it."""
        _, *rest = piece.shape or (1,)
        rows, height = self._cut(piece.shape)
        padded = torch.zeros(height, *rest, dtype=torch.float32, device=self._device)
        held = piece.data.reshape(-1, *rest) if piece.data.numel() else padded[:0]
        padded[: len(held)] = held.to(self._device)
        gathered = [torch.empty_like(padded) for _ in range(self._world)]
        dist.all_gather(gathered, padded, group=self._group)
        return torch.cat(gathered)[:rows].reshape(piece.shape)

    def _cut(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """All rows, and those of a rank, as torch.chunk cuts."""
        rows = shape[0] if shape else 1
        return rows, -(-rows // self._world)

    def on_rank_0(
        self, tensors: Iterator[tuple[str, torch.Tensor]]
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield name and whole tensor, float32 on CPU, on rank 0 for every tensor of every stage,
        first stage first. Every rank runs through it; the others are yielded nothing. `tensors` are
        this stage's, those of `shapes` in their order."""
        rank = dist.get_rank()
        own = self._leaders.index(rank - self._rank)
        for stage, leader in enumerate(self._leaders):
            if stage == own:
                for name, whole in tensors:
                    if rank == 0:
                        yield name, whole.float().cpu().clone()
                    elif rank == leader:
                        dist.send(whole.float().contiguous(), dst=0)
            elif rank == 0:
                for name, shape in self._shapes[stage].items():
                    received = torch.empty(shape, dtype=torch.float32, device=self._device)
                    dist.recv(received, src=leader)
                    yield name, received.cpu()
