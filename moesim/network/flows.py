"""From a table of flows to when each is done: check, spread over paths, run as fluid flows, add latency."""

from __future__ import annotations

import difflib
from typing import Any

import numpy as np
import pandas as pd

from moesim import registry
from moesim.network.epochs import Journey, Way
from moesim.network.faults import Faults
from moesim.network.wire import Packet, wire_bytes

NEEDED, OPTIONAL = ("src", "dst", "bytes", "start_s"), ("spine", "port", "weight", "limit_bytes_per_s")
WEIGHTS = 1e4  # largest ratio of two weights: sums of more distant ones lose digits


def run_flows(fabric: Any, flows: pd.DataFrame, balancing: Any = "ecmp", seed: int = 0, tolerance: float = 0.0, *,
              faults: pd.DataFrame | None = None, detection_s: float = 1e-3, packet: Packet | None = None
              ) -> pd.DataFrame:
    """Return *flows* with ``finish_s``, when the last byte of each is there, and the ``bottleneck`` link.

    *fabric*: a topology (``LeafSpine``, ...), or a ``Network`` (hosts are its devices, links at wire speed). *flows*,
    one row each: src, dst (hosts), bytes, start_s; optional spine (the number of its path, in a leaf-spine fabric the
    spine; -1 where both hosts have one switch; *balancing* is then not asked), port (tells flows of a pair apart for
    hashes), weight (its share of a bottleneck, default 1), limit_bytes_per_s (rate of its own). Other columns are kept.
    Flows share links max-min fairly. *balancing*: a part or its name; pieces of a flow share its weight, and it is done
    when the last one is. finish_s includes the latency of the path once. *packet*: headers are added to bytes.
    *tolerance*: ends within this share of a flow's duration are one event; 0 is exact.

    *faults*: links that fail, slow down or come back (time_s, where, factor: ``faults.Faults``); what crosses a failed
    link waits for *detection_s* (default: a retransmission timeout of 1 ms, as arXiv 2407.00550 configures), then finds
    another path; pinned flows wait for its repair. ``bottleneck`` (a row of ``fabric.links()``) limited the flow, or
    its last piece, at the end; -1 if its own limit did, or it has no bytes. Raises ``ValueError`` for flows that cannot
    run.
    """
    fabric = registry.make("topology", fabric)
    way = Way(registry.make("balancing", balancing), seed, tolerance)
    return moved(fabric, flows, way, Faults.of(fabric.links(), faults, detection_s), packet)[0]


def moved(fabric: Any, flows: pd.DataFrame, way: Way, faults: Faults, packet: Packet | None = None
          ) -> tuple[pd.DataFrame, np.ndarray]:
    """Return what ``run_flows`` does, and the bytes that crossed each link of *fabric*."""
    checked_tolerance(way.tolerance)
    table = _checked(flows, fabric.n_hosts)
    if packet is not None:
        table = table.assign(bytes=wire_bytes(table["bytes"].to_numpy(), packet))
    ended = Journey(fabric, table, fabric.links()["capacity_bytes_per_s"].to_numpy(), way, faults).run()
    all_end(ended.finish_s)
    return flows.assign(finish_s=ended.finish_s, bottleneck=ended.bottleneck), ended.load_bytes


def checked_tolerance(tolerance: float) -> None:
    """Raise ``ValueError`` unless *tolerance* is a share below 1."""
    if not 0 <= tolerance < 1:
        raise ValueError(f"tolerance is {tolerance}; give a share of a flow's duration, 0 (exact) <= tolerance < 1")


def all_end(finish_s: np.ndarray) -> None:
    """Raise ``ValueError`` if a flow of *finish_s* never ends."""
    if not np.isfinite(finish_s).all():
        stuck = int(np.argmin(np.isfinite(finish_s)))
        raise ValueError(f"flow {stuck} never ends: a link on its path has no capacity and it has no other path; "
                         f"repair the link, or choose a balancing that finds other paths")


def _checked(flows: pd.DataFrame, n_hosts: int) -> pd.DataFrame:
    """Return the columns of *flows* that count, defaults filled in. Raises ``ValueError`` for all that cannot be."""
    missing = [column for column in NEEDED if column not in flows]
    if missing:
        raise ValueError(f"flows have no column {', '.join(missing)}; needed: {', '.join(NEEDED)}; "
                         f"optional: {', '.join(OPTIONAL)}")
    for column in flows.columns:
        near = difflib.get_close_matches(str(column), OPTIONAL, n=1, cutoff=0.8)
        if near and column not in (*NEEDED, *OPTIONAL):
            raise ValueError(f"flows have a column {column!r}, which is not read; did you mean {near[0]!r}?")
    table = flows[[c for c in (*NEEDED, *OPTIONAL) if c in flows]].reset_index(drop=True)
    table = table.assign(**{c: d for c, d in (("port", 0), ("weight", 1.0), ("limit_bytes_per_s", np.inf))
                            if c not in table})
    for column in table:
        if not pd.api.types.is_numeric_dtype(table[column]) or pd.api.types.is_bool_dtype(table[column]):
            raise ValueError(f"column {column} of flows holds {table[column].dtype}; give numbers")
    _refuse(table, "src", (table["src"] < 0) | (table["src"] >= n_hosts), f"hosts are 0 to {n_hosts - 1}")
    _refuse(table, "dst", (table["dst"] < 0) | (table["dst"] >= n_hosts), f"hosts are 0 to {n_hosts - 1}")
    for column in ("src", "dst", "spine", "port"):
        if column in table:
            _refuse(table, column, table[column] % 1 != 0, "give a whole number")
    _refuse(table, "dst", table["src"] == table["dst"], "that is its source; leave out what stays on its host")
    _refuse(table, "bytes", ~(table["bytes"] >= 0) | np.isinf(table["bytes"]), "give a finite number >= 0")
    _refuse(table, "start_s", ~np.isfinite(table["start_s"]), "give seconds")
    _refuse(table, "limit_bytes_per_s", ~(table["limit_bytes_per_s"] > 0), "give a rate > 0, or inf")
    _refuse(table, "weight", ~(table["weight"] > 0) | (table["weight"] < table["weight"].max() / WEIGHTS),
            f"give weights > 0, none below 1/{WEIGHTS:.0f} of the largest")
    whole = {c: np.int64 for c in ("src", "dst", "spine", "port") if c in table}
    return table.astype({c: whole.get(c, np.float64) for c in table})


def _refuse(table: pd.DataFrame, column: str, wrong: pd.Series, remedy: str) -> None:
    """Raise ``ValueError`` for the first row of *table* where *wrong* is true."""
    if wrong.any():
        row = int(np.argmax(wrong.to_numpy()))
        more = f" ({int(wrong.sum())} rows)" if wrong.sum() > 1 else ""
        raise ValueError(f"flow {row}{more}: {column} is {table[column].iloc[row]}; {remedy}")
