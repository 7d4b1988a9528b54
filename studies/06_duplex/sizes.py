"""What needs no stage: batches that memory holds, utilisation, area, and energy x delay x area of a product."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import setting

from moesim import config, kernels
from moesim.hardware import Device
from moesim.model import ModelSpec

PIMS = {"Bank-PIM": "bank-pim", "BankGroup-PIM": "bankgroup-pim", "Logic-PIM": "duplex"}
ROWS, COLUMNS = 16384, 4096  # of the weight of figure 8
OPS = (1, 2, 4, 8, 16, 32)   # operations per byte: tokens
# Figure 8: energy x delay x area, each column over its largest.
PUBLISHED = {"Bank-PIM": (0.08, 0.16, 0.35, 0.81, 1.00, 1.00), "BankGroup-PIM": (1.00, 1.00, 1.00, 1.00, 0.96, 0.67),
             "Logic-PIM": (0.66, 0.66, 0.65, 0.65, 0.61, 0.40)}
LOGIC_DIE_MM2 = 121  # of HBM3 (section VII)


class Identity(NamedTuple):
    """A published number that follows from sizes alone."""

    where: str
    what: str
    published: float
    tolerance: float
    ours: float


def device(name: str) -> Device:
    """Return the device *name* of the library."""
    return config.load(Device, setting.HERE.parents[1] / "hw_configs" / "devices" / f"{name}.yaml")


def batch_that_fits(model: str, devices: int, tokens: int) -> int:
    """Return how many requests of *tokens* the memory of so many devices holds beside the weights of *model*."""
    file = setting.MODELS[model].file
    folder = setting.HERE if "." in file else setting.HERE.parents[1] / "workloads" / "models"
    spec = config.load(ModelSpec, folder / (file if "." in file else f"{file}.yaml"))
    left = devices * device("duplex").memory[0].capacity - spec.total_bytes
    return int(left // (tokens * spec.kv_bytes_per_token))


def identities() -> list[Identity]:
    """Return them."""
    duplex = device("duplex")
    own, pim = duplex.processor, duplex.processors[0]
    assert pim.area_mm2 is not None
    tokens = 128 * 2 / 8  # of an expert of Mixtral with batch 128: operations per byte of its weights
    return [
        Identity("fig. 14", "batch that fits: OPT, (1024, 1024), 4 devices", 41, 3, batch_that_fits("OPT", 4, 2048)),
        Identity("fig. 16", "batch that fits: Mixtral, (4096, 4096), 2 devices", 74, 2,
                 batch_that_fits("Mixtral", 2, 8192)),
        Identity("fig. 4", "GPU's utilisation by experts of Mixtral, batch 128, %", 10.8, 0.05,
                 round(100 * tokens * own.bandwidth / own.peak["fp16"], 1)),
        Identity("sec. VII", "Logic-PIM per stack, mm2", 17.80, 0.015, 10.89 + 3.02 + 2.26 + 1.64),
        Identity("sec. VII", "of the logic die, %", 14.71, 0.005, round(100 * pim.area_mm2 / LOGIC_DIE_MM2, 2)),
        Identity("sec. IV", "Logic-PIM, TFLOP/s per stack", 21.3, 0.01, 32 * 512 * 2 * 650e6 / 1e12)]


def edap() -> pd.DataFrame:
    """Return energy x delay x area of the three processors, each number of operations per byte over its largest.

    At peak rates: the published ratios are those of ideal delays. The area of what lies on DRAM dies is derived.
    """
    found: dict[str, Any] = {}
    for name, kind in PIMS.items():
        pim = device(kind).processors[0]
        assert pim.energy is not None and pim.area_mm2 is not None
        tokens = np.array(OPS, float)
        seconds = kernels.bind(pim, "reachable", "fp16").time_s(
            "gemm", m=tokens, n=ROWS, k=COLUMNS)
        moved = 2 * (ROWS * COLUMNS + tokens * (ROWS + COLUMNS))
        joules = moved * (pim.energy.access + pim.energy.activation) + 2 * tokens * ROWS * COLUMNS * pim.energy.flop
        found[name] = joules * seconds * pim.area_mm2
    table = pd.DataFrame(found, index=list(OPS)).T
    return table / table.max()
