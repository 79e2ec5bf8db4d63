"""The objective's options, by their formulas."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rayline.parallel.vocabulary import VocabularySlice
from rayline.spec import NO_TARGET, ObjectiveSpec
from rayline.train.objective import count_targets, summed_cross_entropy

WHOLE = VocabularySlice(0, 7, 7, None)


@settings(deadline=None)
@given(
    smoothing=st.floats(0, 0.9),
    z_loss=st.floats(0, 1),
    seed=st.integers(0, 99),
    hidden=st.integers(0, 10),
)
def test_smoothing_and_z_loss_are_sums_over_target_tokens(
    smoothing: float, z_loss: float, seed: int, hidden: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 5, 7, generator=generator).double() * 3
    labels = torch.randint(0, 7, (2, 5), generator=generator)
    labels.view(-1)[:hidden] = NO_TARGET
    expected = 0.0
    for place, label in zip(logits.flatten(0, 1), labels.flatten().tolist(), strict=True):
        if label != NO_TARGET:
            log_sum = place.exp().sum().log()
            spread = torch.full((7,), smoothing / 7).double()
            spread[label] += 1 - smoothing
            expected += float((spread * (log_sum - place)).sum() + z_loss * log_sum**2)
    spec = ObjectiveSpec(label_smoothing=smoothing, z_loss=z_loss)
    assert float(summed_cross_entropy(logits, labels, WHOLE, spec)) == pytest.approx(
        expected, rel=1e-5
    )
    assert count_targets(labels) == 10 - hidden


def test_without_options_it_is_the_cross_entropy() -> None:
    logits = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(10).view(2, 5) % 7
    plain = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), reduction="sum"
    )
    assert torch.allclose(summed_cross_entropy(logits, labels, WHOLE), plain, rtol=1e-6)
