"""What GPUs can do at most, as their makers state it, and what memory they have.

Dense figures, that is without the doubling that structured sparsity would bring; bf16 with sums in
float32 on matrix units, fp32 on ordinary units, which is what PyTorch uses unless TF32 is switched
on. Read in November 2026 from the makers' data sheets, where NVIDIA's since Hopper give the sparse
figure, twice the dense one; the bf16 figures are those of torchtitan's table too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

_TERA = 10**12


@dataclass(frozen=True, slots=True)
class PeakSpeed:
    """One kind of GPU."""

    words: tuple[str, ...]
    """All of them stand in the name that the driver gives the device; case does not matter."""
    bf16_tflops_per_s: float
    """In fp16 as well: every one of these is as fast in it."""
    fp32_tflops_per_s: float
    source: str
    """Data sheet."""


PEAK_SPEEDS = (
    PeakSpeed(("gb200",), 2500, 80, "NVIDIA GB200 NVL72, per GPU"),
    PeakSpeed(("b200",), 2250, 75, "NVIDIA HGX B200, per GPU"),
    PeakSpeed(("gh200",), 989.5, 67, "NVIDIA GH200"),
    PeakSpeed(("h200", "nvl"), 835.5, 60, "NVIDIA H200 NVL"),
    PeakSpeed(("h200",), 989.5, 67, "NVIDIA H200 SXM"),
    PeakSpeed(("h100", "nvl"), 835.5, 60, "NVIDIA H100 NVL"),
    PeakSpeed(("h100", "pcie"), 756, 51, "NVIDIA H100 PCIe"),
    PeakSpeed(("h100",), 989.5, 67, "NVIDIA H100 SXM"),
    PeakSpeed(("a100",), 312, 19.5, "NVIDIA A100"),
    PeakSpeed(("l40s",), 362, 91.6, "NVIDIA L40S"),
    PeakSpeed(("l40",), 181, 90.5, "NVIDIA L40"),
    PeakSpeed(("l4",), 121, 30.3, "NVIDIA L4"),
    PeakSpeed(("a30",), 165, 10.3, "NVIDIA A30"),
    PeakSpeed(("mi300x",), 1307.4, 163.4, "AMD Instinct MI300X"),
)
"""The first that fits a name holds for it, so the narrower ones stand above."""


def device_peak_flops_per_s(
    device_name: str, precision: Literal["fp32", "bf16", "fp16"]
) -> float | None:
    """The most that the device can do in `precision`; None where it is not in the table.

    `device_name` is what the driver says, such as "NVIDIA H100 80GB HBM3". Called in the worker.
    """
    words = device_name.lower().replace("-", " ").split()
    for speed in PEAK_SPEEDS:
        if all(word in words for word in speed.words):
            tera = speed.fp32_tflops_per_s if precision == "fp32" else speed.bf16_tflops_per_s
            return tera * _TERA
    return None


KIND_RESOURCE = "accelerator_type:"
"""How Ray's resource begins that says which kind of GPU a node has."""

GPU_MEMORY_GIB = {
    "T4": 14.5,
    "P100": 15.8,
    "V100": 15.7,
    "L4": 22.0,
    "A10G": 22.0,
    "A100": 39.3,
    "A100-40G": 39.3,
    "L40S": 44.3,
    "A100-80G": 79.1,
    "H100": 79.1,
    "RTX-PRO-6000": 94.9,
    "H20": 95.0,
    "H200": 139.7,
    "B200": 178.3,
    "AMD-Instinct-MI300X-OAM": 191.6,
}
"""By the name that Ray gives a kind of GPU, what its driver has to give, in GiB: less than the
maker's figure, which counts in 10^9 bytes. Of a kind that comes in two sizes, the smaller one."""


def gpu_memory_bytes(kind: str) -> int | None:
    """Memory of one GPU of this kind, as Ray names it; None where it is not in the table."""
    gib = GPU_MEMORY_GIB.get(kind)
    return None if gib is None else int(gib * 2**30)
