"""Which links the bytes of each pair of devices load, as one sparse matrix with equal rows merged."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import sparse


class Routes(NamedTuple):
    """Shares of pairs on links; links that always carry the same bytes are one group.

    ``shares`` [groups, D * D]; ``group`` [links]; ``rate`` [groups]: reachable bytes/s of a group's slowest link; the
    first ``n_up`` groups are of the scale-up switches.
    """

    shares: sparse.csr_array
    group: np.ndarray
    rate: np.ndarray
    n_up: int


def inside_nodes(n_devices: int, per_node: int) -> sparse.csc_array:
    """Return the shares [D * D, 2 D] of pairs in one node on the links to its switch (by source) and from it."""
    source, target = np.divmod(np.arange(n_devices**2), n_devices)
    near = np.flatnonzero((source // per_node == target // per_node) & (source != target))
    link = np.concatenate([source[near], n_devices + target[near]])
    return sparse.csc_array((np.ones(len(link)), (np.tile(near, 2), link)), shape=(n_devices**2, 2 * n_devices))


def between_nodes(routes: sparse.csr_array, n_hosts: int, n_devices: int, per_node: int) -> sparse.csc_array:
    """Return the shares [D * D, links] of pairs in different nodes, from those of all pairs of hosts."""
    source, target = np.divmod(np.arange(n_devices**2), n_devices)
    far = source // per_node != target // per_node
    return sparse.csc_array(sparse.diags_array(far.astype(np.float64)) @ routes[source * n_hosts + target])


def merged(shares: sparse.csc_array, rate: np.ndarray, n_up: int) -> Routes:
    """Return the routes with *shares* [D * D, links] and *rate* [links]; the first *n_up* links are scale-up."""
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
    slowest = np.full(len(first), np.inf)
    np.minimum.at(slowest, group, rate)
    return Routes(sparse.csr_array(shares[:, first].T), group, slowest, int(group[:n_up].max()) + 1)
