"""The plan in DeepSpeed, as its documentation has it: deepspeed.initialize and its engine."""

from __future__ import annotations

import sys

import deepspeed
import torch
import torch.distributed as dist
import torch.nn.functional as F
from transformers import AutoModelForCausalLM
from workload import Record, Work


def main() -> None:
    """One rank that torchrun started."""
    torch.set_num_threads(1)
    deepspeed.init_distributed("gloo")
    work, record = Work.load(sys.argv[1]), Record()
    rank, size = dist.get_rank(), dist.get_world_size()
    model = AutoModelForCausalLM.from_pretrained(work.model, dtype=torch.float32)
    settings = {
        "train_batch_size": work.sequences,
        "train_micro_batch_size_per_gpu": work.share,
        "gradient_clipping": work.clip_grad_norm,
        "zero_optimization": {"stage": work.zero_stage},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
    }
    optimizer = torch.optim.AdamW(model.parameters(), lr=work.lr, weight_decay=0.0, fused=True)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)
    for batch in work.tokens():
        tokens = batch[rank * work.share : (rank + 1) * work.share]
        logits = engine(tokens[:, :-1]).logits
        loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        engine.backward(loss)
        engine.step()
        mean = loss.detach() / size
        dist.all_reduce(mean)
        record.add(mean.item())
    if rank == 0:
        record.save(sys.argv[2])
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
