"""Kernel models as files: a device, a model with its fitted constants, and where they come from."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field, model_validator
from ruamel.yaml import YAML

from moesim import config, registry, whole
from moesim.hardware import Device
from moesim.kernels.accuracy import Accuracy, Noise
from moesim.kernels.model import KernelModel
from moesim.kernels.rates import rates
from moesim.kernels.stored import Stored
from moesim.layers import Dtype
from moesim.registry import Part, suggest

FOLDER = "hw_configs/kernels"
_DATA = "data"  # parameter of a model that names a Parquet file


class KernelFile(config.Spec):
    """What a file in ``hw_configs/kernels`` holds.

    ``accuracy``: error on points that were not fitted; ``training``: on those that were; ``noise``: between two
    measurements of one point. ``transferred_from``: name of the file whose model is used with this device's own peaks,
    in place of ``model``: nothing was measured here.
    """

    name: str
    source: str
    dtype: Dtype = "bf16"
    device: Annotated[Device, config.Named("hw_configs/devices")]
    model: Annotated[Any, Part("kernel_model", optional=True)] = None
    transferred_from: str = ""
    accuracy: dict[str, Accuracy] = Field(default_factory=dict)
    training: dict[str, Accuracy] = Field(default_factory=dict)
    noise: dict[str, Noise] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _says_one_model(self) -> KernelFile:
        if (self.model is None) == (not self.transferred_from):
            raise ValueError("give a model, or the name of the kernels it is transferred_from; one of the two")
        return self


def load(name_or_path: str | Path) -> KernelModel:
    """Return the kernel model of a file: a name in ``hw_configs/kernels`` such as ``h200-tile``, or a path.

    Raises ``ValueError`` if there is no such file, ``ConfigError`` (one too) with all mistakes in it.
    """
    path = _find(name_or_path)
    document = config.read(path)
    _place_data(document)
    file = config.build(KernelFile, document)
    info = {"name": file.name, "source": file.source, "transferred_from": file.transferred_from} | {
        kind: {op: found.model_dump() for op, found in getattr(file, kind).items()}
        for kind in ("accuracy", "training", "noise")}
    model = file.model if file.model is not None else _origin(file, path).model
    return KernelModel(rates(file.device.processor, file.dtype), model, file.dtype, info, file.device)


def save(kernels: KernelModel, path: str | Path, source: str = "") -> list[Path]:
    """Write *kernels* (made by ``fit``) to *path*, a YAML file, and what is too long for it to Parquet beside it.

    *source* says in words where the measurements are from (added to what they say themselves). Returns the files.
    Raises ``ValueError`` if the device is not known or the name does not end in .yaml.
    """
    path = Path(path)
    if path.suffix != ".yaml":
        raise ValueError(f"{path}: kernels are written as YAML; end the name in .yaml")
    if kernels.device is None:
        raise ValueError("the kernels do not say which device they are of; fit them with a Device, or its name")
    stored = getattr(kernels.model, _DATA, Stored())
    written = []
    model: Any = kernels.model
    if stored:
        data = path.with_suffix(".parquet")
        written.append(data)
        model = dataclasses.replace(model, **{_DATA: Stored()})
    described = _plain(registry.dump(model) | ({_DATA: path.with_suffix(".parquet").name} if stored else {}))
    text = {"name": path.stem, "source": "; ".join(filter(None, (source, kernels.info.get("source", "")))),
            "dtype": kernels.dtype, "device": _device(kernels.device), "model": described}
    text |= {kind: {op: _plain(found if isinstance(found, dict) else found.model_dump())
                    for op, found in kernels.info[kind].items()}
             for kind in ("accuracy", "training", "noise") if kernels.info.get(kind)}
    yaml, buffer = YAML(), io.StringIO()
    yaml.width, yaml.default_flow_style = 160, None  # innermost mappings on one line
    yaml.dump(text, buffer)
    path.parent.mkdir(parents=True, exist_ok=True)
    if stored:
        table = io.BytesIO()
        stored.table.to_parquet(table, index=False, compression="zstd")
        whole.file(path.with_suffix(".parquet"), table.getvalue())
    whole.file(path, buffer.getvalue().encode())
    return [path, *written]


def _device(device: Device) -> Any:
    """Return the name of *device* if the library has it, else all of it."""
    names = [name for name in config.library_names("hw_configs/devices")
             if any(config.load(Device, file) == device for root in config.library_roots()
                    if (file := root / "hw_configs/devices" / f"{name}.yaml").is_file())]
    return names[0] if names else device.dump()


def _plain(value: Any) -> Any:
    """Return *value* as YAML writes it shortly: numbers with six digits, tuples as lists."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, float | np.floating):
        short = float(f"{value:.6g}")
        return int(short) if short.is_integer() and abs(short) < 1e15 else short
    return value


def _place_data(document: config.Document) -> None:
    """Make the Parquet file that a model names the one beside the YAML file, if there is one."""
    model = document.data.get("model") if isinstance(document.data, dict) else None
    if isinstance(model, dict) and isinstance(model.get(_DATA), str):
        beside = document.folder / model[_DATA]
        model[_DATA] = str(beside) if beside.is_file() else model[_DATA]


def _origin(file: KernelFile, path: Path) -> KernelModel:
    try:
        origin = load(file.transferred_from)
    except ValueError as error:
        raise file.error("transferred_from", str(error)) from None
    return origin


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
