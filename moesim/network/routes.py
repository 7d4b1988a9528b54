"""Which links the bytes of each pair of devices load, as one sparse matrix with equal rows merged."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from scipy import sparse

from moesim.network.ends import Ends


class Routes(NamedTuple):
    """Shares of pairs on links; links that always carry the same bytes are one group.

    ``shares`` [groups, D * D]; ``back``: its indices for the way home, source and destination exchanged; ``group``
    [links]; the first ``n_up`` groups are of the scale-up switches.
    """

    shares: sparse.csr_array
    back: np.ndarray
    group: np.ndarray
    n_up: int

    def slowest(self, rate: np.ndarray) -> np.ndarray:
        """Return the lowest *rate* [links] among the links of each group."""
        lowest = np.full(self.shares.shape[0], np.inf)
        np.minimum.at(lowest, self.group, rate)
        return lowest


def used(network: Any, src: np.ndarray, dst: np.ndarray, part: Any, seed: int) -> sparse.csr_array:
    """Return the share of the bytes from each of *src* to *dst* on each link, [flows, links], balanced together."""
    flow, link, share = _entries(network, src, dst, part, seed)
    return sparse.csr_array((share, (flow, link)), shape=(len(src), network.n_links))


def between(network: Any, pairs: np.ndarray, part: Any, seed: int, n_up: int) -> Routes:
    """Return the routes of *pairs* (bool [D, D]); the first *n_up* links are scale-up."""
    src, dst = np.nonzero(pairs)
    flow, link, share = _entries(network, src, dst, part, seed)
    pair = (src * len(pairs) + dst).astype(np.int32)[flow]
    return merged(sparse.csc_array((share, (pair, link)), shape=(pairs.size, network.n_links)), len(pairs), n_up)


def _entries(network: Any, src: np.ndarray, dst: np.ndarray, part: Any, seed: int
             ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (flow, link, share) of every link on a path that flows from *src* to *dst*, balanced together, use."""
    ends = Ends.of(network, src, dst)
    if (ends.widths.prod(axis=1) == 0).any():
        raise ValueError("the fabric has no path between some devices, not even by way of another device of their node")
    flow, path, share = part.paths(ends, seed)
    links = ends.links(flow, path).astype(np.int32)
    real = links >= 0
    which = np.nonzero(real)[0]
    return flow.astype(np.int32)[which], links[real], share[which]


def merged(shares: sparse.csc_array, n_devices: int, n_up: int) -> Routes:
    """Return the routes with *shares* [D * D, links]; the first *n_up* links are scale-up."""
    shares.eliminate_zeros()
    shares.sum_duplicates()
    known: dict[tuple[bool, bytes, bytes], int] = {}
    group = np.empty(shares.shape[1], np.int64)
    first: list[int] = []
    for link in range(shares.shape[1]):
        span = slice(shares.indptr[link], shares.indptr[link + 1])
        key = (link < n_up, shares.indices[span].tobytes(), shares.data[span].tobytes())
        if key not in known:
            known[key] = len(first)
            first.append(link)
        group[link] = known[key]
    rows = sparse.csr_array(shares[:, first].T)
    source, target = np.divmod(rows.indices, n_devices)
    return Routes(rows, target * n_devices + source, group, int(group[:n_up].max()) + 1)
