"""Tiles in waves over the multiprocessors, streaming weights, launch floors: about seven constants per operator.

A product pays whole tiles, so one row more can cost a lot; experts pay for their own tokens, so where they go matters:

>>> from moesim.kernels import load
>>> kernels = load("h200-tile")
>>> [f"{t * 1e6:.1f} us" for t in kernels.time_s("gemm", m=[255, 256, 257], n=4096, k=4096)]
['14.9 us', '14.9 us', '16.8 us']
>>> spread, packed = kernels.time_s("moe", tokens_per_expert=[[4] * 64, [256] + [0] * 63], hidden=2048, inter=768)
>>> print(f"{spread * 1e6:.0f} us when 64 experts stream their weights, {packed * 1e6:.0f} us when one does")
173 us when 64 experts stream their weights, 40 us when one does
"""

from __future__ import annotations

from dataclasses import field, replace
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np

from moesim.kernels import ops
from moesim.kernels.domain import Domain, Domains, Names, in_ranges
from moesim.kernels.rates import Rates, Setting
from moesim.kernels.tiles import group_of
from moesim.kernels.tiles.attention import DecodeTiles, PrefillTiles
from moesim.kernels.tiles.matrix import ExpertTiles, GemmTiles, StreamTiles
from moesim.registry import part

if TYPE_CHECKING:
    from moesim.kernels.measurements import Points

# Ranges of the tables that the defaults were fitted to (fewer than 8 experts: compared only, as part of EP > 1). The
# gate is a product: measured where products are.
DOMAIN: Domains = {
    "gemm": {"m": (1, 32768), "n": (32, 65536), "k": (32, 65536)},
    "moe": {"tokens": (1, 16384 * 22), "experts": (8, 512), "hidden": (2048, 6144), "inter": (16, 16384)},
    "attention_prefill": {"batch": (1, 256), "q_len": (1, 16384), "kv_len": (1, 16384), "heads_q": (1, 96),
                          "heads_kv": (1, 64), "head_dim": (64, 256), "head_dim_v": (64, 256)},
    "attention_decode": {"batch": (1, 2048), "kv_len": (2, 131072), "heads_q": (1, 96), "heads_kv": (1, 8),
                         "head_dim": (64, 256), "head_dim_v": (64, 256)},
    "gate": {"tokens": (1, 32768), "experts": (32, 65536), "hidden": (32, 65536)},
}
GROUPS = {"gemm": "gemm", "moe": "moe", "attention_prefill": "prefill", "attention_decode": "decode",
          "elementwise": "elementwise", "gate": "gate"}  # operator -> field with its constants


@part
class Tile:
    """Predict from tiles. The defaults are the fit of ``hw_configs/kernels/h200-tile.yaml``, transferred elsewhere.

    Held-out error on H200 tables, median / mean / p90 in %: products 4.9 / 6.2 / 12, experts (EP = 1, balanced)
    4.7 / 7.4 / 18, prefill 7.2 / 10.6 / 24, decode 5.1 / 8.5 / 21; the ``roofline`` has medians of 41 / 41 / 80 / 93.

    ``fitted_on`` (part of a device's name; "": nowhere), ``fitted_dtypes``, ``measured``: where the constants were
    measured, and in which ranges; elsewhere they are carried over. ``gate``: of the kernel after the gate's product.
    """

    gemm: Annotated[GemmTiles, group_of(GemmTiles)] = GemmTiles()
    moe: Annotated[ExpertTiles, group_of(ExpertTiles)] = ExpertTiles()
    prefill: Annotated[PrefillTiles, group_of(PrefillTiles)] = PrefillTiles()
    decode: Annotated[DecodeTiles, group_of(DecodeTiles)] = DecodeTiles()
    elementwise: Annotated[StreamTiles, group_of(StreamTiles)] = StreamTiles()
    gate: Annotated[StreamTiles, group_of(StreamTiles)] = StreamTiles()
    fitted_on: str = "H200"
    fitted_dtypes: Names = ("bf16", "fp16", "mxfp4")
    measured: Domains = field(default_factory=lambda: DOMAIN)

    def time_s(self, rates: Rates, op: str, shapes: ops.Shapes) -> np.ndarray:
        """Return seconds of *op*."""
        if op == "elementwise":
            return self.elementwise.time_s(rates, shapes["bytes"])
        if op == "gate":
            return self._gate(rates, shapes)
        return getattr(self, GROUPS[op]).time_s(rates, shapes)

    def domain(self, op: str) -> Domain | None:
        """Return the ranges of the measured shapes of *op*; None if it was not measured."""
        return self.measured.get(op)

    def inside(self, op: str, shapes: ops.Shapes) -> np.ndarray:
        """Return where *shapes* lie in those ranges."""
        return in_ranges(self.domain(op), op, shapes)

    def fitted(self, points: dict[str, Points], setting: Setting, seed: int) -> Tile:
        """Return the tile model whose constants fit *points* of each operator; the others stay as they are."""
        from moesim.kernels.tiles.fit import constants_of  # scipy

        groups: dict[str, Any] = {}
        for op, rows in points.items():
            def predict(constants: Any, some: Points, op: str = op) -> np.ndarray:
                model = replace(self, **groups | {GROUPS[op]: constants})
                return model.time_s(setting.rates, op, some.complete(setting.rates))

            groups[GROUPS[op]] = constants_of(getattr(self, GROUPS[op]), predict, rows, seed)
        measured = {op: rows.ranges(setting.rates) for op, rows in points.items()}
        if "gemm" in measured and "gate" not in measured:  # a gate is a product before all else
            product = measured["gemm"]
            measured["gate"] = {"tokens": product["m"], "experts": product["n"], "hidden": product["k"]}
        return replace(self, **groups, fitted_on=setting.device, fitted_dtypes=(setting.dtype,), measured=measured)

    def _gate(self, rates: Rates, s: ops.Shapes) -> np.ndarray:
        """Return a product and one kernel that reads its logits and writes top-k choices and weights."""
        logits = {"m": s["tokens"], "n": s["experts"], "k": s["hidden"], "weight_bytes": np.asarray(rates.value_bytes)}
        choices = s["tokens"] * (s["experts"] + 2 * s["top_k"]) * rates.value_bytes
        return self.gemm.time_s(rates, logits) + self.gate.time_s(rates, choices)
