"""Fit the constants of the ``tile`` kernel model to the H200 tables: ``python tests/external/fit_tile.py [folder]``.

Minimises the mean |log(predicted / measured)| over rows drawn evenly over octaves of time (or small launch-bound rows,
which are most of the tables, would decide everything), by Nelder-Mead over the logarithms of the constants. Prints
what belongs into ``hw_configs/kernels/h200-tile.yaml`` with the errors on the rows that were not fitted.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import kernel_tables
import numpy as np
from scipy.optimize import minimize

from moesim.config import load
from moesim.hardware import Device
from moesim.kernels import bind
from moesim.kernels.model import KernelModel
from moesim.kernels.models.tile import Tile
from moesim.units import text

REPO = Path(__file__).resolve().parents[2]
GROUPS = {"gemm": "gemm", "moe": "moe", "attention_prefill": "prefill", "attention_decode": "decode"}
SECONDS = {"launch", "split", "sequence"}
# Upper limits of shares. Memory: 0.9, the best single kernel of the tables (4.29 of 4.8 TB/s).
LIMITS = {"compute": 1.0, "wave": 1.0, "stream": 0.9, "write": 0.9, "elementwise": 0.9, "alone": 0.9, "unaligned": 1.0}
FIXED = {"split_below", "unpack"}  # FlashAttention-3's rule for splitting; no weight of these tables is unpacked
PER_OCTAVE = 300


def fitted(op: str, rows: kernel_tables.Rows, kernels: KernelModel) -> Any:
    """Return the constants of *op* that predict *rows* best, starting from the defaults."""
    start = getattr(Tile(), GROUPS[op])
    names = [f.name for f in dataclasses.fields(start) if f.name not in FIXED]
    origin = np.array([getattr(start, n) for n in names])

    def constants(z: np.ndarray) -> Any:
        values = {n: min(float(v), LIMITS.get(n, np.inf)) for n, v in zip(names, origin * np.exp(z), strict=True)}
        return type(start)(**{n: text(v, "second") if n in SECONDS else v for n, v in values.items()})

    def loss(z: np.ndarray) -> float:
        model = dataclasses.replace(kernels, model=Tile(**{GROUPS[op]: constants(z)}))
        return float(np.abs(np.log(model.time_s(op, **rows.shapes) / rows.seconds)).mean())

    best = np.zeros(len(names))
    for _ in range(3):  # restarts: a collapsed simplex is not a minimum
        simplex = best + 0.3 * np.vstack([np.zeros(len(names)), np.eye(len(names))])
        best = minimize(loss, best, method="Nelder-Mead", options={
            "maxfev": 600, "initial_simplex": simplex, "xatol": 1e-3, "fatol": 1e-5}).x
    return constants(best)


def even(rows: kernel_tables.Rows, seed: int = 0) -> kernel_tables.Rows:
    """Return at most ``PER_OCTAVE`` rows of each octave of time."""
    rng = np.random.default_rng(seed)
    octave = np.floor(np.log2(rows.seconds))
    chosen = [rng.permutation(np.flatnonzero(octave == o))[:PER_OCTAVE] for o in np.unique(octave)]
    mask = np.zeros(len(octave), bool)
    mask[np.concatenate(chosen)] = True
    return rows.take(mask)


def main() -> None:
    """Fit every operator and print constants and held-out errors."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else REPO.parent / "shared" / "data"
    kernels = bind(load(Device, REPO / "hw_configs/devices/h200.yaml").processor, "tile", "bf16")
    for op, group in GROUPS.items():
        rows = kernel_tables.read(folder, op)
        fit, test = kernel_tables.split(rows)
        if op == "moe":  # with EP > 1 the table's kernel also touches rows of other devices
            fit = fit.take((fit.table.moe_ep_size == 1).to_numpy())
        found = fitted(op, even(fit), kernels)
        print(f"{group}: {found}")
        model = dataclasses.replace(kernels, model=Tile(**{group: found}))
        for name, part in _parts(op, test).items():
            print(f"  {name}: {kernel_tables.errors(model.time_s(op, **part.shapes), part.seconds)}", flush=True)


def _parts(op: str, test: kernel_tables.Rows) -> dict[str, kernel_tables.Rows]:
    """Return the groups of held-out rows that are worth a line of their own."""
    if op == "moe":
        alone = (test.table.moe_ep_size == 1).to_numpy()
        return {"EP = 1": test.take(alone), "EP > 1": test.take(~alone)}
    return {"all": test, "over 50 us": test.take(test.seconds > 50e-6)}


if __name__ == "__main__":
    main()
