"""A measured run and a simulated one, number by number.

Latencies count from ``queued_s`` where both runs have it: first token, last token and the moment at which the engine
takes a request into its queue are of one clock, and LLMServingSim's published errors count from there too. What the
client sees counts from ``arrival_s`` and holds the wait for the step in progress as well; in a run with two clocks that
origin is only known up to a constant, so it has rows of its own (``*_from_arrival``).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from moesim.runs.run import Run

STATISTICS = ("mean", "p50", "p90", "p95", "p99")
QUANTITIES = ("output_tok_per_s", "prompt_tok_per_s", "running", "waiting", "kv_used")
SHOWN = {"ttft": "TTFT", "tpot": "TPOT", "itl": "ITL", "e2e": "E2E", "ttft_from_arrival": "TTFT from arrival",
         "e2e_from_arrival": "E2E from arrival"}


@dataclass(frozen=True, eq=False)
class Comparison:
    """What came out; times in seconds, errors in percent of what was measured.

    ``errors``: metric, statistic, measured, simulated, error_percent. ``ranks``: metric, requests, spearman, kendall,
    median_error_percent (absolute, per request). ``timeline_errors``: quantity, measured_mean,
    simulated_mean, median_error (absolute, over the ticks in which one of the two is not 0), median_error_percent (of
    the measured mean).
    ``requests``: request, ``<metric>_measured_s``, ``<metric>_simulated_s``. ``timeline``: both, told apart by source.
    """

    errors: pd.DataFrame
    ranks: pd.DataFrame
    timeline_errors: pd.DataFrame
    requests: pd.DataFrame
    timeline: pd.DataFrame

    def table(self) -> pd.DataFrame:
        """Return a row per metric: mean measured and simulated (ms), errors (%), rank correlations."""
        wide = self.errors.pivot(index="metric", columns="statistic", values="error_percent")
        means = self.errors[self.errors["statistic"] == "mean"].set_index("metric")
        ranks = self.ranks.set_index("metric")
        rows = [{"metric": text, "measured (ms)": means.at[name, "measured"] * 1e3,
                 "simulated (ms)": means.at[name, "simulated"] * 1e3,
                 **{f"{statistic} (%)": wide.at[name, statistic] for statistic in STATISTICS},
                 "Spearman": ranks["spearman"].get(name, np.nan), "Kendall": ranks["kendall"].get(name, np.nan)}
                for name, text in SHOWN.items() if name in wide.index]
        return pd.DataFrame(rows)


def compare(measured: Run, simulated: Run) -> Comparison:
    """Compare two runs of the same requests. Requests that one of them did not finish are left out of both.

    Raises ``ValueError`` if the requests differ.
    """
    a, b = measured.requests, simulated.requests
    for column in ("prompt_tokens", "output_tokens"):
        if not np.array_equal(a[column].to_numpy(), b[column].to_numpy()):
            raise ValueError(f"the two runs differ in {column}; compare runs of the same requests")
    both = "queued_s" in a and "queued_s" in b
    real, guess = latencies(a, both), latencies(b, both)
    served = np.flatnonzero(a["last_token_s"].notna().to_numpy() & b["last_token_s"].notna().to_numpy())
    real, guess = real.iloc[served], guess.iloc[served]
    rows = [row for name in real for row in _errors(name, real[name].to_numpy(), guess[name].to_numpy())]
    if "token_s" in a and "token_s" in b:
        rows += _errors("itl", gaps(a["token_s"]), gaps(b["token_s"]))
    rows.append(_row("makespan", "total", measured.makespan_s, simulated.makespan_s))
    tokens = [float(table["output_tokens"].iloc[served].sum()) for table in (a, b)]
    rows.append(_row("output_tok_per_s", "total", tokens[0] / measured.makespan_s, tokens[1] / simulated.makespan_s))
    requests = pd.DataFrame({"request": a["request"].to_numpy()[served]} | {
        f"{name}_{source}_s": table[name].to_numpy()
        for name in real for source, table in (("measured", real), ("simulated", guess))})
    timelines = _timelines(measured, simulated)
    ranks = pd.DataFrame([_ranks(name, real[name].to_numpy(), guess[name].to_numpy()) for name in real])
    return Comparison(pd.DataFrame(rows), ranks, _timeline_errors(timelines), requests, timelines)


def latencies(requests: pd.DataFrame, queued: bool) -> pd.DataFrame:
    """Return ttft, tpot (NaN with one output token) and e2e of each request, seconds.

    *queued*: from the engine's queue; what counts from the client's sending is added as ``*_from_arrival``.
    """
    first, last = requests["first_token_s"], requests["last_token_s"]
    origin = requests["queued_s"] if queued else requests["arrival_s"]
    more = requests["output_tokens"] - 1
    found = {"ttft": first - origin, "tpot": (last - first) / more.where(more > 0), "e2e": last - origin}
    if queued:
        found |= {"ttft_from_arrival": first - requests["arrival_s"], "e2e_from_arrival": last - requests["arrival_s"]}
    return pd.DataFrame(found)


def gaps(token_s: pd.Series) -> np.ndarray:
    """Return the seconds between one token and the next, of all requests whose tokens are known."""
    known = [np.diff(times) for times in token_s if times is not None]
    return np.concatenate(known) if known else np.empty(0)


def _row(metric: str, statistic: str, measured: float, simulated: float) -> dict[str, object]:
    error = 100 * (simulated / measured - 1) if measured > 0 else np.nan
    return {"metric": metric, "statistic": statistic, "measured": measured, "simulated": simulated,
            "error_percent": error}


def _errors(metric: str, measured: np.ndarray, simulated: np.ndarray) -> list[dict[str, object]]:
    measured, simulated = measured[~np.isnan(measured)], simulated[~np.isnan(simulated)]
    if not len(measured) or not len(simulated):
        return []
    return [_row(metric, name, *(float(v.mean() if name == "mean" else np.percentile(v, int(name[1:])))
                                 for v in (measured, simulated))) for name in STATISTICS]


def _ranks(metric: str, measured: np.ndarray, simulated: np.ndarray) -> dict[str, object]:
    """Return how alike the orders of requests are; NaN if all of one are equal."""
    from scipy import stats

    known = ~np.isnan(measured) & ~np.isnan(simulated)
    measured, simulated = measured[known], simulated[known]
    varied = len(measured) > 1 and np.ptp(measured) > 0 and np.ptp(simulated) > 0
    relative = np.abs(simulated - measured)[measured > 0] / measured[measured > 0]
    return {"metric": metric, "requests": len(measured),
            "spearman": float(stats.spearmanr(measured, simulated).statistic) if varied else np.nan,
            "kendall": float(stats.kendalltau(measured, simulated).statistic) if varied else np.nan,
            "median_error_percent": 100 * float(np.median(relative)) if len(relative) else np.nan}


def _timelines(measured: Run, simulated: Run) -> pd.DataFrame:
    """Return both timelines, on the ticks of the simulated one: the measured one's, and as many more as it takes."""
    assert measured.timeline is not None and simulated.timeline is not None, "both have one here"
    log = measured.timeline.set_index("time_s").reindex(simulated.timeline["time_s"])
    idle = log.index > measured.timeline["time_s"].max()
    log.loc[idle] = 0.0
    known = [name for name in QUANTITIES if name in log]
    return pd.concat([log[known].reset_index().assign(source="measured"),
                      simulated.timeline[["time_s", *known]].assign(source="simulated")], ignore_index=True)


def _timeline_errors(timelines: pd.DataFrame) -> pd.DataFrame:
    real, guess = (timelines[timelines["source"] == source] for source in ("measured", "simulated"))
    rows = []
    for name in (name for name in QUANTITIES if name in timelines):
        a, b = real[name].to_numpy(float), guess[name].to_numpy(float)
        busy = (a != 0) | (b != 0)
        error = float(np.median(np.abs(b - a)[busy])) if busy.any() else 0.0
        rows.append({"quantity": name, "measured_mean": a.mean(), "simulated_mean": b.mean(), "median_error": error,
                     "median_error_percent": 100 * error / a.mean() if a.mean() > 0 else np.nan})
    return pd.DataFrame(rows)
