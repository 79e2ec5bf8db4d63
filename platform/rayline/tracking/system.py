"""What the driver's machine is doing while a run lasts: CPU, memory, disk, network, NVIDIA GPUs.

The readings are MLflow's own (`mlflow.system_metrics.metrics`), under MLflow's names, so its web
page shows them where people look for them. MLflow's thread is not used: it gives up for good when
the store fails once, and leaves no bound on how long its end takes.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Protocol, cast

from rayline.tracking.rows import MetricRow

SAMPLE_S = 10.0


class _Monitor(Protocol):
    """What MLflow's monitors offer; they carry no types of their own."""

    def collect_metrics(self) -> None: ...

    def aggregate_metrics(self) -> dict[str, float]: ...

    def clear_metrics(self) -> None: ...


class SystemSampler:
    """Called for one reading; the first covers the time since it was made."""

    def __init__(self) -> None:
        from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
        from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
        from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
        from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

        kinds = (CPUMonitor, DiskMonitor, NetworkMonitor, GPUMonitor)
        self._monitors: list[_Monitor] = []
        for kind in cast("tuple[Callable[[], _Monitor], ...]", kinds):
            # MLflow raises whatever the NVIDIA library says where there is no such GPU.
            with contextlib.suppress(Exception):
                self._monitors.append(kind())
        self._readings = 0
        # The CPU monitor's first reading is always 0: it needs two points in time.
        self._monitors[0].collect_metrics()
        self._monitors[0].clear_metrics()

    def __call__(self) -> list[MetricRow]:
        """One row for each quantity; a quantity that cannot be read is left out."""
        rows: list[MetricRow] = []
        now_ms = int(time.time() * 1000)
        for monitor in self._monitors:
            with contextlib.suppress(Exception):
                monitor.collect_metrics()
                rows += [
                    MetricRow(f"system/{key}", float(value), now_ms, self._readings)
                    for key, value in monitor.aggregate_metrics().items()
                ]
                monitor.clear_metrics()
        self._readings += 1
        return rows
