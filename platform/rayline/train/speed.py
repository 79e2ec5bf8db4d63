"""How fast the gang is, measured against what its devices could do."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed as dist

from rayline.spec import Yardstick

PROBE_S = 0.1
"""How long a CPU is measured for."""
_DTYPE = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_PROBE_SIDE = 512
"""Rows and columns of the measured product: its three matrices (3 MiB in float32) stay in cache."""


@dataclass(frozen=True, slots=True)
class Utilization:
    """What model FLOPs utilization is computed from."""

    flops_per_token: int
    gang_peak_flops_per_s: float
    """All devices together."""

    def mfu(self, tokens_per_s: float) -> float:
        """The operations that the model needs over those that the devices could have done, 0..1. On
        a CPU whose clock or neighbours changed since it was measured it may come out above 1."""
        return tokens_per_s * self.flops_per_token / self.gang_peak_flops_per_s


def measure_utilization(
    yardstick: Yardstick, device: torch.device, precision: Literal["fp32", "bf16", "fp16"]
) -> Utilization | None:
    """The gang's peak: its GPUs' by the makers' figures, or what all ranks' CPUs do when they
    multiply at the same time, which takes PROBE_S. Every rank calls it, after torch.distributed is
    set up. None where the GPUs' peak is not known."""
    peak = yardstick.device_peak_flops_per_s
    if device.type == "cpu":
        # Together: ranks that share cores must share them here too.
        dist.barrier()
        peak = probed_flops_per_s(_DTYPE[precision])
    # 0 stands for unknown: one GPU that is not in the table makes the whole gang's peak unknown.
    peaks = [torch.zeros((), dtype=torch.float64) for _ in range(dist.get_world_size())]
    dist.all_gather(peaks, torch.tensor(peak or 0.0, dtype=torch.float64))
    if any(not each for each in peaks):
        return None
    return Utilization(yardstick.model_flops_per_token, float(sum(each.item() for each in peaks)))


def probed_flops_per_s(dtype: torch.dtype) -> float:
    """What torch does with this process's threads: square products for PROBE_S, their mean."""
    left, right = torch.full((2, _PROBE_SIDE, _PROBE_SIDE), 0.5, dtype=dtype)
    product = left @ right
    products, began = 0, time.perf_counter()
    while (elapsed_s := time.perf_counter() - began) < PROBE_S or not products:
        torch.mm(left, right, out=product)
        products += 1
    return products * 2 * _PROBE_SIDE**3 / elapsed_s
