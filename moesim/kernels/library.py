"""Kernel models as files: a device, a model with its fitted constants, and where they come from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from moesim import config
from moesim.hardware import Device
from moesim.kernels.model import KernelModel
from moesim.kernels.rates import rates
from moesim.layers import Dtype
from moesim.registry import Part, suggest


class Accuracy(config.Spec):
    """Held-out error of one operator: absolute relative error in percent, signed bias, rows compared."""

    median: float = Field(ge=0)
    mean: float = Field(ge=0)
    p90: float = Field(ge=0)
    bias: float
    rows: int = Field(gt=0)


class KernelFile(config.Spec):
    """What a file in ``hw_configs/kernels`` holds."""

    name: str
    source: str
    dtype: Dtype = "bf16"
    device: Annotated[Device, config.Named("hw_configs/devices")]
    model: Annotated[Any, Part("kernel_model")]
    accuracy: dict[str, Accuracy] = Field(default_factory=dict)


FOLDER = "hw_configs/kernels"


def load(name_or_path: str | Path) -> KernelModel:
    """Return the kernel model of a file: a name in ``hw_configs/kernels`` such as ``h200-tile``, or a path.

    Raises ``ValueError`` if there is no such file, ``ConfigError`` (one too) with all mistakes in it.
    """
    file = config.load(KernelFile, _find(name_or_path))
    info = {"name": file.name, "source": file.source,
            "accuracy": {op: accuracy.model_dump() for op, accuracy in file.accuracy.items()}}
    return KernelModel(rates(file.device.processor, file.dtype), file.model, file.dtype, info)


def _find(name_or_path: str | Path) -> Path:
    """Return the file that *name_or_path* means: a path that exists, else a name of the library."""
    if Path(name_or_path).is_file():
        return Path(name_or_path)
    for root in config.library_roots():
        file = root / FOLDER / f"{name_or_path}.yaml"
        if file.is_file():
            return file
    raise ValueError(f"no kernels {str(name_or_path)!r} in {FOLDER}, and no such file"
                     f"{suggest(str(name_or_path), config.library_names(FOLDER))}")
