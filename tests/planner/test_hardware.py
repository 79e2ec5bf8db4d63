"""What is known of GPUs is the same wherever it stands."""

import pytest

from rayline.planner import GPU_MEMORY_GIB, device_peak_flops_per_s
from rayline.planner.accelerators import ACCELERATORS


@pytest.mark.parametrize("name", sorted(ACCELERATORS.keys() & GPU_MEMORY_GIB.keys()))
def test_both_tables_say_the_same_of_a_gpu(name: str) -> None:
    """One is asked by the driver's name of a device, the other by what is planned for."""
    kind = ACCELERATORS[name]
    assert kind.memory_gib == GPU_MEMORY_GIB[name]
    peak = device_peak_flops_per_s(f"NVIDIA {name.split('-')[0]}", "bf16")
    assert peak is None or peak == kind.bf16_tflops * 1e12
