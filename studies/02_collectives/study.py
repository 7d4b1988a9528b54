"""When does 2DH beat flat, and node-limited routing flat? Make everything in this folder again, in about 1.5 minutes.

Run `python studies/02_collectives/study.py`: it computes the tables (CSV), draws the figures and puts the numbers
between the two markers of the README.
"""

from __future__ import annotations

from pathlib import Path

import crossover
import drawing
import pandas as pd
import routing
import words

from moesim import config, plots
from moesim.page import renew
from moesim.trace import read_trace

HERE = Path(__file__).resolve().parent
TRACE = "workloads/traces/reference-moe.parquet"
LARGE = (64, 512, 2048)  # GPUs of which lines and parts are shown
SHOWN = (crossover.MIB, 32 * crossover.MIB, 256 * crossover.MIB)  # bytes: those that Tutel measured
NODES, TOKENS = (2, 4, 8, 16, 32), (128, 4096)
MACHINES = ((2, 8), (4, 8), (8, 4))  # nodes, devices of a node: what the 32 experts of the trace divide into


def main() -> None:
    """Compute and renew this folder."""
    tables = compute()
    text = write(tables, HERE)
    renew(HERE / "README.md", text)
    print(text)


def compute() -> dict[str, pd.DataFrame]:
    """Return the tables: times (also for other message costs), crossovers, parts, schemes, published, trace."""
    low, taken, high = crossover.MESSAGES_S
    maps = [crossover.times(message_s=m, algorithms=crossover.ALGORITHMS if m == taken else ("flat", "2DH"))
            .assign(message_s=m) for m in (low, taken, high)]
    trace = read_trace(config.find_file(TRACE, Path.cwd()))
    return {"times": pd.concat(maps, ignore_index=True),
            "crossovers": pd.DataFrame([(s, crossover.crossover(s)) for s in SHOWN], columns=["size_bytes", "gpus"]),
            "parts": pd.concat([crossover.parts(n, SHOWN, ("flat", "2DH", "PXN")) for n in LARGE], ignore_index=True),
            "schemes": routing.table(NODES, TOKENS), "published": routing.published(),
            "trace": routing.on_trace(trace, MACHINES)}


def write(tables: dict[str, pd.DataFrame], folder: Path) -> str:
    """Write CSVs and figures of *tables* to *folder*; return the text for the README."""
    (folder / "figures").mkdir(exist_ok=True)
    for name, table in tables.items():
        table.to_csv(folder / f"{name}.csv", index=False, float_format="%.6g")
    taken = _taken(tables)
    lines = {f"{1e6 * m:.0f} µs" + (", taken" if m == crossover.MESSAGES_S[1] else ""): crossover.ratio(part)
             for m, part in tables["times"].groupby("message_s")}
    figures = {
        "crossover": drawing.crossover_map(
            crossover.ratio(taken), lines, words.gain(taken), words.MEASURED,
            (words.crossover_title(tables["crossovers"]), words.gain_title(words.gain(taken)))),
        "times": drawing.time_lines(taken, LARGE, words.times_title(taken, LARGE[-1])),
        "parts": drawing.part_bars(tables["parts"], words.parts_title(tables["parts"])),
        "schemes": drawing.schemes(tables["schemes"], routing.FP8, words.schemes_titles(tables["schemes"]))}
    for name, figure in figures.items():
        plots.save(figure, folder / "figures" / f"{name}.png")
    return words.text(taken, tables)


def _taken(tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    times = tables["times"]
    return times[times["message_s"] == crossover.MESSAGES_S[1]].drop(columns="message_s")


if __name__ == "__main__":
    main()
