"""What topologies share: their link tables, and graphs made from them."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd


class Topology:
    """What every topology has besides its own methods."""

    @property
    def alive(self) -> np.ndarray | None:
        """Return which links are alive, bool [links]; None: all of them."""
        return None

    @cached_property
    def n_links(self) -> int:
        """Number of links."""
        return len(self.links())  # type: ignore[attr-defined]

    def to_networkx(self) -> Any:
        """Return the fabric as a ``networkx.DiGraph`` with the columns of ``links`` on its edges."""
        import networkx as nx  # for building and inspecting only

        result = nx.DiGraph()
        for row in self.links().to_dict("records"):  # type: ignore[attr-defined]
            source, target = str(row["name"]).split("->")
            result.add_edge(source, target, **{str(column): value for column, value in row.items()})
        return result


def link_table(classes: list[tuple[str, list[tuple[str, str]], float]], latency_s: float) -> pd.DataFrame:
    """Return one row per link, all alive; *classes* are (class, [(from, to), ...], capacity in bytes/s)."""
    ends = [(name, f"{a}->{b}", capacity) for name, pairs, capacity in classes for a, b in pairs]
    table = pd.DataFrame(ends, columns=["class", "name", "capacity_bytes_per_s"])
    table.insert(0, "link", range(len(table)))
    return table.assign(latency_s=latency_s, alive=True)
