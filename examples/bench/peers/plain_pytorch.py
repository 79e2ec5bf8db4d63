"""The plan as a careful engineer writes it by hand: transformers' model, AdamW, and FSDP2, or
DistributedDataParallel where nothing is sharded."""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoModelForCausalLM
from workload import Record, Work


def train(work: Work, report: Callable[[float], None]) -> None:
    """Every rank calls it once torch.distributed is set up; `report` is told each step's loss."""
    rank, size = dist.get_rank(), dist.get_world_size()
    model = _over_workers(
        AutoModelForCausalLM.from_pretrained(work.model, dtype=torch.float32), work, size
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=work.lr, weight_decay=0.0, fused=True)
    for batch in work.tokens():
        tokens = batch[rank * work.share : (rank + 1) * work.share]
        logits = model(tokens[:, :-1]).logits
        loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), work.clip_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        mean = loss.detach() / size
        dist.all_reduce(mean)
        report(mean.item())


def _over_workers(model: nn.Module, work: Work, size: int) -> nn.Module:
    if work.zero_stage == 0:
        return DistributedDataParallel(model)
    mesh = init_device_mesh("cpu", (size,))
    for module in (*model.model.layers, model):
        fully_shard(module, mesh=mesh, reshard_after_forward=work.zero_stage == 3)
    return model


def main() -> None:
    """One rank that torchrun started."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    record = Record()
    train(Work.load(sys.argv[1]), record.add)
    if dist.get_rank() == 0:
        record.save(sys.argv[2])
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
