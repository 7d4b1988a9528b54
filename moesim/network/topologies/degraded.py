"""A fabric with failed or slow links that everybody knows of: failed ones are avoided, slow ones are used as before.

Spine 0 has failed, and a cable of leaf 1 runs at half its rate:

>>> good = {"name": "leaf_spine", "leaves": 2, "spines": 4, "hosts_per_leaf": 8, "link": "400 Gbit/s"}
>>> fabric = Degraded(fabric=good, factors={"spine0": 0, "leaf1->spine3": 0.5})
>>> int(fabric.alive.sum()), float(fabric.links()["capacity_bytes_per_s"].iloc[39] / 1e9)
(44, 25.0)
"""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, Any

import numpy as np
import pandas as pd

from moesim.network.topologies._build import Topology
from moesim.registry import Part, part


@part
class Degraded(Topology):
    """Multiply the capacity of links of *fabric* by *factors*.

    A key is the name of a link ("leaf1->spine3", one direction), or of a switch or host: all links to and from it.
    0: failed, and known to be. For links that fail during a run see ``faults`` of ``run_flows``.
    """

    fabric: Annotated[Any, Part("topology")]
    factors: dict[str, float]

    def __post_init__(self) -> None:
        for name, factor in self.factors.items():
            if not 0 <= factor < np.inf:
                raise ValueError(f"factors.{name} is {factor}; give a number >= 0 (0: failed, 0.5: half its rate)")
        self._scale  # noqa: B018  finds unknown names

    @cached_property
    def _scale(self) -> np.ndarray:
        """The factor of every link."""
        scale, links = np.ones(len(self.fabric.links())), self.fabric.links()
        for name, factor in self.factors.items():
            scale[named(links, name)] *= factor
        return scale

    @property
    def n_hosts(self) -> int:
        """Number of hosts."""
        return self.fabric.n_hosts

    @property
    def oversubscription(self) -> float:
        """That of the fabric when all is well."""
        return self.fabric.oversubscription

    @property
    def path_latency_s(self) -> float:
        """Latency of the longest path."""
        return self.fabric.path_latency_s

    @property
    def alive(self) -> np.ndarray:
        """Which links have not failed, bool [links]."""
        return self._scale > 0

    def switch_of(self, host: Any) -> Any:
        """Return the first switch of *host* (a number or an array)."""
        return self.fabric.switch_of(host)

    def links(self) -> pd.DataFrame:
        """Return the table of links, with what is left of their capacity."""
        table, scale = self.fabric.links(), self._scale
        return table.assign(capacity_bytes_per_s=table["capacity_bytes_per_s"] * scale,
                            alive=table["alive"] & (scale > 0))

    def widths(self, src: np.ndarray, dst: np.ndarray) -> np.ndarray:
        """Return the choices of the fabric when all is well; dead paths are left out later."""
        return self.fabric.widths(src, dst)

    def path(self, src: np.ndarray, dst: np.ndarray, choice: np.ndarray) -> np.ndarray:
        """Return the links of a path."""
        return self.fabric.path(src, dst, choice)


def named(links: pd.DataFrame, name: str) -> np.ndarray:
    """Return the numbers of the *links* that *name* means: one link, or all to and from a switch or host.

    Raises ``ValueError`` if there is none.
    """
    ends = links["name"].str.split("->", expand=True)
    found = np.flatnonzero((links["name"] == name) | (ends[0] == name) | (ends[1] == name))
    if len(found) == 0:
        raise ValueError(f"no link, switch or host {name!r}; links are named like {links['name'].iloc[-1]!r}")
    return found
