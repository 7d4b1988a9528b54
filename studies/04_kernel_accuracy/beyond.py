"""The error where nothing near was fitted: models and shapes left out, skewed routing, larger shapes, another version.

All fits begin with a stranger's constants (``setting.stranger``) but where a row says so.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import setting

from moesim.kernels import KernelModel, fitting
from moesim.kernels.accuracy import accuracy
from moesim.kernels.formats import _draws
from moesim.kernels.measurements import Points

# hidden / inter / top-k / experts of the table -> what has these experts.
LEFT_OUT = {"2048/768/8/128": "Qwen3-30B-A3B", "4096/14336/2/8": "Mixtral 8x7B", "6144/16384/2/8": "Mixtral 8x22B",
            "3072/1024/8/256": "MiniMax-M2", "2048/512/8/256": "Qwen3.5-35B", "4096/1024/10/512": "Qwen3.5-397B"}
FOLDS, FEW, ANCHORS = 5, 300, 100
KEYS = ["case", "op", "part", "start", "seed", "fitted", "anchors"]
SEEDS = 3  # of the fits without one model
OLD = "0.18.0"
_LONG_S = 50e-6  # below, the kernel that writes the cache, which vLLM 0.18 was timed without, is most of the time


def tasks() -> list[tuple[str, ...]]:
    """Return what is fitted: (function, operator, and what else it is told)."""
    left = [("left_out", "moe", name, *how) for how in (*(("stranger", str(i)) for i in range(SEEDS)), ("shipped", "0"))
            for name in LEFT_OUT]
    folds = [("fold", op, str(i)) for op in setting.OPERATORS if op != "moe" for i in range(FOLDS)]
    larger = [("larger", op, few, anchors, start) for op in setting.OPERATORS for few in ("all", str(FEW))
              for anchors, start in (("0", "stranger"), ("0", "shipped"), (str(ANCHORS), "stranger"))]
    skew = [("skew", "moe", devices) for devices in ("one device", "any")]
    return [*folds, *left, *skew, *larger, ("version", "attention_prefill"), ("version", "attention_decode")]


def table(folder: str, kind: str, op: str, *told: str) -> pd.DataFrame:
    """Return what every model predicts for each tested row of one task."""
    rows = setting.points(folder, op)
    if kind == "version":
        return version(folder, rows)
    kinds: dict[str, Callable[..., pd.DataFrame]] = {"left_out": left_out, "fold": fold, "skew": skew, "larger": larger}
    return kinds[kind](rows, *told)


def left_out(rows: Points, name: str, start: str, seed: str) -> pd.DataFrame:
    """Return the rows of one MoE model, predicted from all others."""
    out = (rows.table["x_model"] == name).to_numpy()
    return tested(rows, ~out, out, case="model left out", part=LEFT_OUT[name], start=start, seed=int(seed))


def fold(rows: Points, number: str) -> pd.DataFrame:
    """Return the rows of a fifth of all weights (products) or kinds of heads (attention), predicted from the rest."""
    names = ("n", "k") if rows.op == "gemm" else ("heads_q", "heads_kv", "head_dim")
    kinds = pd.DataFrame({n: rows.shapes[n] for n in names}).groupby(list(names)).ngroup().to_numpy()
    group = np.random.default_rng(0).permutation(kinds.max() + 1)[kinds] % FOLDS
    return tested(rows, group != int(number), group == int(number), case="shapes left out", part="all",
                  fitted=len(rows) * (FOLDS - 1) // FOLDS)  # about: the same for all five


def larger(rows: Points, few: str, anchors: str, start: str) -> pd.DataFrame:
    """Return the rows that are not small, predicted from small ones (all, or a few) and some *anchors* among them."""
    rng, small = np.random.default_rng(0), setting.is_small(rows)
    anchored = setting.among(~small, int(anchors), rng)
    fit = anchored | setting.among(small, None if few == "all" else int(few), rng)
    return tested(rows, fit, ~small & ~anchored, case="larger shapes", part=f"{few} small", start=start,
                  anchors=int(anchors))


def skew(rows: Points, devices: str) -> pd.DataFrame:
    """Return the rows of power-law routing, predicted from balanced ones: with their loads, and with balanced ones."""
    rows = rows.take(((rows.table["x_ep"] == 1) | (devices == "any")).to_numpy())
    even = (rows.table["routing"] == "balanced").to_numpy()
    models = setting.all_models(rows.take(even))
    test = rows.take(~even)
    blind = Points("moe", test.shapes | {"tokens_per_expert": balanced(test)}, test.seconds, test.table)
    return pd.concat([predicted(models, some).assign(
        case=f"skewed routing, {case}", part=devices, start="stranger", seed=0, fitted=int(even.sum()), anchors=0)
        for case, some in (("true loads", test), ("assumed balanced", blind))])


def balanced(rows: Points) -> np.ndarray:
    """Return the tokens per expert of *rows* as if their routing were balanced."""
    loads = np.zeros_like(rows.shapes["tokens_per_expert"])
    for i, row in enumerate(rows.table.itertuples()):
        *_, top_k, experts = map(int, row.x_model.split("/"))
        counts = _draws.balanced(int(row.x_tokens), experts, top_k, int(row.x_ep))
        loads[i, :len(counts)] = counts
    return loads


def version(folder: str, rows: Points) -> pd.DataFrame:
    """Return the rows of an older collection, predicted from the newer one; also by the newer measurement itself."""
    if setting.find(folder, rows.op, OLD) is None:
        return pd.DataFrame()
    old = setting.points(folder, rows.op, OLD)
    old = old.take(old.seconds > _LONG_S)
    names = [n for n in old.shapes if n in rows.shapes]
    new = pd.DataFrame({n: rows.shapes[n] for n in names}).assign(again=rows.seconds).drop_duplicates(names)
    again = pd.DataFrame({n: old.shapes[n] for n in names}).merge(new, how="left", on=names)["again"].to_numpy()
    both = ~np.isnan(again)
    fit = rows.take(fitting.split(rows) == "fit")
    found = predicted(setting.all_models(fit, shipped=True), old.take(both)).assign(measured_again=again[both])
    return found.assign(case="another version", part=f"vLLM {OLD}", start="shipped", seed=0, fitted=len(fit),
                        anchors=0)


def tested(rows: Points, fit: np.ndarray, test: np.ndarray, **told: Any) -> pd.DataFrame:
    """Return the rows *test* as the models predict them that were fitted to the rows *fit*; *told*: columns."""
    known: dict[str, Any] = {"start": "stranger", "seed": 0, "fitted": int(fit.sum()), "anchors": 0} | told
    models = setting.all_models(rows.take(fit), known["seed"], shipped=known["start"] == "shipped")
    return predicted(models, rows.take(test)).assign(**known)


def predicted(models: dict[str, KernelModel], rows: Points) -> pd.DataFrame:
    """Return measured seconds, those of every model, and whether the residual calls the shape measured."""
    inside = models["residual"].in_domain(rows.op, **rows.shapes)
    return pd.DataFrame({"op": rows.op, "measured": rows.seconds, "inside": inside,
                         **{name: kernels.time_s(rows.op, **rows.shapes) for name, kernels in models.items()}})


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the error of each model by case; models that were left out one by one also together."""
    left = rows[rows["case"] == "model left out"].assign(part="all six", fitted=0)
    found = []
    for key, some in pd.concat([rows, left]).groupby(KEYS, sort=False):
        for model in (*setting.MODELS, "measured_again"):
            if model in some and some[model].notna().any():
                found.append({**dict(zip(KEYS, key, strict=True)), "model": model,
                              **accuracy(some[model].to_numpy(), some["measured"].to_numpy()).model_dump(),
                              "inside": float(some["inside"].mean())})
    return pd.DataFrame(found)
