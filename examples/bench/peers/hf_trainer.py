"""Hugging Face's Trainer. On a CPU its accelerate replicates, whatever `fsdp` asks for."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch.utils.data import Dataset, SequentialSampler
from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments
from workload import Record, Work


class Rows(Dataset[dict[str, torch.Tensor]]):
    """One sequence an item, in the order of training."""

    def __init__(self, tokens: torch.Tensor) -> None:
        self._tokens = tokens.flatten(0, 1)

    def __len__(self) -> int:
        return len(self._tokens)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        row = self._tokens[index]
        # Labels that are shifted already; the model would shift `labels` by itself.
        return {"input_ids": row[:-1], "shift_labels": row[1:], "labels": row[1:]}


class InOrder(Trainer):
    """A Trainer that takes the rows as they come."""

    def _get_train_sampler(self, *_: Any) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)


class Watch(TrainerCallback):
    """Notes when each step's loss is logged, which is once the step is done."""

    def __init__(self, record: Record) -> None:
        self._record = record

    def on_log(self, _args: Any, _state: Any, _control: Any, logs: Any = None, **_: Any) -> None:
        if "loss" in logs:
            self._record.add(float(logs["loss"]))


def main() -> None:
    """One rank that torchrun started."""
    work, record = Work.load(sys.argv[1]), Record()
    on_cpu = work.device == "cpu"
    if on_cpu:
        torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(work.model, dtype=torch.float32)
    arguments = TrainingArguments(
        output_dir=f"{work.folder}/trainer",
        use_cpu=on_cpu,
        ddp_backend="gloo" if on_cpu else "nccl",
        bf16=work.precision == "bf16",
        max_steps=work.steps,
        per_device_train_batch_size=work.share,
        learning_rate=work.lr,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        adam_epsilon=1e-8,
        max_grad_norm=work.clip_grad_norm,
        optim="adamw_torch_fused",
        remove_unused_columns=False,
        logging_steps=1,
        disable_tqdm=True,
        report_to="none",
        save_strategy="no",
    )
    trainer = InOrder(
        model=model, args=arguments, train_dataset=Rows(work.tokens()), callbacks=[Watch(record)]
    )
    trainer.train()
    if trainer.is_world_process_zero():
        record.save(sys.argv[2])


if __name__ == "__main__":
    main()
