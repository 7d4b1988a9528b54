"""Counters of energy, where one may be read (RAPL for CPU packages, NVML for a GPU), and sensors. Reads only."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

from moesim.measure.point import Unavailable

RAPL = Path("/sys/class/powercap")


def counter(kind: str) -> Callable[[], float]:
    """Return what reads the joules used so far. Raises ``Unavailable`` with the reason if there is nothing to read."""
    return _rapl() if kind == "cpu" else _nvml()


def _rapl(folder: Path = RAPL) -> Callable[[], float]:
    """Return the sum of all packages; their counters wrap around, which the sum takes out."""
    packages = sorted(folder.glob("intel-rapl:[0-9]"))  # the driver's name on AMD processors too
    if not packages:
        raise Unavailable(f"no energy counter in {folder}")
    last: list[float] = []
    total = 0.0
    try:
        ranges = [float((p / "max_energy_range_uj").read_text()) for p in packages]
        last = [float((p / "energy_uj").read_text()) for p in packages]
    except OSError as error:
        raise Unavailable(f"the energy counter may not be read: {error}") from None

    def read() -> float:
        nonlocal total
        for i, package in enumerate(packages):
            now = float((package / "energy_uj").read_text())
            total += (now - last[i]) % ranges[i]
            last[i] = now
        return total * 1e-6

    return read


def sensors(kind: str) -> Callable[[], dict[str, float]]:
    """Return what reads a GPU's clocks, power and temperature as columns; nothing where they may not be read."""
    if kind == "cpu":
        return dict
    try:
        import pynvml

        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    except Exception:  # no package, no library, no right: times are worth measuring without
        return dict
    found: dict[str, Callable[[], float]] = {
        "x_sm_mhz": lambda: pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM),
        "x_memory_mhz": lambda: pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_MEM),
        "x_power_now_w": lambda: pynvml.nvmlDeviceGetPowerUsage(handle) * 1e-3,
        "x_celsius": lambda: pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU)}

    def read() -> dict[str, float]:
        values = {}
        for name, value in found.items():
            with contextlib.suppress(pynvml.NVMLError):
                values[name] = float(value())
        return values

    return read


def _nvml() -> Callable[[], float]:
    try:
        import pynvml
    except ModuleNotFoundError:
        raise Unavailable("pynvml is not installed; pip install nvidia-ml-py") from None
    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(0)
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except pynvml.NVMLError as error:
        raise Unavailable(f"the GPU has no energy counter: {error}") from None
    return lambda: float(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)) * 1e-3  # millijoules
