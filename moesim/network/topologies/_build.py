"""What topologies share: their link tables, and graphs made from them."""

from __future__ import annotations

from typing import Any

import pandas as pd


def link_table(classes: list[tuple[str, list[tuple[str, str]], float]], latency_s: float) -> pd.DataFrame:
    """Return one row per link; *classes* are (class, [(from, to), ...], capacity in bytes/s)."""
    ends = [(name, f"{a}->{b}", capacity) for name, pairs, capacity in classes for a, b in pairs]
    table = pd.DataFrame(ends, columns=["class", "name", "capacity_bytes_per_s"])
    table.insert(0, "link", range(len(table)))
    table["latency_s"] = latency_s
    return table


def graph(links: pd.DataFrame) -> Any:
    """Return *links* as a ``networkx.DiGraph``; an edge has the columns of its row as attributes."""
    import networkx as nx  # for building and inspecting only

    result = nx.DiGraph()
    for row in links.to_dict("records"):
        source, target = str(row["name"]).split("->")
        result.add_edge(source, target, **{str(column): value for column, value in row.items()})
    return result
