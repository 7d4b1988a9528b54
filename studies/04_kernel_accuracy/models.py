"""The error of every model on every operator, on shapes that were not fitted (the split that ``calibrate`` makes)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
import setting

from moesim.kernels import fitting
from moesim.kernels.measurements import Points

RANGES_S = {"below 10 us": (0, 1e-5), "10 to 100 us": (1e-5, 1e-4), "0.1 to 1 ms": (1e-4, 1e-3),
            "above 1 ms": (1e-3, np.inf)}  # measured time, by which rows are grouped


def tasks() -> list[tuple[str]]:
    """Return the operators."""
    return [(op,) for op in setting.OPERATORS]


def table(folder: str, op: str) -> pd.DataFrame:
    """Return a row per model of *op* and part of the held-out rows."""
    rows = setting.points(folder, op)
    split = fitting.split(rows)
    fit, rest = rows.take(split == "fit"), rows.take(split != "fit")
    found = []
    for name, kernels in setting.all_models(fit, shipped=True).items():
        for part, some in parts(rest):
            inside = float(np.mean(kernels.in_domain(op, **some.shapes)))
            found.append({"op": op, "part": part, "model": name, "fitted": len(fit), **setting.error(kernels, some),
                          "inside": inside})
    return pd.DataFrame(found)


def parts(rows: Points) -> Iterator[tuple[str, Points]]:
    """Yield parts of *rows* with their names: all, by devices that share the experts, by measured time."""
    yield "all", rows
    if rows.op == "moe":
        alone = (rows.table["x_ep"] == 1).to_numpy()
        yield "one device", rows.take(alone)
        yield "several devices", rows.take(~alone)
    for name, (low, high) in RANGES_S.items():
        some = rows.take((rows.seconds >= low) & (rows.seconds < high))
        if len(some):
            yield name, some
