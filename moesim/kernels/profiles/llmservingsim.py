"""A profile folder of LLMServingSim: layers timed in vLLM, attention of mixed and uneven batches, activated experts.

It holds one folder per tensor-parallel degree (``tp1``) with dense.csv, per_sequence.csv, attention.csv, skew.csv and,
for a model with experts, moe.csv (github.com/casys-kaist/LLMServingSim, profiles/<gpu>/<org>/<model>/<dtype>):

>>> Llmservingsim(path="bf16").read(tp=1)
Traceback (most recent call last):
ValueError: bf16/tp1: no such folder; give the folder of a model's profile that holds tp1
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd

from moesim.kernels.layer_profile import Curve, ExpertTable, LayerProfile
from moesim.kernels.mixed_attention import MixedAttention, Spread
from moesim.registry import part

_MICRO = 1e-6
_FORWARDS = 3    # times of skew.csv are sums of the three measured forwards: 688 us there, 229 us in attention.csv
_ATTENTION = {"layernorm": 1, "qkv_proj": 1, "qk_norm": 2, "rotary_emb": 1, "o_proj": 1}  # calls in a layer
_FEED_FORWARD = {"layernorm": 1, "gate_up_proj": 1, "act_fn": 1, "down_proj": 1}
_ONCE = {"embedding": 1, "final_layernorm": 1}
_COLUMNS = {"dense": ("layer", "tokens", "time_us"), "per_sequence": ("layer", "sequences", "time_us"),
            "attention": ("prefill_chunk", "kv_prefill", "n_decode", "kv_decode", "time_us"),
            "moe": ("tokens", "activated_experts", "time_us"),
            "skew": ("n", "ratio", "skew", "pc", "kp", "kvs", "kv_big", "kv_mean", "t_mean_us", "t_skew_us")}


@part
class Llmservingsim:
    """``path``: the folder of one model and data type. ``uneven``: false counts contexts by their mean alone."""

    path: str
    uneven: bool = True

    def read(self, tp: int) -> LayerProfile:
        """Return the profile for *tp* devices. Raises ``ValueError`` for missing files, columns and layers."""
        folder = Path(self.path) / f"tp{tp}"
        if not folder.is_dir():
            raise ValueError(f"{folder}: no such folder; give the folder of a model's profile that holds tp{tp}")
        found = _profile(self.path, folder, tuple(sorted((f.name, f.stat().st_mtime_ns) for f in folder.iterdir())))
        return found if self.uneven else replace(found, attention=replace(found.attention, spread={}))


@lru_cache(maxsize=4)
def _profile(path: str, folder: Path, files: tuple[tuple[str, int], ...]) -> LayerProfile:
    """Return the profile in *folder*; *files*: what tells it from what it was before."""
    dense = _curves(_read(folder, "dense"), "tokens")
    known = set(_ATTENTION) | set(_FEED_FORWARD) | set(_ONCE)
    if unknown := sorted(set(dense) - known):
        raise ValueError(f"{folder / 'dense.csv'}: unknown layer {unknown[0]!r}; known: {', '.join(sorted(known))}")
    experts = _experts(_read(folder, "moe")) if (folder / "moe.csv").is_file() else None
    head = _curves(_read(folder, "per_sequence"), "sequences")
    return LayerProfile(
        source=f"LLMServingSim profile {path}", opening=_sum(folder, dense, _ONCE),
        projections=_sum(folder, dense, {k: n for k, n in _ATTENTION.items() if k != "qk_norm" or k in dense}),
        feed_forward=_sum(folder, dense, _FEED_FORWARD) if "down_proj" in dense else None,
        expert_norm=dense["layernorm"], head=_sum(folder, head, {"lm_head": 1, "sampler": 1}),
        attention=_attention(_read(folder, "attention"), _read(folder, "skew")), experts=experts)


def _read(folder: Path, name: str) -> pd.DataFrame:
    file = folder / f"{name}.csv"
    try:
        table = pd.read_csv(file)
    except (OSError, ValueError) as error:
        raise ValueError(f"{file}: cannot be read ({str(error).splitlines()[0]})") from None
    if missing := [column for column in _COLUMNS[name] if column not in table]:
        raise ValueError(f"{file}: no column {', '.join(missing)}; is it a profile of LLMServingSim?")
    numbers = table[[c for c in _COLUMNS[name] if c != "layer"]].to_numpy(float)
    if len(bad := np.flatnonzero(~np.isfinite(numbers).all(axis=1))):
        raise ValueError(f"{file}: row {bad[0] + 1}: not a number")
    return table


def _curves(table: pd.DataFrame, by: str) -> dict[str, Curve]:
    return {str(layer): Curve(rows[by].to_numpy(float), _MICRO * rows["time_us"].to_numpy(float))
            for layer, rows in table.sort_values(by).groupby("layer")}


def _sum(folder: Path, curves: dict[str, Curve], calls: dict[str, int]) -> Curve:
    if missing := [name for name in calls if name not in curves]:
        raise ValueError(f"{folder}: the profile lacks {', '.join(missing)}; profile the model again")
    first, *others = (curves[name].times(n) for name, n in calls.items())
    return sum(others, start=first)


def _experts(table: pd.DataFrame) -> ExpertTable:
    """Return the table; where few tokens cannot activate so many experts, the fewest that can stand in."""
    grid = _MICRO * table.pivot_table(index="tokens", columns="activated_experts", values="time_us")
    grid = grid.interpolate(axis=0, limit_area="inside").bfill(axis=0)
    return ExpertTable(grid.index.to_numpy(float), grid.columns.to_numpy(float), grid.to_numpy())


def _attention(table: pd.DataFrame, uneven: pd.DataFrame) -> MixedAttention:
    names = ["prefill_chunk", "n_decode", "kv_prefill", "kv_decode"]
    axes = [np.array(sorted(table[name].unique()), float) for name in names]
    grid = np.full([len(axis) for axis in axes], np.nan)
    mean = table.groupby(names)["time_us"].mean()
    place = (axis.searchsorted(mean.index.get_level_values(name)) for axis, name in zip(axes, names, strict=True))
    grid[tuple(place)] = mean
    for plane in grid.reshape(-1, *grid.shape[2:]):  # [past, context] of a chunk and a number of decodes
        rows = ~np.isnan(plane).all(axis=1)
        if rows.any():
            filled = np.array([_line(axes[3], axes[3], row) for row in plane[rows]])
            plane[:] = np.array([_line(axes[2], axes[2][rows], column) for column in filled.T]).T
    grid[0, 0] = 0.0
    for i in range(1, len(axes[0])):  # the most decodes were measured alone: a chunk beside them costs the same more
        for j in np.flatnonzero(np.isnan(grid[i, :, 0, 0])):
            grid[i, j] = grid[i, j - 1] + grid[0, j] - grid[0, j - 1]
    chunk, decodes, past, context = axes
    return MixedAttention(chunk, decodes, past, context, _MICRO * grid, _spread(uneven))


def _line(at: np.ndarray, points: np.ndarray, values: np.ndarray) -> np.ndarray:
    known = ~np.isnan(values)
    return np.interp(at, points[known], values[known])


def _spread(table: pd.DataFrame) -> dict[tuple[float, float], Spread]:
    """Return what uneven contexts cost, per chunk and past, of the batches of the usual factor."""
    factor = float(table["skew"].mode()[0])
    rows = table[table["skew"] == factor]
    slope = _MICRO * (rows["t_skew_us"] - rows["t_mean_us"]) / _FORWARDS / (rows["kv_big"] - rows["kv_mean"])
    rows = rows.assign(slope=slope, log2_short=np.log2(rows["kvs"]))
    found = {}
    for (chunk, past), some in rows.groupby(["pc", "kp"]):
        n, short, share = (np.array(sorted(some[name].unique()), float) for name in ("n", "log2_short", "ratio"))
        grid = np.full((len(n), len(short), len(share)), np.nan)
        grid[n.searchsorted(some["n"]), short.searchsorted(some["log2_short"]), share.searchsorted(some["ratio"])] = (
            some["slope"])
        found[float(chunk), float(past)] = Spread(n, short, share, grid, factor)
    return found
