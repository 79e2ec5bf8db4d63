"""Plain DeepSpeed, as a program without rayline uses it: one rank of a ZeRO job.

The first life loads a universal checkpoint that rayline exported, the second trains from the start,
saves, and has DeepSpeed's own converter make a universal checkpoint for rayline to import.
"""

import argparse
import json
import os
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
import torch.nn.functional as F
from deepspeed.accelerator import set_accelerator
from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator
from deepspeed.checkpoint import ds_to_universal
from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from rayline.spec import NO_TARGET, JobSpec
from rayline.train.schedule import learning_rate
from support.engine_rank import global_batch

WORLD = 2
HALF = 2
"""The step of the checkpoints."""
LAST = 4


def initialized(spec: JobSpec, model: Path, stage: int, load: bool) -> Any:
    """A ZeRO engine around transformers' model and torch's AdamW, with torch's own scheduler."""
    whole = AutoModelForCausalLM.from_pretrained(
        model, dtype=torch.float32, attn_implementation="eager"
    )
    optim: Any = spec.optim
    matrices = [p for p in whole.parameters() if p.dim() >= 2]
    vectors = [p for p in whole.parameters() if p.dim() < 2]
    adamw = torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": optim.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ],
        lr=optim.lr,
        # Of the checkpoint, where one is loaded.
        betas=(0.5, 0.5) if load else optim.betas,
        eps=optim.eps,
    )
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        adamw, lambda done: learning_rate(optim, done + 1, spec.steps) / optim.lr
    )
    engine, *_ = deepspeed.initialize(
        model=whole,
        optimizer=adamw,
        lr_scheduler=scheduler,
        config={
            "train_micro_batch_size_per_gpu": spec.batch.sequences // WORLD,
            "gradient_clipping": optim.clip_grad_norm,
            "zero_optimization": {"stage": stage},
            "zero_allow_untested_optimizer": True,
            "checkpoint": {"load_universal": load},
        },
    )
    return engine


def train(engine: Any, spec: JobSpec, first: int, last: int) -> list[float]:
    """The loss of every step from `first` to `last`, over the whole batch."""
    losses = []
    for step in range(first, last + 1):
        ids, labels = global_batch(spec, engine.module.config.vocab_size, step)
        tokens = int((labels != NO_TARGET).sum())
        own = labels.chunk(WORLD)[dist.get_rank()].flatten()
        shown = ids.chunk(WORLD)[dist.get_rank()]
        found = engine(input_ids=shown, use_cache=False).logits.flatten(0, 1)
        total = F.cross_entropy(found, own, ignore_index=NO_TARGET, reduction="sum")
        # DeepSpeed takes the mean over the ranks.
        engine.backward(total * WORLD / tokens)
        engine.step()
        summed = total.detach().double()
        dist.all_reduce(summed)
        losses.append(float(summed) / tokens)
    return losses


def state_of(engine: Any) -> dict[str, torch.Tensor]:
    """Whole tensors as rayline's checkpoints name them; collective."""
    found = {}
    for name, parameter in engine.module.named_parameters():
        found[f"weight/{name}"] = safe_get_full_fp32_param(parameter)
        for slot in ("exp_avg", "exp_avg_sq"):
            whole = safe_get_full_optimizer_state(parameter, slot)
            found[f"optimizer/{slot}/{name}"] = whole
    return {name: tensor.clone().contiguous() for name, tensor in found.items()}


def converted(folder: Path) -> None:
    """DeepSpeed's own converter, run on the checkpoint of step HALF."""
    ds_to_universal.main(
        argparse.Namespace(
            input_folder=str(folder / f"global_step{HALF}"),
            output_folder=str(folder / f"global_step{HALF}_universal"),
            num_extract_workers=1,
            num_merge_workers=1,
            keep_temp_folder=False,
            strict=True,
            inject_missing_state=True,
        )
    )


def plain_lives(rank: int, world: int, port: int, folder: Path, log: Path) -> None:
    """Both lives of one rank. `folder` holds job.json, model/ and exported/; rank 0 leaves
    loaded.safetensors, losses.json and made/, a universal checkpoint."""
    with log.open("w") as said:
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
    torch.set_num_threads(1)
    os.environ["LOCAL_RANK"] = str(rank)
    set_accelerator(CPU_Accelerator())
    # None: DeepSpeed would compile collectives of its own.
    deepspeed.ops.__compatible_ops__ = {}
    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=world)
    spec = JobSpec.parse(json.loads((folder / "job.json").read_text()))
    losses: dict[str, Any] = {}
    for stage in (1, 2, 3):
        engine = initialized(spec, folder / "model", stage, load=True)
        engine.load_checkpoint(str(folder / "exported"))
        state = state_of(engine)
        if rank == 0:
            save_file(state, str(folder / f"loaded-{stage}.safetensors"))
        losses[f"loaded-{stage}"] = train(engine, spec, HALF + 1, LAST)
        losses[f"counted-{stage}"] = [engine.global_steps, engine.global_samples]
    for stage in (2, 3):
        engine = initialized(spec, folder / "model", stage, load=False)
        began = train(engine, spec, 1, HALF)
        made = folder / f"made-{stage}"
        engine.save_checkpoint(str(made))
        if rank == 0:
            converted(made)
        losses[f"made-{stage}"] = began + train(engine, spec, HALF + 1, LAST)
    if rank == 0:
        (folder / "losses.json").write_text(json.dumps(losses))
    dist.destroy_process_group()
