"""Packed documents: under every plan a model computes what it does of each document alone."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM

from rayline.errors import SpecError
from rayline.models.stage import ModelStage
from rayline.parallel.attention import check_packing
from rayline.parallel.pipeline import StageLayers
from support.architectures import ARCHITECTURES, write_architecture, write_config
from support.engine_gang import Task, run_gang
from support.engine_rank import EVALUATED, global_batch, packed_positions
from support.plain_training import job

MODELS = ("gemma2", "mistral")
PLANS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "alone": ("mistral", {"microbatches": 2}, {}),
    "alone, layers computed again": ("gemma2", {"microbatches": 2}, {"recompute": "full"}),
    "ZeRO": ("mistral", {"data": 2, "zero_stage": 3}, {"engine": "deepspeed"}),
    "DeepSpeed's pipeline": (
        "gemma2",
        {"pipeline": 2, "microbatches": 2, "zero_stage": 1},
        {"engine": "deepspeed"},
    ),
    "tensor, sequence x pipeline": (
        "gemma2",
        {"tensor": 2, "sequence": True, "pipeline": 2, "microbatches": 2},
        {},
    ),
    "context x tensor, sequence": ("gemma2", {"context": 2, "tensor": 2, "sequence": True}, {}),
    "context x pipeline, zero-bubble": (
        "mistral",
        {
            "context": 2,
            "pipeline": 2,
            "microbatches": 4,
            "schedule": "zero_bubble",
            "stages_per_worker": 2,
            "zero_stage": 2,
        },
        {},
    ),
    "data x pipeline, V": (
        "mistral",
        {
            "data": 2,
            "pipeline": 2,
            "microbatches": 4,
            "schedule": "zero_bubble_v",
            "stages_per_worker": 2,
        },
        {},
    ),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One with windows and a softcap, one with windows alone."""
    return {name: write_architecture(tmp_path_factory.mktemp(name), name) for name in MODELS}


def task(name: str, models: dict[str, Path]) -> Task:
    model, plan, changes = PLANS[name]
    spec = job(plan, **changes).changed({"data.packing": "documents"})
    return Task(spec, models[model], last=1, gradients=True, evaluate=True)


@pytest.fixture(scope="module")
def done(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Task]:
    tasks = {name: task(name, models) for name in PLANS}
    for world in (4, 2, 1):
        here = [one for one in tasks.values() if one.job.plan.world_size == world]
        run_gang(tmp_path_factory.mktemp(f"gang-{world}"), here)
    return tasks


def written_out(folder: Path) -> Any:
    """transformers' own model, with the attention that leaves nothing out."""
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )


def one_by_one(model: torch.nn.Module, this: Task, step: int) -> tuple[torch.Tensor, int]:
    """Sum of the losses over every document of the batch, each computed alone; and their number."""
    ids, labels = global_batch(this.job, 264, step)
    positions = packed_positions(this.job)
    assert positions is not None
    total, documents = torch.zeros(()), 0
    for row, place in enumerate(positions):
        begins = [*torch.nonzero(place == 0).flatten().tolist(), len(place)]
        for begin, end in pairwise(begins):
            logits = model(ids[row : row + 1, begin:end], use_cache=False).logits
            total = total + F.cross_entropy(
                logits[0], labels[row, begin:end], ignore_index=-100, reduction="sum"
            )
            documents += 1
    assert documents == 4 * this.job.batch.sequences
    return total, int((labels != -100).sum())


@pytest.fixture(scope="module")
def alone(models: dict[str, Path]) -> dict[str, tuple[float, float, dict[str, torch.Tensor]]]:
    """Of each model: the mean loss of the evaluated batch, that of step 1 and its gradients."""
    found = {}
    for name, folder in models.items():
        this = Task(job({}).changed({"data.packing": "documents"}), folder)
        model = written_out(folder)
        with torch.no_grad():
            evaluated, targets = one_by_one(model, this, EVALUATED)
        total, of_step = one_by_one(model, this, 1)
        (total / of_step).backward()
        gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        found[name] = (float(evaluated) / targets, float(total.detach()) / of_step, gradients)
    return found


@pytest.mark.dist
@pytest.mark.parametrize("name", PLANS)
def test_every_plan_computes_each_document_as_if_it_stood_alone(
    done: dict[str, Task],
    alone: dict[str, tuple[float, float, dict[str, torch.Tensor]]],
    name: str,
) -> None:
    this = done[name]
    evaluated, loss, gradients = alone[PLANS[name][0]]
    loss_sum, tokens = this.evaluations[0]
    assert loss_sum / tokens == pytest.approx(evaluated, abs=1e-5)
    assert float.fromhex(this.losses[0]) == pytest.approx(loss, abs=1e-5)
    found = this.tensors("gradients")
    assert found.keys() == gradients.keys()
    for parameter, gradient in gradients.items():
        error = (found[parameter] - gradient).norm() / gradient.norm()
        assert error < 1e-5, f"gradient of {parameter} is off by {error:.1e}"


def test_no_token_sees_another_document(models: dict[str, Path]) -> None:
    """Logits of one stage, token by token; and dense packing gives others."""
    this = task("alone", models)
    ids, _ = global_batch(this.job, 264, 1)
    positions = packed_positions(this.job)
    assert positions is not None
    for folder in models.values():
        plain = written_out(folder).eval()
        stage = ModelStage(plain.config, StageLayers(0, 4, True, True)).eval()
        stage.model.load_state_dict(plain.state_dict(), assign=True)
        with torch.no_grad():
            packed, dense = stage(ids, positions), stage(ids)
            for row, place in enumerate(positions):
                begins = [*torch.nonzero(place == 0).flatten().tolist(), len(place)]
                for begin, end in pairwise(begins):
                    alone = plain(ids[row : row + 1, begin:end]).logits[0]
                    torch.testing.assert_close(packed[row, begin:end], alone, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(packed[:, 0], dense[:, 0])
        assert not torch.allclose(packed, dense, atol=1e-2)


def test_what_documents_are_packed_for(tmp_path: Path) -> None:
    for model_type in ARCHITECTURES:
        config = AutoConfig.from_pretrained(write_config(tmp_path / model_type, model_type))
        check_packing(ModelStage(config, StageLayers(1, 3, False, True)).model, "documents")
    mamba = CONFIG_MAPPING["mamba"](vocab_size=264, hidden_size=32, num_hidden_layers=2)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(mamba)
    check_packing(model, "dense")
    with pytest.raises(SpecError, match=r"(?s)data\.packing.*MambaForCausalLM.*allowed: dense"):
        check_packing(model, "documents")
