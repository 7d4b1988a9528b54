"""What a measurement was made on and with, as plain data to keep beside it. Reads, never sets."""

from __future__ import annotations

import datetime
import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

import moesim
from moesim.measure.target import Target, cpu_name, last_level_cache

# Names that change what is measured; nothing else of the environment is kept.
VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "KMP_AFFINITY",
             "OMP_PROC_BIND", "ONEDNN_MAX_CPU_ISA", "PYTORCH_CUDA_ALLOC_CONF", "TRITON_INTERPRET")
# Of `nvidia-smi --query-gpu`: read-only.
SMI = ("name", "driver_version", "clocks.sm", "clocks.mem", "clocks.max.sm", "clocks.max.mem", "power.draw",
       "power.limit", "temperature.gpu", "ecc.mode.current", "mig.mode.current", "pcie.link.gen.current",
       "pcie.link.width.current")


def describe(target: Target) -> dict[str, Any]:
    """Return the device, driver, versions, threads and date."""
    import torch

    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "device": target.name,
        "kind": target.kind,
        "dtype": target.dtype,
        "threads": torch.get_num_threads(),
        "ring_bytes": target.ring_bytes,
        "cpu": {"name": cpu_name(), "logical": os.cpu_count(), "last_level_cache_bytes": last_level_cache(),
                "load_average": _load(), "capability": torch.backends.cpu.get_cpu_capability()},
        "system": platform.platform(),
        "versions": {"moesim": moesim.__version__, "python": platform.python_version(), "torch": torch.__version__,
                     "cuda": torch.version.cuda, "triton": _version("triton"),
                     "cudnn": torch.backends.cudnn.version() if target.kind == "cuda" else None},
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
        "gpu": smi() if target.kind == "cuda" else None,
        "numa_nodes": len(list(Path("/sys/devices/system/node").glob("node[0-9]*"))),
    }


def smi() -> dict[str, str] | None:
    """Return what ``nvidia-smi`` says of the first GPU, clocks and temperature too; None where it does not answer.

    A driver that does not know one of the names answers none of them: it is asked for the first two then.
    """
    program = shutil.which("nvidia-smi")
    for names in (SMI, SMI[:2]) if program else ():
        command = [str(program), f"--query-gpu={','.join(names)}", "--format=csv,noheader", "--id=0"]
        try:
            answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
        except (subprocess.SubprocessError, OSError):
            continue
        return dict(zip(names, (value.strip() for value in answer.stdout.split(",")), strict=False))
    return None


def details() -> list[str]:
    """Return the lines of ``nvidia-smi -q`` on clocks, ECC, power and why clocks are low; none if it does not answer.

    Its other sections name the machine (serial numbers, processes): they are not asked for.
    """
    command = [shutil.which("nvidia-smi") or "", "-q", "-d", "CLOCK,ECC,POWER,PERFORMANCE,TEMPERATURE", "--id=0"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=20, check=True)
    except (subprocess.SubprocessError, OSError):
        return []
    return [line.rstrip() for line in answer.stdout.splitlines() if line.strip()]


def busy() -> str:
    """Return a warning if other programs want as many processors as this one leaves free; "" if not."""
    load, processors = _load(), os.cpu_count() or 1
    if load is None or load <= processors + 0.5:
        return ""
    return (f"the machine is busy: {load:g} processes want {processors} processors (mean of the last minute); times "
            f"are too long, measure again when it is idle")


def _load() -> float | None:
    """Return the mean number of running processes over the last minute: a machine that is not idle measures badly."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def _version(package: str) -> str | None:
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
