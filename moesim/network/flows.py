"""From a table of flows to when each is done: check, spread over paths, run as fluid flows, add latency."""

from __future__ import annotations

import difflib
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import sparse

from moesim import registry
from moesim.network import fluid

NEEDED, OPTIONAL = ("src", "dst", "bytes", "start_s"), ("spine", "weight", "limit_bytes_per_s")
WEIGHTS = 1e4  # largest ratio of two weights: sums of more distant ones lose digits


class Pieces(NamedTuple):
    """What runs, [pieces]: the row of its flow, the share of the flow's bytes, and ``usage`` [pieces, links]."""

    flow: np.ndarray
    share: np.ndarray
    usage: sparse.csr_array


def run_flows(fabric: Any, flows: pd.DataFrame, balancing: Any = "ecmp", seed: int = 0,
              tolerance: float = 0.0) -> pd.DataFrame:
    """Return *flows* with ``finish_s``, when the last byte of each is there, and the ``bottleneck`` link.

    *fabric*: a topology (``LeafSpine``, ``Switch``). *flows*, one row each: src, dst (hosts), bytes, start_s; optional
    spine (the path of every flow; -1 where both hosts have one leaf; *balancing* is then not asked), weight (its share
    of a bottleneck, default 1), limit_bytes_per_s (rate of its own). Other columns are kept. Flows share links max-min
    fairly. *balancing*: a part or its name; pieces of a flow share its weight, and it is done when the last one is.
    finish_s includes the latency of the path once. *tolerance*: ends within this share of a flow's duration are one
    event; 0 is exact. ``bottleneck`` (a row of ``fabric.links()``) limited the flow, or its last piece, at the end; -1
    if its own limit did, or it has no bytes. Raises ``ValueError`` for flows that cannot run.
    """
    if not 0 <= tolerance < 1:
        raise ValueError(f"tolerance is {tolerance}; give a share of a flow's duration, 0 (exact) <= tolerance < 1")
    fabric = registry.make("topology", fabric)
    table = _checked(flows, fabric.n_hosts)
    pieces = spread(fabric, table, balancing, seed)
    links = fabric.links()
    weight, limit = (table[column].to_numpy()[pieces.flow] * pieces.share for column in ("weight", "limit_bytes_per_s"))
    size = table["bytes"].to_numpy()[pieces.flow] * pieces.share
    start_s = table["start_s"].to_numpy()[pieces.flow]
    moving = np.flatnonzero(size > 0)
    course = fluid.run(fluid.Paths.of(pieces.usage[moving]), links["capacity_bytes_per_s"].to_numpy(), size[moving],
                       start_s[moving], weight=weight[moving], limit=limit[moving], tolerance=tolerance)
    if not np.isfinite(course.end_s).all():
        raise ValueError(f"flow {pieces.flow[moving][np.argmax(course.end_s)]} never ends: a link on its path has no "
                         f"capacity; give every link of the fabric a rate > 0")
    end_s, bottleneck = start_s.copy(), np.full(len(start_s), -1)
    end_s[moving], bottleneck[moving] = course.end_s, course.bottleneck
    end_s += pieces.usage @ links["latency_s"].to_numpy()
    last = np.lexsort((end_s, pieces.flow))
    last = last[np.searchsorted(pieces.flow[last], np.arange(len(table)), side="right") - 1]
    return flows.assign(finish_s=end_s[last], bottleneck=bottleneck[last])


