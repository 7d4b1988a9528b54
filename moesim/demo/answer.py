"""The answer of the demo in words. Every number, and which way a sentence goes, comes from the table."""

from __future__ import annotations

import pandas as pd

from moesim.demo.points import AFFINITY, BASELINE, BETWEEN, MODES, Points, best, fastest, slug

SAME = 0.02  # changes below this are called none: less than the model can tell


def sentences(points: Points) -> list[str]:
    """Return the answer as paragraphs of Markdown."""
    table = points.table
    return [_recommendation(table), _dispatch_combine(table), _context_coherent(table), _load(points)]


def change(new: float, old: float) -> str:
    """Return *new* against *old* in words.

    >>> change(112, 100), change(50, 100), change(250, 100), change(100.5, 100)
    ('12% more', '50% less', '2.5 times as much', 'no more and no less')
    """
    ratio = new / old
    if abs(ratio - 1) < SAME:
        return "no more and no less"
    if ratio >= 2:
        return f"{ratio:.1f} times as much"
    return f"{abs(ratio - 1):.0%} {'more' if ratio > 1 else 'less'}"


def _rows(table: pd.DataFrame, mode: str) -> pd.DataFrame:
    return table[table["mode"] == mode].set_index("placement")


def _recommendation(table: pd.DataFrame) -> str:
    name, mode = best(table)
    rows = _rows(table, mode)
    new, old = rows.loc[name], rows.loc[BASELINE]
    other = next(m for m in MODES if m != mode)
    second = _rows(table, other)["throughput_tok_per_s"].max()
    throughput = "throughput_tok_per_s"
    text = (f"**Put them where `{name}` puts them (`placements/{slug(name)}.json`) and serve with `{mode}`**: "
            f"{new[throughput]:.0f} output tokens/s, {change(new[throughput], old[throughput])} than `{BASELINE}`; time "
            f"per output token {1e3 * new['tpot_mean_s']:.2f} ms against {1e3 * old['tpot_mean_s']:.2f} ms. "
            f"The best that `{other}` reaches is {second:.0f} tokens/s (`{fastest(table, other)}`).")
    close = [n for n in rows.index if n != name and rows.loc[n, throughput] > (1 - SAME) * new[throughput]]
    return text + (f" Within {SAME:.0%} of it: {_list(close)}." if close else "")


def _dispatch_combine(table: pd.DataFrame) -> str:
    rows = _rows(table, "dispatch_combine")
    new, old, traffic = rows.loc[AFFINITY], rows.loc[BASELINE], f"bytes_{BETWEEN}"
    moved = abs(new[traffic] / old[traffic] - 1) < 5 * SAME
    text = (f"**`dispatch_combine`** (a token returns home after every layer). Affinity placement takes first choices that "
            f"change device from {old['cross_top1']:.0%} to {new['cross_top1']:.0%}, but sends "
            f"{change(new[traffic], old[traffic])} between nodes: ")
    text += ("transitions are not what travels here. " if moved else "")
    text += (f"Bytes follow the devices that a token's experts are on ({new['fanout']:.2f} against {old['fanout']:.2f}), "
             f"which its objective does not contain. ")
    return text + _speed(rows)


def _context_coherent(table: pd.DataFrame) -> str:
    rows, home = _rows(table, "context_coherent"), _rows(table, "dispatch_combine")
    new, old, moves = rows.loc[AFFINITY], rows.loc[BASELINE], "between_nodes_dispatch_bytes"
    sums = float(rows["between_nodes_combine_bytes"].mean() / rows[f"bytes_{BETWEEN}"].mean())
    return (f"**`context_coherent`** (a token stays where its expert is). Here affinity counts: tokens on their way to "
            f"experts carry {change(new[moves], old[moves])} between nodes with affinity placement than with `{BASELINE}`. "
            f"But {sums:.0%} of all bytes between nodes are sums of experts that come together, above all those of "
            f"prompts, which every device runs: with `{BASELINE}` the first token takes "
            f"{change(old['ttft_mean_s'], home.loc[BASELINE, 'ttft_mean_s'])} time than in `dispatch_combine`, and a device "
            f"holds {old['kv_peak_bytes'] / home.loc[BASELINE, 'kv_peak_bytes']:.0f} times the keys and values. "
            + _speed(rows))


def _speed(rows: pd.DataFrame) -> str:
    throughput = rows["throughput_tok_per_s"]
    name = str(throughput.idxmax())
    return (f"Output tokens per second, affinity against `{BASELINE}`: "
            f"{change(throughput[AFFINITY], throughput[BASELINE])}; the most has `{name}` "
            f"({change(throughput[name], throughput[BASELINE])}).")


def _load(points: Points) -> str:
    table, mode = points.table, "dispatch_combine"
    rows = _rows(table, mode)
    decode = points.phases[(points.phases["step"] == "decode") & (points.phases["mode"] == mode)].set_index("placement")
    even, uneven = str(rows["load_max_over_mean"].idxmin()), str(rows["load_max_over_mean"].idxmax())
    wait = [1e3 * decode.loc[n, "wait_s"] for n in (even, uneven)]
    return (f"**Load counts in both**: the busiest device has {rows.loc[even, 'load_max_over_mean']:.2f} times the mean "
            f"with `{even}` and {rows.loc[uneven, 'load_max_over_mean']:.2f} times with `{uneven}`; in a decode step of "
            f"`{mode}` devices wait {wait[0]:.2f} ms and {wait[1]:.2f} ms for each other. Joint placement trades one for "
            f"the other: {_trade(rows)}.")


def _trade(rows: pd.DataFrame) -> str:
    joint = [str(n) for n in rows.index if str(n).startswith("joint")]
    return ", ".join(f"`{n}` {rows.loc[n, 'cross_top1']:.0%} crossing at {rows.loc[n, 'load_max_over_mean']:.2f}"
                     for n in [AFFINITY, *joint])


def _list(names: list[str]) -> str:
    quoted = [f"`{n}`" for n in names]
    return quoted[0] if len(quoted) == 1 else ", ".join(quoted[:-1]) + f" and {quoted[-1]}"
