"""The machine that is measured, as a block sees it when it makes points and buffers."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from moesim.kernels import KernelModel, ops
from moesim.kernels.models.roofline import Roofline
from moesim.kernels.rates import Rates
from moesim.layers import DTYPE_BYTES
from moesim.measure.point import Point

Kind = Literal["cpu", "cuda"]
# A ring of buffers this large empties every cache of a GPU (the L2 of an H200 has 50 MB; five times that).
CUDA_RING = 256e6
DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
# Until ceilings are measured, from which times of points are guessed: a slow core and slow memory (assumed).
GUESS = {"cpu": (20e9, 8e9), "cuda": (400e12, 2e12)}
# The share of these ceilings that a typical call reaches (assumed; corrected by what calls really take).
REACHED = 0.5


@dataclass(frozen=True)
class Target:
    """Device, dtype and sizes.

    ``memory_bytes``: what buffers may use. ``ring_bytes``: buffers of this size empty all caches. ``threads``: of
    PyTorch on the CPU; on a GPU its multiprocessors. ``flop_per_s``, ``bytes_per_s``: rough rates, to guess times from.
    """

    kind: Kind
    name: str
    dtype: str
    memory_bytes: float
    ring_bytes: float
    threads: int
    flop_per_s: float
    bytes_per_s: float

    @property
    def value_bytes(self) -> float:
        """Bytes of a value."""
        return DTYPE_BYTES[self.dtype]

    @property
    def torch_dtype(self) -> Any:
        """Return the dtype as PyTorch has it."""
        import torch

        return getattr(torch, DTYPES[self.dtype])

    def guess_s(self, point: Point) -> float:
        """Return about how long one call of *point* takes."""
        if point.guess_s:
            return point.guess_s
        if point.op not in ops.OPS:
            raise ValueError(f"{point.op}: not an operator of moesim.kernels; its points need a guess_s")
        value = self.value_bytes
        rates = Rates(self.flop_per_s, self.bytes_per_s, self.threads, value, value)
        seconds = float(KernelModel(rates, Roofline()).time_s(point.op, **point.shapes))
        return seconds / REACHED + (2e-5 if self.kind == "cpu" else 5e-6)

    def guess_copy_s(self, moved: float) -> float:
        """Return about how long reading and writing *moved* bytes takes."""
        return moved / self.bytes_per_s / REACHED + 1e-5


def find(kind: Kind, dtype: str = "", threads: int = 0) -> Target:
    """Return the CPU or the first CUDA GPU of this machine; *dtype* "" is fp32 on a CPU and bf16 on a GPU.

    Raises ``ValueError`` if it is not there, or for a dtype that PyTorch cannot multiply on it.
    """
    import torch

    dtype = dtype or ("fp32" if kind == "cpu" else "bf16")
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r} cannot be measured; use one of {', '.join(DTYPES)}")
    flop, moved = GUESS[kind]
    free: float
    if kind == "cuda":
        if not torch.cuda.is_available():
            raise ValueError("no CUDA GPU that PyTorch can use; measure with --device cpu, or install a CUDA PyTorch")
        about = torch.cuda.get_device_properties(0)
        free, _ = torch.cuda.mem_get_info()
        return Target("cuda", about.name, dtype, 0.9 * free, max(CUDA_RING, 4.0 * about.L2_cache_size),
                      about.multi_processor_count, flop, moved)
    if threads:
        torch.set_num_threads(threads)
    free = _available_bytes()
    return Target("cpu", cpu_name(), dtype, 0.5 * free, min(2.0 * last_level_cache(), 0.2 * free),
                  torch.get_num_threads(), flop, moved)


def cpu_name() -> str:
    """Return what /proc/cpuinfo calls the processor; "CPU" where that file is not."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return "CPU"
    names = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
    return names[0] if names else "CPU"


def last_level_cache(folder: Path = Path("/sys/devices/system/cpu/cpu0/cache")) -> float:
    """Return the bytes of the largest cache that Linux lists; 64 MB (assumed, larger than most) where it lists none."""
    sizes = []
    for file in sorted(folder.glob("index*/size")):
        text = file.read_text(encoding="utf-8").strip()
        unit = {"K": 1024.0, "M": 1024.0**2, "G": 1024.0**3}.get(text[-1:])
        sizes.append(float(text[:-1]) * unit if unit else float(text))
    return max(sizes, default=64e6)


def _available_bytes() -> float:
    """Return the memory that Linux says is available; half of what is installed where it does not say."""
    try:
        for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("MemAvailable:"):
                return float(line.split()[1]) * 1024
    except OSError:
        pass
    return 0.5 * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
