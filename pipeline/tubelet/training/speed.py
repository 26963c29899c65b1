"""How much of the hardware's arithmetic training uses."""

from __future__ import annotations

import time

import torch

from tubelet.vivit import ViViTConfig, gmacs

# Dense peak of the vendors' data sheets, FLOP/s: (bf16 or fp16 with tensor cores, float32 without TF32).
_DATA_SHEETS: dict[str, tuple[float, float]] = {
    "H200": (989e12, 67e12),
    "H100 PCIe": (756e12, 51e12),
    "H100": (989e12, 67e12),
    "A100": (312e12, 19.5e12),
    "L40S": (362e12, 91.6e12),
    "L4": (121e12, 30.3e12),
    "A10": (125e12, 31.2e12),
    "V100": (125e12, 15.7e12),
    "T4": (65e12, 8.1e12),
}


def train_flops(config: ViViTConfig) -> float:
    """Floating point operations of one clip's training step: forward, and twice that backward."""
    return 3 * 2 * gmacs(config) * 1e9


def peak_flops(device: torch.device, precision: str) -> float | None:
    """Peak of one device: a GPU's by its data sheet (None: unknown), a CPU's by a short measurement."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        found = next((peaks for key, peaks in _DATA_SHEETS.items() if key in name), None)
        return None if found is None else found[precision == "float32"]
    return _measured_flops(precision)


def _measured_flops(precision: str, size: int = 768, tries: int = 4) -> float:
    """The best of a few matrix products, with the threads that training has."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a = torch.ones(size, size, dtype=dtype)
    best_s = float("inf")
    for _ in range(tries):
        started_s = time.perf_counter()
        torch.mm(a, a)
        best_s = min(best_s, time.perf_counter() - started_s)
    return 2 * size**3 / best_s
