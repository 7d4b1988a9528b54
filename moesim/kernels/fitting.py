"""From measurements to a kernel model: split by shape before anything is fitted, fit, judge on what was not fitted."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from moesim import config, registry
from moesim.hardware import Device, Processor
from moesim.kernels import ops
from moesim.kernels.accuracy import Accuracy, Noise, accuracy
from moesim.kernels.measurements import LOADS, SHAPES, MeasurementError, Measurements, Points
from moesim.kernels.model import KernelModel
from moesim.kernels.models.roofline import Roofline
from moesim.kernels.rates import Setting, rates

DEVICES = "hw_configs/devices"
PARTS = ("fit", "test", "reserve")
_ONE_KERNEL = {"gemm", "moe", "attention_prefill", "attention_decode"}  # a model predicts one kernel of each
_SHARES = (650, 850)  # per mille: fit below the first, test below the second, the rest is for a last look


def fit(measurements: Measurements, hardware: Any, model: Any = "tile", seed: int = 0,
        dtype: str | None = None) -> KernelModel:
    """Return the kernel *model* (a part, its name, or a mapping) fitted to *measurements* on *hardware*.

    *hardware*: a name in ``hw_configs/devices``, a ``Device`` or a ``Processor``. Only rows of *dtype* count (default:
    the one that all rows have). A shape is fitted or judged, never both: see ``split``. ``info`` of the result has the
    errors on rows that were fitted (``training``), on those of ``test`` (``accuracy``), the noise floor of points that
    were measured again (``noise``), and the source. Raises ``ValueError``; ``ModuleNotFoundError`` without scikit-learn
    where a model needs it.
    """
    device, processor = device_of(hardware)
    dtype = dtype or _only(measurements.table["dtype"], "data type (dtype)")
    measurements = measurements.only(dtype=dtype)
    if not measurements.ops():
        raise MeasurementError(f"no usable rows of {dtype}; kernels of these operators can be fitted: "
                               f"{', '.join(ops.OPS)}")
    bound = rates(processor, dtype)
    measurements.check_peaks(bound)
    points = {op: measurements.of(op) for op in measurements.ops()}
    for op in _ONE_KERNEL & points.keys():
        _only(points[op].table["impl"], f"kernel (impl) for {op}")
        _only(points[op].table["cold"], f"cold for {op}")
    parts = {op: split(rows) for op, rows in points.items()}
    setting = Setting(bound, device.name if device else _only(measurements.table["device"], "device"), dtype)
    fitted = registry.make("kernel_model", model).fitted(
        {op: rows.take(parts[op] == "fit") for op, rows in points.items()}, setting, seed)
    kernels = KernelModel(bound, fitted, dtype, device=device)
    kernels.info.update(
        source=_source(measurements), noise=noise(measurements), training=judge(kernels, measurements, ("fit",)),
        accuracy=judge(kernels, measurements, ("test",)))
    return kernels


def device_of(hardware: Any) -> tuple[Device | None, Any]:
    """Return the device that *hardware* means, if it says one, and its processor. Raises ``ValueError``."""
    if isinstance(hardware, str | Path):
        file = Path(hardware)
        if file.suffix not in (".yaml", ".yml"):
            named = [root / DEVICES / f"{hardware}.yaml" for root in config.library_roots()]
            file = next((f for f in named if f.is_file()), file)
        if not file.is_file():
            raise ValueError(f"no device {str(hardware)!r} in {DEVICES}, and no such file"
                             f"{registry.suggest(str(hardware), config.library_names(DEVICES))}")
        hardware = config.load(Device, file)
    if isinstance(hardware, Device):
        return hardware, hardware.processor
    if not isinstance(hardware, Processor):
        raise ValueError(f"{hardware!r} is no device; give a name in {DEVICES}, a Device or a Processor")
    return None, hardware


def split(points: Points) -> np.ndarray:
    """Return the part of each point, ``fit``, ``test`` or ``reserve``: what its row says, else by a hash of its shape.

    Equal shapes have equal parts whatever else differs: 65 % fit, 20 % test, 15 % reserve.
    """
    columns = pd.DataFrame({name: points.table[LOADS].map(_hash) if name == LOADS else points.shapes[name]
                            for name in SHAPES if name in points.shapes})
    bucket = pd.util.hash_pandas_object(columns, index=False).to_numpy() % np.uint64(1000)
    hashed = np.array(PARTS)[np.searchsorted(_SHARES, bucket, side="right")]
    return np.where(points.table["split"] != "", points.table["split"], hashed)


def judge(kernels: KernelModel, measurements: Measurements, parts: tuple[str, ...] = PARTS) -> dict[str, Accuracy]:
    """Return the error of *kernels* on the points of *measurements* in *parts*, by operator (those with points)."""
    found = {}
    for op in measurements.ops():
        points = measurements.of(op)
        points = points.take(np.isin(split(points), parts))
        if len(points):
            found[op] = accuracy(kernels.time_s(op, **points.shapes), points.seconds)
    return found


def noise(measurements: Measurements, again: Measurements | None = None) -> dict[str, Noise]:
    """Return how far repeated measurements of one shape are from each other: what no model can beat.

    Repeats are the sentinels of *measurements*, each against the first, or the same shapes in *again*.
    """
    found = {}
    for op in measurements.ops():
        first = _timed(measurements, op, sentinel=again is None)
        second = first if again is None else _timed(again, op, sentinel=False)
        both = first.drop_duplicates("key").merge(second, on="key", suffixes=("", "_again"))
        both = both[both["row"] != both["row_again"]] if again is None else both
        if len(both):
            apart = accuracy(both["time_s_again"].to_numpy(), both["time_s"].to_numpy())
            found[op] = Noise(median=apart.median, mean=apart.mean, p90=apart.p90, source=(
                f"{len(both)} {'repeats' if again is None else 'points of a second collection'}"))
    return found


def _timed(measurements: Measurements, op: str, sentinel: bool) -> pd.DataFrame:
    """Return key of the shape, seconds and row of the points of *op*."""
    points = measurements.of(op)
    table = points.table[points.table["sentinel"]] if sentinel else points.table
    if table.empty:
        return pd.DataFrame({"key": pd.Series(dtype=str), "time_s": [], "row": []})
    names = [*(["impl", "cold"] if sentinel else []), *(n for n in points.shapes if n != LOADS)]
    key = table[names].astype(str).agg(" ".join, axis=1)
    if LOADS in points.shapes:
        key += " " + table[LOADS].map(_hash).astype(str)
    return pd.DataFrame({"key": key, "time_s": table["time_s"], "row": table["row"]})


def _hash(loads: Any) -> int:
    """Return a number for the tokens of experts, whichever of them has which."""
    return zlib.crc32(np.sort(np.asarray(loads, dtype=np.float64))[::-1].tobytes())


def _only(values: pd.Series, what: str) -> str:
    found = sorted(set(values))
    if len(found) != 1:
        raise MeasurementError(f"the rows have several values of {what}: {', '.join(map(repr, found))}; keep one "
                               "(measurements.only; calibrate --impl, --cold, --dtype)")
    return str(found[0])


def _source(measurements: Measurements) -> str:
    table = measurements.table[measurements.table["status"] == "ok"]
    sources = ", ".join(sorted(filter(None, set(table["source"])))) or "not recorded"
    kernels = {op: ", ".join(sorted(filter(None, set(rows["impl"])))) for op, rows in table.groupby("op")}
    return f"{sources}; kernels: " + "; ".join(f"{op} {names or 'not recorded'}" for op, names in kernels.items())


def compared(kernels: KernelModel, measurements: Measurements) -> pd.DataFrame:
    """Return a row per usable point: op, split, measured_s, predicted_s, roofline_s (of the device's peaks), inside."""
    frames = []
    for op in measurements.ops():
        points = measurements.of(op)
        frames.append(pd.DataFrame({
            "op": op, "split": split(points), "measured_s": points.seconds,
            "predicted_s": kernels.time_s(op, **points.shapes),
            "roofline_s": KernelModel(kernels.rates, Roofline()).time_s(op, **points.shapes),
            "inside": np.broadcast_to(kernels.in_domain(op, **points.shapes), points.seconds.shape)}))
    return pd.concat(frames, ignore_index=True)
