"""Background traffic: flows of others on the same network, again in every period."""

from __future__ import annotations

import numpy as np
import pandas as pd

from moesim import registry
from moesim.network import Network, run_flows
from moesim.network.ends import Ends
from moesim.network.pieces import pinned, spread
from moesim.scenario import Scenario
from moesim.sim.moving import Moving, Rows

BACKGROUND = -1  # owner of background flows


class Background:
    """The flows of one period, ``one``; ``next_s``: when those of the next period that nobody has taken begin."""

    def __init__(self, one: Moving, period_s: float, capacity: np.ndarray):
        self._one, self._period_s, self._next = one, period_s, 0
        self.uses = one.rows.loads(one.left, len(capacity)) > 0
        self.ends_in_its_period = bool((one.run(capacity).end_s <= period_s).all())

    @property
    def next_s(self) -> float:
        """When the next period begins, seconds."""
        return self._next * self._period_s

    def take(self) -> Moving:
        """Return the flows of the next period."""
        moving = self._one._replace(start_s=self._one.start_s + self.next_s)
        self._next += 1
        return moving

    def skip_to(self, now: float) -> None:
        """Leave out the periods that are over by *now*."""
        self._next = max(self._next, int(np.floor(now / self._period_s * (1 - 1e-12))))


def background(scenario: Scenario, network: Network) -> Background | None:
    """Return the background traffic of *scenario*; None if it has none.

    Raises ``ConfigError`` for a table that cannot be read, flows that cannot run, and more than the links can carry.
    """
    spec = scenario.background
    if spec is None:
        return None
    try:
        table = pd.read_parquet(spec.flows) if spec.flows.suffix == ".parquet" else pd.read_csv(spec.flows)
        if len(table) == 0:
            raise ValueError("it holds no flow; add some, or leave background out")
        run_flows(network, table, network.balancing, network.seed)  # says what is wrong with a table
        late = (table["start_s"] < 0) | (table["start_s"] >= spec.period)
        if late.any():
            raise ValueError(f"flow {int(np.argmax(late))}: start_s is {table['start_s'][late].iloc[0]}; give seconds "
                             f"from the start of a period, below background.period {spec.period:g}")
    except (ValueError, OSError) as error:  # pandas' own complaints are ValueErrors
        raise scenario.error("background.flows", f"{spec.flows.name}: {str(error).splitlines()[0]}") from None
    one = _moving(table.reset_index(drop=True), network)
    busy = one.rows.loads(one.left, network.n_links) / np.maximum(network.rate(), 1e-300) / spec.period
    if busy.max() >= 1:
        worst = network.links()["name"][int(busy.argmax())]
        raise scenario.error("background", f"its flows keep {worst} busy for {busy.max():.3g} of every period, so more "
                                           f"and more would wait there; give fewer bytes or a longer period")
    return Background(one, spec.period, network.rate())


def _moving(table: pd.DataFrame, network: Network) -> Moving:
    """Return the flows of *table* (columns as ``run_flows`` has them) as pieces that begin in a period."""
    table = table[table["bytes"] > 0].reset_index(drop=True)
    port = table["port"].to_numpy(np.int64) if "port" in table else np.zeros(len(table), np.int64)
    ends = Ends.of(network, table["src"], table["dst"], port=port, batch=table["start_s"].to_numpy(np.float64),
                   size=table["bytes"].to_numpy(np.float64))
    pieces = (pinned(ends, table["spine"].to_numpy(np.int64)) if "spine" in table
              else spread(ends, registry.make("balancing", network.balancing), network.seed))
    left, start_s, weight, limit = (
        table[c].to_numpy(np.float64)[pieces.flow] if c in table else np.full(len(pieces.flow), default)
        for c, default in (("bytes", 0.0), ("start_s", 0.0), ("weight", 1.0), ("limit_bytes_per_s", np.inf)))
    return Moving(Rows.of(pieces), np.full(len(left), BACKGROUND), left * pieces.share, start_s, np.zeros(len(left)),
                  weight * pieces.weight, limit * pieces.weight, pieces.after)
