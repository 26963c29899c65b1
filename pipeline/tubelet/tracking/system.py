"""Samples of the machine, by MLflow's own monitors (psutil, and NVML where it is installed)."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from tubelet.tracking.store import load_mlflow

EVERY_S = 10.0  # a sample costs about a millisecond


class SystemSampler:
    """Calls ``put`` with ``system/…`` values every ten seconds until stopped."""

    def __init__(self, put: Callable[[Mapping[str, float]], None], every_s: float = EVERY_S) -> None:
        self._put, self._every_s = put, every_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="system-metrics", daemon=True)

    def start(self) -> None:
        """Begin to sample."""
        self._thread.start()

    def stop(self) -> None:
        """Stop; waits for a sample under way."""
        self._stop.set()
        self._thread.join(timeout=5)

    def _run(self) -> None:
        monitors = _monitors()
        while not self._stop.wait(self._every_s):
            values: dict[str, float] = {}
            for monitor in monitors:
                # A machine may lack what one monitor reads (no disk counters in a container): leave it out.
                with suppress(Exception):
                    monitor.collect_metrics()
                    values |= monitor.aggregate_metrics()
                    monitor.clear_metrics()
            self._put({f"system/{name}": float(value) for name, value in values.items()})


def _monitors() -> list[Any]:
    load_mlflow()
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    monitors = []
    for kind in (CPUMonitor, DiskMonitor, NetworkMonitor, GPUMonitor):
        with suppress(Exception):
            monitors.append(kind())
    return monitors
