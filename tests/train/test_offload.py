"""Activations that wait in host memory: the same numbers, and nothing but weights stays behind."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import nn

from rayline.train.offload import offload_activations


def layer() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.LayerNorm(16), nn.Linear(16, 8))


@contextmanager
def copies_counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[torch.Size]]:
    """The shapes of what is copied to the host."""
    from rayline.train import offload

    found: list[torch.Size] = []
    original = offload._on_host

    def counted(tensor: torch.Tensor) -> torch.Tensor:
        found.append(tensor.shape)
        return original(tensor)

    monkeypatch.setattr(offload, "_on_host", counted)
    yield found


def test_gradients_are_bit_by_bit_those_of_activations_that_stay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    usual, offloading = layer(), layer()
    offload_activations([offloading])
    inputs = torch.randn(4, 8, generator=torch.Generator().manual_seed(1))
    usual(inputs).square().sum().backward()
    with copies_counted(monkeypatch) as copied:
        offloading(inputs).square().sum().backward()
    for expected, found in zip(usual.parameters(), offloading.parameters(), strict=True):
        assert torch.equal(expected.grad, found.grad)
    # Inputs of both products and of the activation, the norm's input with its two statistics.
    assert copied.count(torch.Size((4, 16))) == 3
    assert copied.count(torch.Size((4, 8))) == 1
    assert torch.Size((8, 16)) not in copied
    assert torch.Size((16, 8)) not in copied
