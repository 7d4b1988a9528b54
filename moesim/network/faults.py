"""Links that fail, slow down or come back while flows run.

>>> from moesim.network import LeafSpine
>>> links = LeafSpine(leaves=2, spines=2, hosts_per_leaf=1, link="400 Gbit/s").links()
>>> table = pd.DataFrame({"time_s": [1.0, 3.0], "where": ["spine0", "leaf0->spine1"], "factor": [0.0, 0.5]})
>>> faults = Faults.of(links, table, detection_s=0.5)
>>> faults.times.tolist(), faults.factor(1.2).tolist(), int((~faults.known(1.2)).sum()), int((~faults.known(1.5)).sum())
([1.0, 1.5, 3.0, 3.5], [1.0, 1.0, 1.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0], 0, 4)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from moesim.network.topologies.degraded import named

COLUMNS = ("time_s", "where", "factor")


@dataclass(frozen=True, eq=False)
class Faults:
    """Changes of links in the order of time: ``time_s`` [changes], ``factor_after`` [changes, links]."""

    time_s: np.ndarray
    factor_after: np.ndarray
    detection_s: float

    @classmethod
    def of(cls, links: pd.DataFrame, table: pd.DataFrame | None, detection_s: float) -> Faults:
        """Return the faults of *table*: time_s, where (name of a link, switch or host), factor of its first capacity.

        A factor counts until the next for the same link: 0 fails, 0.5 halves, 1 repairs. Raises ``ValueError`` for
        what is not so.
        """
        if not 0 <= detection_s < np.inf:
            raise ValueError(f"detection_s is {detection_s}; give seconds >= 0")
        if table is None or len(table) == 0:
            return cls(np.zeros(0), np.ones((0, len(links))), detection_s)
        missing = [c for c in COLUMNS if c not in table]
        if missing:
            raise ValueError(f"faults have no column {', '.join(missing)}; needed: {', '.join(COLUMNS)}")
        table = table.reset_index(drop=True)
        for column, right, remedy in (("time_s", np.isfinite(table["time_s"]), "give seconds"),
                                      ("factor", (table["factor"] >= 0) & (table["factor"] < np.inf),
                                       "give a number >= 0 (0 fails, 1 repairs)")):
            if not right.all():
                row = int(np.argmin(right.to_numpy()))
                raise ValueError(f"fault {row}: {column} is {table[column][row]}; {remedy}")
        table = table.sort_values("time_s", kind="stable")
        after, now = np.empty((len(table), len(links))), np.ones(len(links))
        for i, row in enumerate(table.itertuples()):
            now[named(links, str(row.where))] = row.factor
            after[i] = now
        return cls(table["time_s"].to_numpy(np.float64), after, detection_s)

    @property
    def times(self) -> np.ndarray:
        """When capacities change, or become known to have failed or come back; sorted."""
        return np.unique(np.concatenate([self.time_s, self.time_s + self.detection_s]))

    def factor(self, time_s: float) -> np.ndarray:
        """Return what is left of the capacity of every link at *time_s*."""
        i = int(np.searchsorted(self.time_s, time_s, side="right"))
        return self.factor_after[i - 1] if i else np.ones(self.factor_after.shape[1])

    def known(self, time_s: float) -> np.ndarray:
        """Return which links are believed alive at *time_s*: what was so ``detection_s`` ago."""
        i = int(np.searchsorted(self.time_s + self.detection_s, time_s, side="right"))
        return (self.factor_after[i - 1] if i else np.ones(self.factor_after.shape[1])) > 0