def spread(fabric: Any, table: pd.DataFrame, balancing: Any, seed: int) -> Pieces:
    """Return the pieces of the flows of *table* (columns src, dst, start_s; spine if pinned) on the links of *fabric*.

    Every flow is one piece, over several spines at once if *balancing* is ``per_packet``; otherwise one per spine.
    """
    src, dst = table["src"].to_numpy(), table["dst"].to_numpy()
    crosses = fabric.crossing(src, dst)
    far, near = np.flatnonzero(crosses), np.flatnonzero(~crosses)
    part = registry.make("balancing", balancing)
    if "spine" in table:
        which, spine, share = far, _pinned(fabric, table["spine"].to_numpy(), crosses)[far], np.ones(len(far))
    else:
        batch = table["start_s"].to_numpy()[far]
        shares = part.spine_shares(fabric, src[far], dst[far], seed, batch) if len(far) else np.zeros((0, 1))
        row, spine = np.nonzero(shares)
        which, share = far[row], shares[row, spine]
    if part.per_packet and "spine" not in table:
        flow, piece = np.arange(len(table)), which
        entries = fabric.incidence(src, dst, piece, spine, share)
        whole = np.ones(len(flow))
    else:
        flow = np.concatenate([near, which])
        order = np.argsort(flow, kind="stable")
        place = np.empty(len(order), np.int64)
        place[order] = np.arange(len(order))  # pieces in the order of their flows
        flow, whole = flow[order], np.concatenate([np.ones(len(near)), share])[order]
        entries = fabric.incidence(src[flow], dst[flow], place[len(near):], spine, np.ones(len(which)))
    row, link, used = entries
    return Pieces(flow, whole, sparse.csr_array((used, (row, link)), shape=(len(flow), len(fabric.links()))))


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
    table = table.assign(**{c: d for c, d in (("weight", 1.0), ("limit_bytes_per_s", np.inf)) if c not in table})
    for column in table:
        if not pd.api.types.is_numeric_dtype(table[column]) or pd.api.types.is_bool_dtype(table[column]):
            raise ValueError(f"column {column} of flows holds {table[column].dtype}; give numbers")
    _refuse(table, "src", (table["src"] < 0) | (table["src"] >= n_hosts), f"hosts are 0 to {n_hosts - 1}")
    _refuse(table, "dst", (table["dst"] < 0) | (table["dst"] >= n_hosts), f"hosts are 0 to {n_hosts - 1}")
    for column in ("src", "dst", "spine"):
        if column in table:
            _refuse(table, column, table[column] % 1 != 0, "give a whole number")
    _refuse(table, "dst", table["src"] == table["dst"], "that is its source; leave out what stays on its host")
    _refuse(table, "bytes", ~(table["bytes"] >= 0) | np.isinf(table["bytes"]), "give a finite number >= 0")
    _refuse(table, "start_s", ~np.isfinite(table["start_s"]), "give seconds")
    _refuse(table, "limit_bytes_per_s", ~(table["limit_bytes_per_s"] > 0), "give a rate > 0, or inf")
    _refuse(table, "weight", ~(table["weight"] > 0) | (table["weight"] < table["weight"].max() / WEIGHTS),
            f"give weights > 0, none below 1/{WEIGHTS:.0f} of the largest")
    whole = {c: np.int64 for c in ("src", "dst", "spine") if c in table}
    return table.astype({c: whole.get(c, np.float64) for c in table})


def _refuse(table: pd.DataFrame, column: str, wrong: pd.Series, remedy: str) -> None:
    """Raise ``ValueError`` for the first row of *table* where *wrong* is true."""
    if wrong.any():
        row = int(np.argmax(wrong.to_numpy()))
        more = f" ({int(wrong.sum())} rows)" if wrong.sum() > 1 else ""
        raise ValueError(f"flow {row}{more}: {column} is {table[column].iloc[row]}; {remedy}")


def _pinned(fabric: Any, spine: np.ndarray, crosses: np.ndarray) -> np.ndarray:
    """Return *spine*. Raises ``ValueError`` where it does not fit: -1 for flows inside a leaf, a spine for others."""
    spines = getattr(fabric, "spines", 0)
    wrong = np.where(crosses, (spine < 0) | (spine >= spines), spine != -1)
    if wrong.any():
        row = int(np.argmax(wrong))
        remedy = f"between leaves it is 0 to {spines - 1}" if crosses[row] else "between hosts of one switch it is -1"
        raise ValueError(f"flow {row}: spine is {spine[row]}; {remedy}")
    return spine
