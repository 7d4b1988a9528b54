"""What the README says in numbers, from the tables."""

from __future__ import annotations

import ablations
import gpt_oss
import pandas as pd
from setting import RUNS, SHOWN

from moesim.runs.compare import STATISTICS

NAMES = {"llama": "llama-3.1-8b on one RTX PRO 6000", "qwen": "qwen3-30b-a3b on two RTX PRO 6000"}


def words(tables: dict[str, pd.DataFrame]) -> str:
    """Return all that is computed."""
    return "\n\n".join([*(_errors(tables, name) for name in RUNS), _ceiling(tables["ceiling"]),
                        _ablations(tables["ablations"]), _points(tables["gpt_oss"])])


def _errors(tables: dict[str, pd.DataFrame], name: str) -> str:
    """Return the errors of one run beside those that were published: mean and deviation over replays."""
    rows = tables["errors"][tables["errors"]["run"] == name].set_index(["metric", "statistic"])
    replays = tables["ablations"]
    replays = replays[(replays["run"] == name) & (replays["left_out"] == ablations.WHOLE)].set_index(
        ["metric", "statistic"])
    lines = [f"**{NAMES[name]}**, error in % of what was measured: moesim (mean and standard deviation of "
             f"{int(replays['replays'].iloc[0])} replays) / LLMServingSim 2.0", "",
             f"| | measured mean (ms) | {' | '.join(STATISTICS)} | Spearman |",
             "|---|---:|" + "---:|" * (len(STATISTICS) + 1)]
    for metric, text in SHOWN.items():
        cells = [f"{_spread(replays.loc[(metric, s)])} / {rows.loc[(metric, s), 'peer_error_percent']:+.1f}"
                 for s in STATISTICS]
        ours = replays.loc[(metric, "mean")]
        lines.append(f"| {text} | {rows.loc[(metric, 'mean'), 'measured'] * 1e3:,.1f} | {' | '.join(cells)} | "
                     f"{ours['spearman']:.3f} ± {ours['spearman_sd']:.3f} |")
    return "\n".join(lines)


def _ceiling(table: pd.DataFrame) -> str:
    rows = table.set_index(["run", "metric"])
    lines = ["**How alike two simulations are** whose steps differ by 1 % at random: Spearman's rank correlation of "
             "all pairs of replays; in brackets, of one replay with the mean of all others. No model of the engine can "
             "be expected to agree better with a measured run.", "", "| | TTFT | TPOT | E2E |", "|---|---:|---:|---:|"]
    for name in RUNS:
        cells = [f"{row['spearman']:.3f} ± {row['spearman_sd']:.3f} ({row['ensemble']:.3f})"
                 for row in (rows.loc[(name, metric)] for metric in SHOWN)]
        lines.append(f"| {NAMES[name]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _ablations(table: pd.DataFrame) -> str:
    means = table[table["statistic"] == "mean"].set_index(["run", "left_out", "metric"])
    lines = ["### What each part is worth", "", _worth(means), "",
             "Error of the mean in %, mean and standard deviation over replays whose steps differ at random, and "
             "Spearman of TTFT.", "",
             "| left out | Llama: TTFT | TPOT | E2E | Spearman | Qwen: TTFT | TPOT | E2E | Spearman |",
             "|---|" + "---:|" * 8]
    for what in [*ablations.ALL, *ablations.QWEN]:
        cells = []
        for name in RUNS:
            known = (name, what, "ttft") in means.index
            some = [means.loc[(name, what, metric)] for metric in SHOWN] if known else []
            cells += [*map(_spread, some), f"{some[0]['spearman']:.3f}"] if known else [""] * 4
        lines.append(f"| {what} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", "![Errors without one thing after the other](figures/ablations.png)"])


def _worth(means: pd.DataFrame) -> str:
    """Return the parts whose loss costs most, of the means of E2E, in a sentence."""
    cost = means["error_percent"].unstack("left_out")
    worst = cost.xs("e2e", level="metric").abs()
    worth = (worst.sub(worst[ablations.WHOLE], axis=0)).drop(columns=ablations.WHOLE).T
    parts = []
    for name in RUNS:
        most = worth[name].dropna().sort_values(ascending=False).head(4)
        parts.append(f"{NAMES[name].split(' on ')[0]}: " + ", ".join(f"{what} ({points:.1f})"
                                                                     for what, points in most.items()))
    return f"**What costs most to leave out**, in points of the mean E2E error. {'; '.join(parts)}."


def _points(table: pd.DataFrame) -> str:
    judged = gpt_oss.judged(table)
    first = judged.set_index("routing").loc[gpt_oss.CHOSEN]
    lines = ["### gpt-oss-120b on one H200", "",
             f"**{len(table) // len(judged)} published points of vLLM, {first['zero_shot']:.1f} % off (median of time "
             f"per output token) with nothing fitted**, {first['one_factor']:.1f} % with one factor for all, fitted "
             f"for each point to the others; rank correlation {first['spearman']:.3f}.", "",
             "| routing | median error | with one factor | one per engine version | bias | factor | Spearman |",
             "|---|" + "---:|" * 6]
    lines += [f"| {row.routing} | {row.zero_shot:.1f} % | {row.one_factor:.1f} % | {row.by_engine:.1f} % | "
              f"{row.bias:+.1f} % | {row.factor:.3f} | {row.spearman:.3f} |" for row in judged.itertuples()]
    chosen = table[table["routing"] == gpt_oss.CHOSEN].sort_values(gpt_oss.KEYS)
    lines += ["", f"With {gpt_oss.CHOSEN}:", "", "| in | out | users | vLLM | measured (ms) | simulated (ms) | error |",
              "|---:|---:|---:|---|---:|---:|---:|"]
    lines += [f"| {int(row.isl)} | {int(row.osl)} | {int(row.concurrency)} | {row.engine} | {row.tpot_ms:.2f} | "
              f"{row.simulated_tpot_ms:.2f} | {100 * (row.simulated_tpot_ms / row.tpot_ms - 1):+.1f} % |"
              for row in chosen.itertuples()]
    return "\n".join([*lines, "", "![Published points](figures/gpt_oss.png)"])


def _spread(row: pd.Series) -> str:
    return f"{row['error_percent']:+.1f} ± {row['error_sd']:.1f}"
