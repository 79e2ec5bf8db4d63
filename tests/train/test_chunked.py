"""The loss in chunks: the numbers of the whole loss, in the axes' every order, and never the whole
logits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rayline.models.stage import HeadLoss, ModelStage
from rayline.parallel.chunked import chunks_of, summed_in_chunks
from rayline.parallel.pipeline import StageLayers
from rayline.parallel.vocabulary import VocabularySlice
from rayline.spec import NO_TARGET, ObjectiveSpec
from rayline.train.objective import count_targets, summed_cross_entropy
from support.architectures import architecture_config, write_architecture
from support.engine_gang import Task, run_gang
from support.plain_training import assert_gradients_equal_reference, job

VOCAB = 264
OBJECTIVE = ObjectiveSpec(label_smoothing=0.1, z_loss=1e-2)
# A bias at the head (planted), squeezed and tied logits, scaled ones, a mixture of experts.
HEADS: dict[str, dict[str, Any]] = {
    "llama": {},
    "gemma2": {"tie_word_embeddings": True},
    "cohere": {"logit_scale": 0.3},
    "granite": {},
    "mixtral": {},
}
CASES = [*((model_type, 12) for model_type in HEADS), ("llama", 1), ("llama", 1000)]
WHOLE = VocabularySlice(0, VOCAB, VOCAB, None)


def batch(sequences: int = 3, tokens: int = 25) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(5)
    ids = torch.randint(0, VOCAB, (sequences, tokens), generator=draw)
    labels = torch.randint(0, VOCAB, (sequences, tokens), generator=draw)
    labels[0, :7] = NO_TARGET
    return ids, labels


def one_stage(model_type: str) -> ModelStage:
    """A whole small model, drawn at random."""
    config = architecture_config(model_type, num_hidden_layers=2, **HEADS[model_type])
    torch.manual_seed(3)
    stage = ModelStage(config, StageLayers(0, 2, True, True)).to_empty(device="cpu")
    if model_type == "llama":
        stage.model.lm_head = torch.nn.Linear(config.hidden_size, VOCAB, bias=True)
    stage.tie()
    for parameter in stage.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    # They hold whatever memory held: a factor of Gemma's embeddings is one of them.
    for buffer in stage.buffers():
        buffer.fill_(1)
    return stage


@pytest.mark.parametrize(("model_type", "chunk_tokens"), CASES)
def test_gradients_are_those_of_the_whole_loss(model_type: str, chunk_tokens: int) -> None:
    stage = one_stage(model_type)
    ids, labels = batch()
    largest = 0

    def loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        nonlocal largest
        largest = max(largest, logits[..., 0].numel())
        return summed_cross_entropy(logits, targets, WHOLE, OBJECTIVE)

    def gradients(value: torch.Tensor) -> dict[str, torch.Tensor]:
        stage.zero_grad()
        (value / count_targets(labels)).backward()
        return {n: p.grad for n, p in stage.named_parameters() if p.grad is not None}

    whole = loss(stage(ids), labels)
    expected = gradients(whole)
    largest = 0
    stage.head_loss = HeadLoss(loss, chunk_tokens)
    chunked = stage(ids, labels=labels)
    assert largest <= max(chunk_tokens, len(ids))
    assert chunked.item() == pytest.approx(whole.item(), rel=1e-6)
    found = gradients(chunked)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        off = (found[name] - gradient).norm()
        assert off <= 1e-6 * gradient.norm() + 1e-9, f"{name} is off by {off:.1e}"
    with torch.no_grad():
        assert stage(ids, labels=labels).item() == pytest.approx(whole.item(), rel=1e-6)


def test_weight_gradients_add_up_in_float32() -> None:
    """Of 512 chunks in bfloat16; added up in bfloat16 small parts would vanish in the sum."""
    draw = torch.Generator().manual_seed(1)
    hidden = torch.randn(1, 512, 8, generator=draw).bfloat16().requires_grad_()
    head = torch.nn.Parameter(torch.randn(16, 8, generator=draw).bfloat16())
    labels = torch.zeros(1, 512, dtype=torch.int64)

    def loss(rows: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        logits = rows @ head.T
        return summed_cross_entropy(logits, targets, VocabularySlice(0, 16, 16, None))

    def of_head(chunk_tokens: int) -> torch.Tensor:
        value = summed_in_chunks(hidden, labels, loss, [head], chunk_tokens=chunk_tokens)
        (found,) = torch.autograd.grad(value, head)
        assert found.dtype == torch.bfloat16
        return found.float()

    exact = hidden.detach().float().requires_grad_()
    weights = head.detach().float().requires_grad_()
    summed_cross_entropy(exact @ weights.T, labels, VocabularySlice(0, 16, 16, None)).backward()
    assert weights.grad is not None
    off = (of_head(1) - weights.grad).norm() / weights.grad.norm()
    assert off < 4e-3, off


@given(
    sequences=st.integers(1, 4),
    tokens=st.integers(1, 40),
    parts=st.integers(1, 4),
    chunk_tokens=st.integers(1, 200),
)
@settings(deadline=None, max_examples=60)
def test_each_place_meets_its_own_label_once(
    sequences: int, tokens: int, parts: int, chunk_tokens: int
) -> None:
    """Ranks hold parts of each sequence one behind another; joined, rank by rank, a chunk's hidden
    states stand in the order of its labels."""
    places = torch.arange(sequences * tokens * parts).view(sequences, parts * tokens)
    of_rank = [part.unsqueeze(-1) for part in places.chunk(parts, 1)]
    chunks = [list(chunks_of(own, places, chunk_tokens, parts)) for own in of_rank]
    met = []
    for together in zip(*chunks, strict=True):
        joined = torch.cat([rows for rows, _ in together], 1).squeeze(-1)
        assert all(torch.equal(joined, targets) for _, targets in together)
        assert joined.numel() <= max(chunk_tokens, sequences * parts)
        met += joined.flatten().tolist()
    assert sorted(met) == places.flatten().tolist()


PLANS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "tensor, sequence x pipeline, tied": (
        "gemma2",
        {"tensor": 2, "sequence": True, "pipeline": 2, "microbatches": 2},
        {},
    ),
    "data, stage 3 x tensor, scaled": ("granite", {"data": 2, "tensor": 2}, {}),
    "zero-bubble V": (
        "llama",
        {
            "tensor": 2,
            "pipeline": 2,
            "microbatches": 4,
            "schedule": "zero_bubble_v",
            "stages_per_worker": 2,
        },
        {},
    ),
    "zero-bubble x data, stage 2, recomputed": (
        "qwen2",
        {
            "data": 2,
            "pipeline": 2,
            "microbatches": 2,
            "schedule": "zero_bubble",
            "stages_per_worker": 2,
            "zero_stage": 2,
        },
        {"recompute": "full"},
    ),
    "data, stage 3 x pipeline": ("cohere", {"data": 2, "pipeline": 2, "microbatches": 2}, {}),
    "context x tensor, experts": (
        "mixtral",
        {"context": 2, "tensor": 2, "sequence": True, "microbatches": 2},
        {},
    ),
}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Task]:
    root = tmp_path_factory.mktemp("chunked")
    found = {}
    for number, (name, (model_type, plan, changes)) in enumerate(PLANS.items()):
        model = write_architecture(root / f"model-{number}", model_type)
        spec = job(plan, objective={"chunk_tokens": 10}, **changes)
        found[name] = Task(spec, model, gradients=True, evaluate=True, last=1)
    run_gang(root, list(found.values()))
    return found


@pytest.mark.dist
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", PLANS)
def test_chunks_under_plans_are_one_process(tasks: dict[str, Task], name: str) -> None:
    task = tasks[name]
    reference = assert_gradients_equal_reference(task)
    assert float.fromhex(task.losses[0]) == pytest.approx(reference.losses(1)[0], abs=1e-5)
    before, tokens = task.evaluations[0]
    assert before / tokens == pytest.approx(_held_out_loss(task), abs=1e-5)


def _held_out_loss(task: Task) -> float:
    from support.engine_rank import EVALUATED
    from support.plain_training import Reference

    return Reference(task.model, task.job).backward(EVALUATED)
