"""What the native engine keeps in the host's memory until it is needed again: what layers save for
the backward pass, and the optimizer's state."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

_Saved = torch.Tensor | tuple[torch.device, torch.Tensor]


def offload_activations(layers: Iterable[nn.Module]) -> None:
    """Replace the layers' forward passes, in place, by ones that compute the same and keep what
    they save for the backward pass in the host's memory (torch.autograd.graph.save_on_cpu, but for
    weights, which it would copy as well). Every rank calls it, before layers are sharded."""
    for layer in layers:
        layer.forward = _offloading(layer.forward)


def _offloading(forward: Any) -> Any:
    @functools.wraps(forward)
    def offloaded(*args: Any, **kwargs: Any) -> Any:
        with torch.autograd.graph.saved_tensors_hooks(_pack, _unpack):
            return forward(*args, **kwargs)

    return offloaded


def _pack(tensor: torch.Tensor) -> _Saved:
    # Weights are needed on the device anyhow; products save them as views. They may also be
    # DTensors, as no activation is.
    if type(tensor) is not torch.Tensor or isinstance(tensor._base, nn.Parameter):
        return tensor
    return tensor.device, _on_host(tensor)


def _unpack(saved: _Saved) -> torch.Tensor:
    if isinstance(saved, torch.Tensor):
        return saved
    device, tensor = saved
    return tensor.to(device, non_blocking=True)


def _on_host(tensor: torch.Tensor) -> torch.Tensor:
    """A copy, pinned where there is a device to copy from."""
    away = tensor.device.type != "cpu"
    copy = torch.empty(tensor.shape, dtype=tensor.dtype, layout=tensor.layout, pin_memory=away)
    return copy.copy_(tensor, non_blocking=away)


class HostState:
    """Tensors of an optimizer's state that are on the device only while they are stepped."""

    def __init__(self, tensors: Iterable[torch.Tensor]) -> None:
        """Takes the tensors' values; they are empty from now on, but within `on_device`."""
        self._held = {id(tensor): (tensor, _on_host(tensor)) for tensor in tensors}
        self._devices = {key: tensor.device for key, (tensor, _) in self._held.items()}
        self._leave()

    def live(self, tensor: torch.Tensor) -> torch.Tensor:
        """Where one of the tensors has its values now."""
        return tensor if self._is_here else self._held[id(tensor)][1]

    @contextmanager
    def on_device(self) -> Iterator[None]:
        """While it lasts, the tensors have their values on the device; what they have at its end is
        kept."""
        for key, (tensor, host) in self._held.items():
            tensor.data = host.to(self._devices[key], non_blocking=True, copy=True)
        self._is_here = True
        yield
        for tensor, host in self._held.values():
            host.copy_(tensor, non_blocking=True)
        self._leave()

    def _leave(self) -> None:
        """Wait until the host has what is being copied to it, then free the device's memory."""
        for device in set(self._devices.values()):
            if device.type == "cuda":
                torch.cuda.synchronize(device)
        for tensor, _ in self._held.values():
            tensor.data = tensor.data.new_empty(0)
        self._is_here = False
