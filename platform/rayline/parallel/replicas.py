"""Replicas of whole weights: gradients are summed over the ranks that hold the same ones while the
backward pass goes on.

FSDP2 can replicate too, as a sharding into one part, but then it copies each layer's weights out
and its gradients in, and reduces layer by layer. Where nothing is sharded and nothing is cast, the
gradients lie in a few flat buckets instead, and each bucket's sum sets off as soon as the last
microbatch has filled it (DistributedDataParallel: Li et al. 2020, PyTorch Distributed, sections
3.2.3 and 4.1). Buckets set off in one order on every rank, whatever order gradients come in. DDP
deals its buckets anew after the first step, in the order it saw; here they stay as they are, so
that a resumed run adds up what the unbroken one does.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import nn

from rayline.parallel.waiting import wait_all

BUCKET_BYTES = 25 * 2**20
"""Most that one bucket holds (DDP's default)."""
SMALL_BUCKET_BYTES = 4 * 2**20
"""Below this what each sum costs by itself outweighs what is hidden: on gloo, 20 MB of gradients in
parts of 2.5 MiB took 3 % more of a step's CPU time than in parts of 4 MiB."""
FEWEST_BUCKETS = 8
"""Buckets that a stage's gradients are cut into where none would be too small: the last one's sum
is the one that nothing hides."""
_Tensor = TypeVar("_Tensor", bound=torch.Tensor)


class Replicas:
    """The gradients of this rank's stages, of whose weights other ranks hold replicas."""

    def __init__(
        self,
        stages: Mapping[int, Iterable[nn.Parameter]],
        group: dist.ProcessGroup,
        bucket_bytes: int | None = None,
    ) -> None:
        """`stages`: parameters by the stage's number, the same in number, shape, type and order on
        every rank of `group`. They keep hooks that move their gradients into buckets of
        `bucket_bytes`, by default of a size that suits the stage."""
        self.is_first = dist.get_rank(group) == 0
        """Whether this rank counts and writes what all of them hold."""
        self._stages = {
            number: _StageBuckets([*parameters], group, bucket_bytes)
            for number, parameters in stages.items()
        }

    def summing(self, stage: int) -> AbstractContextManager[None]:
        """In it runs the last backward pass of a step of that stage. Every rank of the group goes
        through its stages in the same order. Gradients that did not come count as zeros."""
        return self._stages[stage].summing()

    def finish(self) -> None:
        """Wait until every stage's gradients are sums; the end of a step's backward passes. Raises
        RuntimeError where a stage's last one was not run in `summing`."""
        for number, buckets in self._stages.items():
            if not buckets.finish():
                raise RuntimeError(f"the gradients of stage {number} were not summed over replicas")


def summing(replicas: Replicas | None, stage: int, *, last: bool) -> AbstractContextManager[None]:
    """Where a backward pass of that stage runs; `last`: whether it is the step's last one."""
    return nullcontext() if replicas is None or not last else replicas.summing(stage)


class _StageBuckets:
    """Gradients of one stage as views of flat buckets."""

    def __init__(
        self, parameters: Sequence[nn.Parameter], group: dist.ProcessGroup, most: int | None
    ) -> None:
        ordered = order_of_arrival([one for one in parameters if one.requires_grad])
        if most is None:
            most = bucket_bytes(sum(one.nbytes for one in ordered))
        self._group = group
        self._flat: list[torch.Tensor] = []
        self._places: list[list[tuple[nn.Parameter, torch.Tensor]]] = []
        self._departures: Departures | None = None
        self._under_way: list[dist.Work | None] = []
        for number, bucket in enumerate(fill_buckets(ordered, most)):
            sizes = [one.numel() for one in bucket]
            self._flat.append(bucket[0].detach().new_empty(sum(sizes)))
            parts = self._flat[-1].split(sizes)
            views = [part.view(one.shape) for part, one in zip(parts, bucket, strict=True)]
            self._places.append(list(zip(bucket, views, strict=True)))
            for one, view in self._places[-1]:
                one.register_post_accumulate_grad_hook(partial(self._arrive, number, view))

    def _arrive(self, bucket: int, view: torch.Tensor, parameter: torch.Tensor) -> None:
        """Autograd's hook, after each backward pass that reached the parameter."""
        _move_gradient(parameter, view)
        if self._departures is not None:
            self._depart(self._departures.arrive(bucket))

    def _depart(self, buckets: Iterable[int]) -> None:
        for number in buckets:
            work = dist.all_reduce(self._flat[number], group=self._group, async_op=True)
            self._under_way.append(work)

    @contextmanager
    def summing(self) -> Iterator[None]:
        """See `Replicas.summing`."""
        self._under_way.clear()
        self._departures = Departures([len(places) for places in self._places])
        yield
        # Gradients of a split backward pass come without hooks, and some may not come at all.
        rest = self._departures.rest()
        for number in rest:
            for parameter, view in self._places[number]:
                _move_gradient(parameter, view)
        self._depart(rest)
        self._departures = None

    def finish(self) -> bool:
        """Wait for the sums; whether all had set off."""
        wait_all(self._under_way)
        departed = len(self._under_way)
        self._under_way.clear()
        return departed == len(self._flat)


def _move_gradient(parameter: torch.Tensor, view: torch.Tensor) -> None:
    """Let `view` be the parameter's gradient and have its values, zeros where there is none. The
    first microbatch is copied once, the others are added in place by autograd."""
    if parameter.grad is view:
        return
    if parameter.grad is None:
        view.zero_()
    else:
        view.copy_(parameter.grad)
    parameter.grad = view


class Departures:
    """Which buckets may set off: those that are full, behind all before them."""

    def __init__(self, members: Sequence[int]) -> None:
        """`members`: how many gradients each bucket waits for."""
        self._missing = list(members)
        self._next = 0

    def arrive(self, bucket: int) -> range:
        """A gradient of that bucket came; the buckets that set off now, in order."""
        self._missing[bucket] -= 1
        first = self._next
        while self._next < len(self._missing) and self._missing[self._next] == 0:
            self._next += 1
        return range(first, self._next)

    def rest(self) -> range:
        """No more gradients come; the buckets that set off now, in order."""
        return range(self._next, len(self._missing))


def order_of_arrival(parameters: Sequence[nn.Parameter]) -> list[nn.Parameter]:
    """About the order in which a backward pass makes their gradients, `parameters` being in that of
    the model: the reverse. A layer's norms stand behind its matrices whenever they come, and
    matrices would wait for them; vectors are small, so they are last."""
    backwards = parameters[::-1]
    return sorted(backwards, key=lambda parameter: parameter.dim() < 2)


def bucket_bytes(total_bytes: int) -> int:
    """How much a bucket holds of a stage's gradients of so many bytes."""
    return min(BUCKET_BYTES, max(SMALL_BUCKET_BYTES, total_bytes // FEWEST_BUCKETS))


def fill_buckets(tensors: Iterable[_Tensor], most_bytes: int) -> Iterator[list[_Tensor]]:
    """The tensors in order, cut into runs of one type, each of `most_bytes` or less where it holds
    more than one."""
    bucket: list[_Tensor] = []
    filled = 0
    for tensor in tensors:
        if bucket and (filled + tensor.nbytes > most_bytes or tensor.dtype != bucket[0].dtype):
            yield bucket
            bucket, filled = [], 0
        bucket.append(tensor)
        filled += tensor.nbytes
    if bucket:
        yield bucket
