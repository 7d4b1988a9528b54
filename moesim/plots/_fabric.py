"""Where the hosts and switches of a fabric stand in its drawing."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
from scipy import sparse

GAP = 0.05  # part of a block's width that stays free between it and its neighbours


def place(ends: pd.DataFrame) -> pd.DataFrame:
    """Return node, tier, x, y and slot (the width it may use) of every end of *ends*, by name.

    *ends*: columns a and b, one row per link, and port (bool): a is a host that sends. Tier 0 are the hosts, the others
    as far from them as the number says. x goes from 0 to 1; hosts with one switch stand below it.
    """
    nodes = pd.DataFrame(index=pd.unique(ends[["a", "b"]].to_numpy().ravel()))
    nodes = nodes.loc[sorted(nodes.index, key=numbers)]
    nodes["tier"] = _tiers(nodes.index, ends)
    nodes["block"] = _blocks(nodes, ends)
    nodes["x"], nodes["slot"] = 0.5, 1.0
    for (_, block), some in nodes[nodes["tier"] > 0].groupby(["tier", "block"]):
        left, width = (0.0, 1.0) if block < 0 else _room(block, int(nodes["block"].max()) + 1)
        nodes.loc[some.index, "x"] = left + width * (np.arange(len(some)) + 0.5) / len(some)
        nodes.loc[some.index, "slot"] = width / len(some)
    _hosts(nodes, ends)
    crossed = [ends[ends["port"]].groupby("a")["b"].nunique().max() > 1, *[True] * int(nodes["tier"].max())]
    nodes["y"] = np.concatenate([[0.0], np.cumsum(np.where(crossed, 1.0, 0.5))])[nodes["tier"]]
    return nodes


def numbers(name: str) -> tuple[str, tuple[int, ...]]:
    """Return the key that sorts names by their words, then their numbers.

    >>> sorted(["plane0.leaf10", "plane1.leaf2", "plane0.leaf9"], key=numbers)
    ['plane0.leaf9', 'plane0.leaf10', 'plane1.leaf2']
    """
    return re.sub(r"\d+", "", name), tuple(int(n) for n in re.findall(r"\d+", name))


def _tiers(names: pd.Index, ends: pd.DataFrame) -> np.ndarray:
    """Return how many links each node is away from the next host."""
    hosts = set(ends.loc[ends["port"], "a"])
    tier = np.array([0 if name in hosts else -1 for name in names])
    a, b = names.get_indexer(ends["a"]), names.get_indexer(ends["b"])
    for here in range(len(names)):
        new = b[(tier[a] == here) & (tier[b] < 0)]
        if len(new) == 0:
            return tier
        tier[new] = here + 1
    return tier


def _blocks(nodes: pd.DataFrame, ends: pd.DataFrame) -> np.ndarray:
    """Return which planes, or else which pods (planes without the top tier), nodes belong to; -1: above all pods."""
    tier, top = nodes["tier"].to_numpy(), int(nodes["tier"].max())
    a, b = nodes.index.get_indexer(ends["a"]), nodes.index.get_indexer(ends["b"])
    block = np.where(tier > 0, 0, -1)
    for highest in (top, top - 1):
        kept = (tier > 0) & (tier <= highest)
        links = kept[a] & kept[b]
        graph = sparse.coo_array((np.ones(links.sum()), (a[links], b[links])), shape=(len(nodes), len(nodes)))
        label = sparse.csgraph.connected_components(graph, directed=False)[1]
        first = pd.unique(label[kept])
        if 1 < len(first) < (tier == 1).sum():
            return np.where(kept, pd.Index(first).get_indexer(label), -1)
    return block


def _room(block: int, blocks: int) -> tuple[float, float]:
    """Return where *block* of *blocks* begins, and its width."""
    gap = GAP if blocks > 1 else 0.0
    return (block + gap / 2) / blocks, (1 - gap) / blocks


def _hosts(nodes: pd.DataFrame, ends: pd.DataFrame) -> None:
    """Set x and slot of the hosts in *nodes*: below their switch, or evenly where they have several."""
    ports = ends[ends["port"]].drop_duplicates(["a", "b"])
    single = not ports["a"].duplicated().any()
    groups = ports.groupby("b", sort=False)["a"] if single else [("", ports["a"].drop_duplicates())]
    for switch, hosts in groups:
        names = sorted(hosts, key=numbers)
        middle, width = (nodes.at[switch, "x"], nodes.at[switch, "slot"]) if single else (0.5, 1.0)
        nodes.loc[names, "slot"] = 0.9 * width / len(names)
        nodes.loc[names, "x"] = middle + 0.9 * width * ((np.arange(len(names)) + 0.5) / len(names) - 0.5)
