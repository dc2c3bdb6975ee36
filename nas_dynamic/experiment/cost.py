"""What a training costs: wall time, peak memory, and energy where the machine can tell."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from nas_dynamic.report.records import Cost

__all__ = ["CostMeter"]

POWERCAP = Path("/sys/class/powercap")
STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")

Counter = tuple[str, Callable[[], int], int]
"""What is measured, microjoules so far, and the number at which they start anew."""


class CostMeter:
    """Measures from when it is made on, over all starts of a work that is stopped and resumed.

    Peak memory is that of the device on CUDA, else that of this process, Python, torch and images
    included; on Linux its peak is reset when the meter is made. Energy is that of whole
    processors (RAPL) and of the whole GPU (NVML), whatever else runs there.

    Args:
        device: that the work runs on.
        before: what the work had cost when it was stopped: what `result` gave then.
        powercap: folder of Linux's RAPL counters.
    """

    def __init__(
        self,
        device: torch.device,
        *,
        before: Cost | None = None,
        powercap: Path = POWERCAP,
    ) -> None:
        self.device = device
        self._counters = _rapl(powercap) + _nvml(device)
        self._seen = [read() for _, read, _ in self._counters]
        self._microjoules = 0
        self._before = before
        self._reset = _reset_peak(device)
        self._started = time.perf_counter()

    def update(self) -> None:
        """Read the energy counters; often enough that none goes round twice in between."""
        for number, (_, read, limit) in enumerate(self._counters):
            now = read()
            self._microjoules += (now - self._seen[number]) % limit
            self._seen[number] = now

    def result(self) -> Cost:
        """Return the cost so far."""
        self.update()
        before, sources = self._before, [name for name, _, _ in self._counters]
        joules = self._microjoules / 1e6 if sources else None
        if before is not None and joules is not None:
            # A part of the work ran where nothing could be read: its energy is not known.
            joules = joules + before.joules if before.joules is not None else None
        peaks = [peak for peak in (_peak(self.device), before and before.peak_memory) if peak]
        kind = "process" if self._reset else "process since its start"
        return Cost(
            seconds=time.perf_counter() - self._started + (before.seconds if before else 0.0),
            peak_memory=max(peaks, default=None),
            memory_of="device" if self.device.type == "cuda" else kind,
            joules=joules,
            energy_of=sources if joules is not None else [],
        )


def _rapl(powercap: Path) -> list[Counter]:
    """Return the processors' counters; for root only, on most machines."""
    counters: list[Counter] = []
    for folder in sorted(powercap.glob("intel-rapl:*")):
        path = folder / "energy_uj"
        try:
            name = (folder / "name").read_text().strip()
            limit = int((folder / "max_energy_range_uj").read_text()) + 1
            int(path.read_text())
        except OSError:
            continue
        # The others are parts of a package, or of the platform, which has it as a part.
        if name.startswith("package"):
            counters.append((f"{name} (RAPL)", lambda p=path: int(p.read_text()), limit))  # type: ignore[misc]
    return counters


def _nvml(device: torch.device) -> list[Counter]:
    if device.type != "cuda":
        return []
    try:
        import pynvml

        pynvml.nvmlInit()
        uuid = torch.cuda.get_device_properties(device).uuid
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}".encode())
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except ImportError:
        return []
    except pynvml.NVMLError:  # such as a GPU before Volta, which does not count
        return []

    def read() -> int:
        return 1000 * int(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle))

    return [("GPU (NVML)", read, 2**64)]


def _reset_peak(device: torch.device) -> bool:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    try:
        CLEAR_REFS.write_text("5")
    except OSError:
        return False
    return True


def _peak(device: torch.device) -> int | None:
    """Return bytes; None if unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if STATUS.exists():
        lines = STATUS.read_text().splitlines()
        peaks = (1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
        return next(peaks, None)  # some sandboxes do not tell it
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
