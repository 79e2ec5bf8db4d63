"""The plain training that every engine is compared with, and the job they all do."""

import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from rayline.spec import NO_TARGET, JobSpec
from rayline.train.schedule import learning_rate
from support.engine_gang import Task
from support.engine_rank import global_batch

STEPS = 10


def job(plan: dict[str, Any], **changes: Any) -> JobSpec:
    tree = {
        "name": "parity",
        "model": {"directory": "given"},
        "steps": 12,
        "data": {"kind": "text", "files": ["none"], "sequence_tokens": 24},
        "batch": {"sequences": 8},
        "optim": {"lr": 3e-3, "weight_decay": 0.1, "warmup_steps": 2, "clip_grad_norm": 1.0},
        "plan": plan,
    }
    return JobSpec.parse(tree | changes)


class Reference:
    """The same training by transformers' model and torch's AdamW, written out plainly."""

    def __init__(self, folder: Path, spec: JobSpec) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        )
        self.spec = spec
        self.dropped = 0
        if spec.objective.expert_capacity_factor is not None:
            for name, module in self.model.named_modules():
                if name.endswith(".experts"):
                    module.register_forward_pre_hook(self.drop)
        matrices = [p for p in self.model.parameters() if p.dim() >= 2]
        vectors = [p for p in self.model.parameters() if p.dim() < 2]
        self.adamw = torch.optim.AdamW(
            [
                {"params": matrices, "weight_decay": spec.optim.weight_decay},
                {"params": vectors, "weight_decay": 0.0},
            ],
            betas=spec.optim.betas,
            eps=spec.optim.eps,
        )

    def backward(self, step: int) -> float:
        ids, labels = global_batch(self.spec, self.model.config.vocab_size, step)
        self.model.zero_grad()
        coefficient = self.spec.objective.router_aux_loss
        told = {"output_router_logits": True} if coefficient else {}
        out = self.model(ids, **told)
        loss = F.cross_entropy(out.logits.flatten(0, 1), labels.flatten(), ignore_index=NO_TARGET)
        balance = self.balance(out.router_logits, len(ids)) if coefficient else torch.zeros(())
        (loss + coefficient * balance).backward()
        self.balance_loss = balance.item()
        if coefficient:
            self.max_load = self.load(out.router_logits)
        return loss.item()

    def balance(self, logits: tuple[torch.Tensor, ...], sequences: int) -> torch.Tensor:
        """transformers' load-balancing loss, averaged over layers and sequences."""
        chosen = self.model.config.num_experts_per_tok
        alone = [
            load_balancing_loss_func((own,), own.shape[-1], chosen)
            for layer in logits
            for own in layer.chunk(sequences)
        ]
        return torch.stack(alone).mean()

    def drop(self, _: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        """Weigh nothing what finds its expert full: sequence by sequence, token by token."""
        tokens, chosen, weights = args
        factor, length = self.spec.objective.expert_capacity_factor, self.spec.data.sequence_tokens
        even = length * chosen.shape[-1] / self.model.config.num_local_experts
        keeps = []
        for place, own in enumerate(chosen.tolist()):
            if place % length == 0:
                taken: Counter[int] = Counter()
            taken.update(own)
            keeps.append([taken[expert] <= math.ceil(factor * even) for expert in own])
        keep = torch.tensor(keeps)
        self.dropped += int((~keep).sum())
        return tokens, chosen, weights * keep

    def load(self, logits: tuple[torch.Tensor, ...]) -> float:
        """Choices of the expert that was chosen most over the mean of its layer's, the largest."""
        chosen = self.model.config.num_experts_per_tok
        counts = [
            own.topk(chosen).indices.flatten().bincount(minlength=own.shape[-1]) for own in logits
        ]
        return max(int(count.max()) * len(count) / int(count.sum()) for count in counts)

    def gradients(self) -> dict[str, torch.Tensor]:
        self.backward(1)
        return {n: p.grad.clone() for n, p in self.model.named_parameters() if p.grad is not None}

    def losses(self, steps: int = STEPS) -> list[float]:
        found = []
        for step in range(1, steps + 1):
            found.append(self.backward(step))
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            for group in self.adamw.param_groups:
                group["lr"] = learning_rate(self.spec.optim, step, self.spec.steps)
            self.adamw.step()
        return found


def assert_equals_reference(task: Task) -> None:
    reference = assert_gradients_equal_reference(task)
    losses = [float.fromhex(text) for text in task.losses]
    assert losses == pytest.approx(reference.losses(task.last), abs=1e-5), str(task.job.plan)


def assert_gradients_equal_reference(task: Task) -> Reference:
    reference = Reference(task.model, task.job)
    expected = reference.gradients()
    found = task.tensors("gradients")
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        error = (found[name] - gradient).norm() / gradient.norm()
        assert error < 1e-5, f"{task.job.plan}: gradient of {name} is off by {error:.1e}"
    return reference
