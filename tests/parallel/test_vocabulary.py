"""The loss from three numbers a token: the same as torch's own, value and gradient."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from rayline.parallel.vocabulary import VocabularySlice, token_logits
from rayline.spec import NO_TARGET
from rayline.train.objective import count_targets, summed_cross_entropy


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cross_entropy_and_its_gradient_are_those_of_torch(dtype: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(3)
    vocab = 37
    # More rows than are turned to float32 together.
    logits = (torch.randn(3, 700, vocab, generator=draw) * 8).to(dtype).requires_grad_()
    labels = torch.randint(0, vocab, (3, 700), generator=draw)
    labels[1, :90] = NO_TARGET
    loss = summed_cross_entropy(logits, labels, VocabularySlice(0, vocab, vocab, None))
    (found,) = torch.autograd.grad(loss, logits)
    expected = F.cross_entropy(
        logits.float().flatten(0, 1), labels.flatten(), ignore_index=NO_TARGET, reduction="sum"
    )
    (gradient,) = torch.autograd.grad(expected, logits)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert found.dtype == dtype
    # Torch goes through float32 too, and rounds once.
    torch.testing.assert_close(
        found, gradient, rtol=1e-2 if dtype.itemsize == 2 else 1e-5, atol=1e-6
    )
    assert count_targets(labels) == 3 * 700 - 90


def test_logits_of_any_size_do_not_overflow() -> None:
    logits = torch.tensor([[1e4, -1e4, 0.0]])
    found = token_logits(logits, torch.tensor([0]), VocabularySlice(0, 3, 3, None), with_mean=True)
    assert found.log_sum.item() == pytest.approx(1e4)
    assert found.target.item() == 1e4
    assert found.mean.item() == pytest.approx(0.0, abs=1e-3)
