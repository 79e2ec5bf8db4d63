"""What a planner has to know of a GPU: its speeds, its memory, its links, its power, its price.

Peaks are dense. Sources: the makers' data sheets as read in November 2026, and where those state a
sparse figure half of it; `nvlink` is what one GPU sends in one direction, half of the sheet's
figure. NICs are what the usual machine of that kind has for each GPU. Prices are about what one
GPU-hour costs on demand in a large cloud, in US dollars, in the month `PRICES_OF`; they differ by
region and contract, so every command that shows money takes another one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from rayline.errors import SpecError, meant

PRICES_OF = "2026-11"
"""Month of the prices below."""
_GIGA = 1e9
_TERA = 1e12


@dataclass(frozen=True, slots=True)
class Accelerator:
    """One kind of GPU in the machine that it usually comes in."""

    name: str
    generation: str
    """Which efficiency curve holds for it."""
    bf16_tflops: float
    """fp16 where there is no bf16."""
    fp8_tflops: float
    fp4_tflops: float
    memory_gib: float
    """What the driver has to give."""
    hbm_gb_per_s: float
    nvlink_gb_per_s: float
    """One direction, one GPU, to the others of its node; PCIe where there is no NVLink."""
    nic_gbit_per_s: float
    """One direction, one GPU's share, to other nodes."""
    per_node: int
    """GPUs that reach one another at nvlink_gb_per_s."""
    watts: float
    """Board power, at most."""
    price_per_hour: float
    """US dollars for one GPU."""

    def peak_flops_per_s(self, precision: str) -> float:
        """Dense peak of the matrix units in bf16, fp16, fp8 or fp4; fp32 counts as TF32, half of
        bf16. A precision that the GPU lacks runs as bf16."""
        tera = {"fp8": self.fp8_tflops, "fp4": self.fp4_tflops, "fp32": self.bf16_tflops / 2}
        return _TERA * (tera.get(precision) or self.bf16_tflops)

    @property
    def hbm_bytes_per_s(self) -> float:
        """Memory bandwidth."""
        return _GIGA * self.hbm_gb_per_s

    @property
    def nvlink_bytes_per_s(self) -> float:
        """Within a node, one direction."""
        return _GIGA * self.nvlink_gb_per_s

    @property
    def nic_bytes_per_s(self) -> float:
        """Between nodes, one direction."""
        return _GIGA * self.nic_gbit_per_s / 8


_KINDS = (
    Accelerator("V100-16G", "volta", 125, 0, 0, 15.7, 900, 150, 25, 8, 300, 3.06),
    Accelerator("V100-32G", "volta", 125, 0, 0, 31.7, 900, 150, 25, 8, 300, 3.90),
    Accelerator("A100-40G", "ampere", 312, 0, 0, 39.3, 1555, 300, 200, 8, 400, 2.75),
    Accelerator("A100-80G", "ampere", 312, 0, 0, 79.1, 2039, 300, 200, 8, 400, 3.43),
    Accelerator("A800", "ampere", 312, 0, 0, 79.1, 2039, 200, 200, 8, 400, 2.20),
    Accelerator("A10G", "ampere", 70, 0, 0, 22.0, 600, 16, 12, 8, 300, 1.21),
    Accelerator("L4", "ada", 121, 242, 0, 22.0, 300, 16, 12, 8, 72, 0.80),
    Accelerator("L40S", "ada", 362, 733, 0, 44.3, 864, 32, 50, 8, 350, 1.86),
    Accelerator("H100", "hopper", 989.5, 1979, 0, 79.1, 3350, 450, 400, 8, 700, 3.93),
    # Meta's Grand Teton: HBM2e and 500 W. Its peak is not told; by power, about 0.8 of the other.
    Accelerator("H100-96G", "hopper", 790, 1580, 0, 94.9, 2400, 450, 400, 8, 500, 3.50),
    Accelerator("H100-PCIE", "hopper", 756, 1513, 0, 79.1, 2000, 300, 200, 2, 350, 2.50),
    Accelerator("H800", "hopper", 989.5, 1979, 0, 79.1, 3350, 200, 400, 8, 700, 3.00),
    Accelerator("H200", "hopper", 989.5, 1979, 0, 139.7, 4800, 450, 400, 8, 700, 4.98),
    Accelerator("B200", "blackwell", 2250, 4500, 9000, 178.3, 8000, 900, 400, 8, 1000, 8.60),
    Accelerator("B300", "blackwell", 2250, 4500, 13500, 266.0, 8000, 900, 800, 8, 1200, 11.00),
    Accelerator("GB200", "blackwell", 2500, 5000, 10000, 184.0, 8000, 900, 400, 72, 1200, 9.50),
    Accelerator("GB300", "blackwell", 2500, 5000, 15000, 276.0, 8000, 900, 800, 72, 1400, 12.00),
    # One core of a processor and what a gang over gloo's loopback reaches: orders of magnitude that
    # `rayline plan calibrate` puts right for a machine.
    Accelerator("CPU", "cpu", 0.2, 0, 0, 8.0, 15, 4, 10, 4096, 15, 0.05),
    Accelerator("MI300X", "cdna3", 1307.4, 2614.9, 0, 191.6, 5300, 448, 400, 8, 750, 3.40),
)
ACCELERATORS = {kind.name: kind for kind in _KINDS}
_OTHER_NAMES = {
    "V100": "V100-16G",
    "V100-16GB": "V100-16G",
    "V100-32GB": "V100-32G",
    "A100": "A100-40G",
    "A100-40GB": "A100-40G",
    "A100-80GB": "A100-80G",
    "H100-80GB": "H100",
    "H100-SXM": "H100",
    "H100-96GB": "H100-96G",
    "AMD-Instinct-MI300X-OAM": "MI300X",
}
"""As Ray, clouds and papers write them."""

_BY_WORDS: tuple[tuple[frozenset[str], str], ...] = tuple(
    (frozenset(words.split()), known)
    for words, known in (
        ("V100 32GB", "V100-32G"),
        ("A100 40GB", "A100-40G"),
        ("A100 80GB", "A100-80G"),
        ("H100 PCIE", "H100-PCIE"),
        ("H100 96GB", "H100-96G"),
        ("H100 TETON", "H100-96G"),
        ("H100", "H100"),
        ("H800", "H800"),
        ("H200", "H200"),
        ("GB200", "GB200"),
        ("GB300", "GB300"),
        ("B200", "B200"),
        ("B300", "B300"),
        ("A800", "A800"),
        ("L40S", "L40S"),
        ("MI300X", "MI300X"),
    )
)
"""By words of longer names, such as A100-SXM4-80GB; the first that are all there hold."""


def find_accelerator(name: str) -> Accelerator:
    """The kind of this name, as the catalogue, Ray or a paper writes it: case does not matter, and
    what stands in brackets is left out. Raises SpecError with the nearest known name."""
    plain = name.split("(")[0].strip().upper()
    for known in (*ACCELERATORS, *_OTHER_NAMES):
        if known.upper() == plain:
            return ACCELERATORS[_OTHER_NAMES.get(known, known)]
    words = set(re.split("[^A-Z0-9]+", plain))
    for wanted, known in _BY_WORDS:
        if wanted <= words:
            return ACCELERATORS[known]
    raise SpecError(
        "--gpu-type",
        "no such kind of GPU in the catalogue",
        value=name,
        allowed=", ".join(ACCELERATORS),
        fix=meant(plain, ACCELERATORS, otherwise="choose one of the allowed kinds", cutoff=0.4),
    )
