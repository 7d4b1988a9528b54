"""The answer of the demo in words. Every number, and which way a sentence goes, comes from the table."""

from __future__ import annotations

import pandas as pd

from moesim.demo.points import AFFINITY, BASELINE, BETWEEN, MODES, Points, best, fastest, slug

Rows = dict[str, dict[str, float]]  # placement -> column -> number, of one mode

SAME = 0.02  # a smaller difference is less than the model can tell
LITTLE = 0.1  # a smaller change of bytes is not what a placement is chosen for
TOKENS, TRAFFIC = "throughput_tok_per_s", f"bytes_{BETWEEN}"


def sentences(points: Points) -> list[str]:
    """Return the answer as paragraphs of Markdown."""
    table = points.table
    home, coherent = (_rows(table, mode) for mode in MODES)
    return [recommendation(table), _dispatch_combine(home), _context_coherent(coherent, home),
            _load(home, points.phases)]


def change(new: float, old: float) -> str:
    """Return how *new* differs from *old*.

    >>> change(112, 100), change(50, 100), change(250, 100), change(100.04, 100)
    ('+12.0%', '-50.0%', '2.5 times', '+0.0%')
    """
    ratio = new / old
    return f"{ratio:.1f} times" if ratio >= 2 else f"{ratio - 1:+.1%}"


def _rows(table: pd.DataFrame, mode: str) -> Rows:
    part = table[table["mode"] == mode].drop(columns="mode").set_index("placement")
    return {str(name): {str(c): float(v) for c, v in row.items()} for name, row in part.to_dict("index").items()}


def recommendation(table: pd.DataFrame) -> str:
    name, mode = best(table)
    other = next(m for m in MODES if m != mode)
    rows, second = _rows(table, mode), fastest(table, other)
    new, old, most = rows[name], rows[BASELINE], _rows(table, other)[second][TOKENS]
    text = (f"**Put them where `{name}` puts them (`placements/{slug(name)}.json`) and serve with `{mode}`**: "
            f"{new[TOKENS]:.0f} output tokens/s ({change(new[TOKENS], old[TOKENS])} against `{BASELINE}`), "
            f"{1e3 * new['tpot_mean_s']:.2f} ms per output token, the first after {1e3 * new['ttft_mean_s']:.0f} ms. "
            f"The most that `{other}` reaches is {most:.0f} tokens/s ({change(most, new[TOKENS])}), with `{second}`.")
    close = [n for n, row in rows.items() if n != name and row[TOKENS] > (1 - SAME) * new[TOKENS]]
    if close:
        text += f" Less than {SAME:.0%} behind, which this model cannot tell apart: {_list(close)}."
    if new[TOKENS] / old[TOKENS] - 1 < SAME:
        text += " On this machine and load the placement hardly matters."
    return text


def _dispatch_combine(rows: Rows) -> str:
    new, old = rows[AFFINITY], rows[BASELINE]
    little = abs(new[TRAFFIC] / old[TRAFFIC] - 1) < LITTLE
    text = (f"**`dispatch_combine`** (a token returns home after every layer). With affinity placement "
            f"{new['cross_top1']:.0%} of first choices change device from layer to layer, with `{BASELINE}` "
            f"{old['cross_top1']:.0%}; the bytes between nodes change by {change(new[TRAFFIC], old[TRAFFIC])}. ")
    if little:
        text += "Transitions are not what travels here. "
    return text + (f"Bytes follow the number of devices that a token's experts are on ({new['fanout']:.2f}, with "
                   f"`{BASELINE}` {old['fanout']:.2f}), which the objective does not contain. " + _speed(rows))


def _context_coherent(rows: Rows, home: Rows) -> str:
    new, old, before, moves = rows[AFFINITY], rows[BASELINE], home[BASELINE], "between_nodes_dispatch_bytes"
    share = sum(row[moves] for row in rows.values()) / sum(row[TRAFFIC] for row in rows.values())
    return (f"**`context_coherent`** (a token stays where its expert is). Here transitions do travel: with affinity "
            f"placement the bytes between nodes of tokens on their way to experts change by "
            f"{change(new[moves], old[moves])}. But they are {share:.0%} of the bytes between nodes; the others are "
            f"partial results, most of them of prompts, and the context that devices tell each other. In all the "
            f"change is {change(new[TRAFFIC], old[TRAFFIC])}. The price of the mode: every device runs all prompts and "
            f"keeps all keys and values. Against `dispatch_combine`, both with `{BASELINE}`: time to first token "
            f"{change(old['ttft_mean_s'], before['ttft_mean_s'])}, peak of keys and values per device "
            f"{change(old['kv_peak_bytes'], before['kv_peak_bytes'])}. " + _speed(rows))


def _speed(rows: Rows) -> str:
    base, name = rows[BASELINE][TOKENS], max(rows, key=lambda n: rows[n][TOKENS])
    return (f"Output tokens/s against `{BASELINE}`: `{AFFINITY}` {change(rows[AFFINITY][TOKENS], base)}; "
            f"the fastest is `{name}`, {change(rows[name][TOKENS], base)}.")


def _load(rows: Rows, phases: pd.DataFrame) -> str:
    def load(name: str) -> float:
        return rows[name]["load_max_over_mean"]

    def wait_ms(kind: str, name: str) -> str:
        row = (phases["mode"] == MODES[0]) & (phases["step"] == kind) & (phases["placement"] == name)
        return f"{1e3 * float(phases.loc[row, 'wait_s'].sum()):.2f} ms"

    even, uneven = min(rows, key=load), max(rows, key=load)
    joint = [AFFINITY, *(name for name in rows if name.startswith("joint"))]
    trade = ", ".join(f"`{n}` {rows[n]['cross_top1']:.0%} at {load(n):.2f}" for n in joint)
    return (f"**Load counts in both modes**: the busiest device has {load(even):.2f} times the mean with `{even}` and "
            f"{load(uneven):.2f} times with `{uneven}`. With the one a device waits for others "
            f"{wait_ms('decode', even)} of a decode step and {wait_ms('prefill', even)} of a step with prompts, with "
            f"the other {wait_ms('decode', uneven)} and {wait_ms('prefill', uneven)} (`{MODES[0]}`). Joint placement "
            f"trades transitions for balance (share that crosses, at load): {trade}.")


def _list(names: list[str]) -> str:
    quoted = [f"`{n}`" for n in names]
    return quoted[0] if len(quoted) == 1 else ", ".join(quoted[:-1]) + f" and {quoted[-1]}"
