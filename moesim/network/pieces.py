"""From flows to what runs: the pieces of each flow, and the links that each piece uses."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import sparse

from moesim.network.ends import Choice, Ends


class Pieces(NamedTuple):
    """What runs, [pieces]: the row of its flow, its share of the flow's bytes, ``usage`` [pieces, links].

    ``weight``: its share of the flow's weight and limit. ``after``: the piece that has to end first, or -1.
    """

    flow: np.ndarray
    share: np.ndarray
    usage: sparse.csr_array
    weight: np.ndarray
    after: np.ndarray


def ends_of(fabric: Any, table: pd.DataFrame, **more: Any) -> Ends:
    """Return the ends of the flows of *table* (src, dst, bytes, start_s, port); ``ValueError`` if one has no path."""
    ends = Ends.of(fabric, table["src"], table["dst"], port=table["port"].to_numpy(), batch=table["start_s"].to_numpy(),
                   size=table["bytes"].to_numpy(), **more)
    apart = np.flatnonzero(ends.widths.prod(axis=1) == 0)
    if len(apart):
        row = table.iloc[apart[0]]
        raise ValueError(f"flow {table.index[apart[0]]}: the fabric has no path from host {int(row['src'])} to host "
                         f"{int(row['dst'])}; go by a host that both reach, or describe the nodes (a Network relays)")
    return ends


def spread(ends: Ends, part: Any, seed: int) -> Pieces:
    """Return the pieces of the flows of *ends* that the balancing *part* makes."""
    return pieces_of(ends, part.paths(ends, seed), part.sent)


def pieces_of(ends: Ends, choice: Choice, sent: str) -> Pieces:
    """Return the pieces of *choice*, ordered by flow; *sent* as balancing parts have it."""
    links = ends.links(choice.flow, choice.path)
    together = sent == "together"
    flow = np.arange(len(ends)) if together else choice.flow
    row = np.repeat(choice.flow if together else np.arange(len(flow)), links.shape[1])
    used = np.repeat(choice.share if together else np.ones(len(flow)), links.shape[1])
    real = links.ravel() >= 0
    usage = sparse.csr_array((used[real], (row[real], links.ravel()[real])), shape=(len(flow), ends.fabric.n_links))
    share = np.ones(len(flow)) if together else choice.share
    after = np.full(len(flow), -1)
    if sent == "in_turn":
        same = flow[1:] == flow[:-1]
        after[1:][same] = np.flatnonzero(same)
        return Pieces(flow, share, usage, np.ones(len(flow)), after)
    return Pieces(flow, share, usage, share, after)


def pinned(ends: Ends, spine: np.ndarray) -> Pieces:
    """Return one piece per flow on the path *spine*, -1 between hosts of one switch that have one path.

    Raises ``ValueError`` for a path that is not there.
    """
    n_paths = ends.widths.prod(axis=1)
    one = (n_paths == 1) & (np.asarray(ends.fabric.switch_of(ends.src)) == ends.switch)
    wrong = np.where(one, spine != -1, (spine < 0) | (spine >= n_paths))
    if wrong.any():
        row = int(np.argmax(wrong))
        remedy = f"its paths are 0 to {n_paths[row] - 1}" if not one[row] else "between hosts of one switch it is -1"
        raise ValueError(f"flow {row}: spine is {spine[row]}; {remedy}")
    return pieces_of(ends, Choice(np.arange(len(ends)), np.maximum(spine, 0), np.ones(len(ends))), "apart")


def joined(parts: list[Pieces]) -> Pieces:
    """Return the pieces of all *parts*; each piece of a part is ``after`` others of its own part."""
    first = np.cumsum([0, *(len(p.flow) for p in parts)])
    after = [np.where(p.after < 0, -1, p.after + n) for p, n in zip(parts, first[:-1], strict=True)]
    return Pieces(*(np.concatenate([p[i] for p in parts]) for i in (0, 1)), sparse.csr_array(  # type: ignore[call-arg]
        sparse.vstack([p.usage for p in parts])), np.concatenate([p.weight for p in parts]), np.concatenate(after))


def kept(pieces: Pieces, which: np.ndarray) -> Pieces:
    """Return the pieces *which* (bool); those that were after a piece that is gone are free to begin."""
    place = np.where(which, np.cumsum(which) - 1, -1)
    after = np.where(pieces.after < 0, -1, place[pieces.after])[which]
    return Pieces(pieces.flow[which], pieces.share[which], pieces.usage[which], pieces.weight[which], after)

