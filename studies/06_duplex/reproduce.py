"""The stages that the paper's figures are made of, and from them each published number as found here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pandas as pd
import setting
from scipy.optimize import minimize_scalar
from setting import BATCHES, LATENCY_S, MODELS, SYSTEMS

THROUGHPUT = ("Mixtral", "GLaM", "Grok1")
OTHERS = [(model, system, batch, length) for model in ("OPT", "Llama3") for system in ("GPU", "Duplex+PE", "Bank-PIM")
          for batch, length in ((32, 256), (64, 256), (32, 1024))]
SERVED = (4096, 512, 128)  # prompt, output, batch of figure 13


def tasks() -> list[tuple[str, str, int, int, int]]:
    """Return model, system, batch, prompt and output tokens of every point."""
    points = [(m, s, b, length, length) for m in THROUGHPUT for s in SYSTEMS for b in BATCHES
              for length in MODELS[m].lengths if s != "Bank-PIM" or m == "Mixtral" and b < 128]
    points += [(m, s, b, length, length) for m, s, b, length in OTHERS]
    points += [("Mixtral", s, SERVED[2], *SERVED[:2]) for s in ("GPU", "2xGPU", "Duplex+PE+ET")]
    return sorted(points, key=lambda p: -p[2] * p[3])  # the longest first: two processes end together


def row(model: str, system: str, batch: int, prompt: int, output: int) -> dict[str, Any]:
    """Return one point: its stages, throughput, and joules per output token."""
    found = setting.stages(model, SYSTEMS[system], batch, prompt, output)
    per_node, _ = MODELS[model].on(SYSTEMS[system].times)
    return {"model": model, "system": system, "batch": batch, "prompt": prompt, "output": output, **found._asdict(),
            "hops": setting.layers(model) * 2 * 2 * (per_node - 1)}


def with_latency(stages: pd.DataFrame, latency_s: float = LATENCY_S) -> pd.DataFrame:
    """Return *stages* as they are with another latency of a hop, and what follows from them.

    Every layer has two all-reduces of 2 (n - 1) hops, which all devices of a node wait for: a stage grows by its hops.
    """
    extra = stages["hops"] * (latency_s - LATENCY_S)
    table = stages.assign(decode_s=stages["decode_s"] + extra, mixed_s=stages["mixed_s"] + extra)
    share = table["mixed_share"]
    mean_s = (1 - share) * table["decode_s"] + share * table["mixed_s"]
    mean_j = (1 - share) * table["decode_j"] + share * table["mixed_j"]
    return table.assign(tok_per_s=table["batch"] / mean_s, j_per_tok=mean_j / table["batch"])


class Points:
    """A table of points by model, batch and lengths, one column per system."""

    def __init__(self, stages: pd.DataFrame, latency_s: float = LATENCY_S):
        self.table = with_latency(stages, latency_s)

    def of(self, column: str, model: str | None = None, batch: int | None = None, length: int | None = None
           ) -> pd.DataFrame:
        """Return *column* of the points of figure 11 and the like (as many prompt as output tokens)."""
        some = self.table[self.table["prompt"] == self.table["output"]]
        for name, value in (("model", model), ("batch", batch), ("prompt", length)):
            some = some if value is None else some[some[name] == value]
        return some.pivot_table(index=["model", "batch", "prompt"], columns="system", values=column, sort=False)

    def gain(self, system: str, over: str = "GPU", **points: Any) -> pd.Series:
        """Return throughput of *system* over that of another one, of the points that have both."""
        found = self.of("tok_per_s", **points)
        return (found[system] / found[over]).dropna()

    def eleven(self, system: str, over: str = "GPU") -> pd.Series:
        """Return the gains of figure 11."""
        return self.gain(system, over).loc[list(THROUGHPUT)]

    def shorter(self, column: str, system: str, over: str, **points: Any) -> pd.Series:
        """Return how much less of *column* (s or J) *system* needs than another one: 0.6 is 60 % less."""
        found = self.of(column, **points)
        return (1 - found[system] / found[over]).dropna()

    def requests_per_s(self, system: str) -> float:
        """Return what *system* serves of the requests of figure 13 with a full batch."""
        some = self.table[(self.table["output"] == SERVED[1]) & (self.table["prompt"] == SERVED[0])]
        return float(some.set_index("system").loc[system, "tok_per_s"]) / SERVED[1]


class Figure(NamedTuple):
    """A published number: where, what, its value, how far ours may be off (relative, absolute), ours."""

    where: str
    what: str
    published: float
    tolerance: float
    relative: bool
    ours: Callable[[Points], float]
    form: str = "{:.2f}"


FULL = "Duplex+PE+ET"


def _ratio(points: Points, over: str) -> float:
    """Return the mean cut of end-to-end latency of GLaM with batch 64, as a ratio; it is that of throughput."""
    return float(1 / (1 / points.gain(FULL, over, model="GLaM", batch=64)).mean())


def _share(points: Points, over: float) -> float:
    return float((points.eleven("Duplex", "2xGPU") > over).mean())


def _saved(points: Points, model: str) -> float:
    return float(100 * points.shorter("j_per_tok", FULL, "GPU", model=model).max())


def _cut(points: Points, column: str, over: str, length: int) -> float:
    return float(100 * points.shorter(column, FULL, over, model="GLaM", batch=64, length=length).iloc[0])


FIGURES = (
    Figure("fig. 11", "Duplex+PE+ET over GPU, maximum", 2.67, 0.12, True, lambda p: p.eleven(FULL).max()),
    Figure("fig. 11", "Duplex+PE+ET over GPU, mean", 2.07, 0.12, True, lambda p: p.eleven(FULL).mean()),
    Figure("fig. 11", "Duplex over GPU, maximum", 2.51, 0.15, True, lambda p: p.eleven("Duplex").max()),
    Figure("fig. 11", "Duplex+PE over Duplex, mean", 1.04, 0.04, False,
           lambda p: p.eleven("Duplex+PE", "Duplex").mean()),
    Figure("fig. 11", "Duplex+PE+ET over Duplex, maximum", 1.36, 0.10, True, lambda p: p.eleven(FULL, "Duplex").max()),
    Figure("fig. 12", "E2E of GLaM, GPU over Duplex+PE+ET", 2.51, 0.12, True, lambda p: _ratio(p, "GPU")),
    Figure("fig. 12", "E2E of GLaM, 2xGPU over Duplex+PE+ET", 1.55, 0.12, True, lambda p: _ratio(p, "2xGPU")),
    Figure("fig. 12", "median TBT of GLaM, GPU over Duplex", 2.40, 0.12, True, lambda p: float(
        1 / (1 - p.shorter("decode_s", "Duplex", "GPU", model="GLaM", batch=64)).mean())),
    Figure("fig. 12", "p99 TBT of GLaM, 512 tokens, below 2xGPU, %", 16.74, 20, False,
           lambda p: _cut(p, "mixed_s", "2xGPU", 512), "{:.1f}"),
    Figure("fig. 12", "T2FT of GLaM, 512 tokens, below 2xGPU, %", 26.17, 20, False,
           lambda p: _cut(p, "mixed_s", "2xGPU", 512), "{:.1f}"),
    Figure("fig. 12", "p99 TBT and T2FT of GLaM, 2048 tokens, below 2xGPU, % (\"similar\")", 0, 25, False,
           lambda p: _cut(p, "mixed_s", "2xGPU", 2048), "{:.1f}"),
    Figure("fig. 13", "requests/s that GPU serves (more than 9: too many)", 9, 0.12, True,
           lambda p: p.requests_per_s("GPU"), "{:.1f}"),
    Figure("fig. 13", "requests/s that Duplex+PE+ET serves", 14, 0.12, True,
           lambda p: p.requests_per_s(FULL), "{:.1f}"),
    Figure("fig. 14", "Bank-PIM over GPU, Mixtral, maximum", 2.17, 0.15, True,
           lambda p: p.gain("Bank-PIM", model="Mixtral").max()),
    Figure("fig. 14", "Bank-PIM over GPU, Mixtral, batch 64, (256, 256)", 1.18, 0.12, True,
           lambda p: p.gain("Bank-PIM", model="Mixtral", batch=64, length=256).iloc[0]),
    Figure("fig. 14", "Duplex+PE+ET over GPU, same point", 2.05, 0.12, True,
           lambda p: p.gain(FULL, model="Mixtral", batch=64, length=256).iloc[0]),
    Figure("fig. 14", "Duplex+PE+ET over Bank-PIM, Mixtral, maximum", 1.80, 0.12, True,
           lambda p: p.gain(FULL, "Bank-PIM", model="Mixtral").max()),
    Figure("fig. 14", "Duplex+PE+ET over Bank-PIM, Mixtral, mean", 1.49, 0.12, True,
           lambda p: p.gain(FULL, "Bank-PIM", model="Mixtral").mean()),
    *(Figure("fig. 15", f"energy below GPU, {model}, best, %", value, 5, False,
             lambda p, m=model: _saved(p, m), "{:.1f}")
      for model, value in (("Mixtral", 33.28), ("GLaM", 42.03), ("Grok1", 34.59))),
    Figure("fig. 15", "energy below GPU, mean, %", 28.19, 5, False,
           lambda p: float(100 * p.shorter("j_per_tok", FULL, "GPU").loc[list(THROUGHPUT)].mean()), "{:.1f}"),
)


def compared(stages: pd.DataFrame, latency_s: float = LATENCY_S) -> pd.DataFrame:
    """Return every published number beside ours: error (relative, or absolute where the tolerance is), and held."""
    points, rows = Points(stages, latency_s), []
    for figure in FIGURES:
        ours = float(figure.ours(points))
        error = ours / figure.published - 1 if figure.relative else ours - figure.published
        rows.append({"where": figure.where, "what": figure.what, "published": figure.published, "ours": ours,
                     "error": error, "tolerance": figure.tolerance, "relative": figure.relative,
                     "held": abs(error) <= figure.tolerance})
    return pd.DataFrame(rows)


def fitted(stages: pd.DataFrame) -> float:
    """Return the latency of a hop (s) at which the ratios among the published numbers have the least mean square error.

    One number is fitted to many: that is calibration, not validation.
    """
    def misses(latency_us: float) -> float:
        table = compared(stages, latency_us * 1e-6)
        return float((table.loc[table["relative"], "error"] ** 2).mean())

    found = minimize_scalar(misses, bounds=(0.5, 8.0), method="bounded", options={"xatol": 0.01})
    return float(found.x) * 1e-6


def orders(stages: pd.DataFrame) -> dict[str, tuple[str, bool]]:
    """Return the claims without a number: what was found, and whether it holds."""
    p = Points(stages)
    wins, gains = _share(p, 1.0), {m: p.eleven(FULL).loc[m].mean() for m in THROUGHPUT}
    dense = {m: p.gain("Duplex+PE", "Bank-PIM", model=m) for m in ("Llama3", "OPT")}
    best = p.eleven("Duplex").idxmax()
    return {
        "fig. 11: Duplex beats 2xGPU in most configurations": (f"{wins:.0%} of 27", wins >= 0.6),
        "fig. 11: Grok1 gains least": (", ".join(f"{m} {g:.2f}" for m, g in gains.items()),
                                       min(gains, key=lambda m: gains[m]) == "Grok1"),
        "fig. 11: Duplex is at its best with Mixtral (4096, 4096)": (
            f"{best[0]} ({best[2]}, {best[2]}), batch {best[1]}", best[0] == "Mixtral" and best[2] == 4096),
        "fig. 13: 2xGPU serves about as much as Duplex": (
            f"{p.requests_per_s('2xGPU'):.1f} and {p.requests_per_s(FULL):.1f} requests/s",
            abs(p.requests_per_s("2xGPU") / p.requests_per_s(FULL) - 1) < 0.1),
        "fig. 14: Llama3 runs faster on Duplex than on Bank-PIM": (
            f"{dense['Llama3'].min():.2f} to {dense['Llama3'].max():.2f} times", bool((dense["Llama3"] > 1).all())),
        "fig. 14: OPT runs faster on Bank-PIM than on Duplex": (
            f"{1 / dense['OPT'].max():.2f} to {1 / dense['OPT'].min():.2f} times", bool((dense["OPT"] < 1).all())),
        "fig. 15: GLaM saves most energy": (", ".join(f"{m} {_saved(p, m):.1f} %" for m in THROUGHPUT),
                                            max(THROUGHPUT, key=lambda m: _saved(p, m)) == "GLaM")}
