"""Boosted regression trees as arrays: grown by scikit-learn, stored as one row per node, evaluated without it.

Nodes of a tree are numbered as in a heap: the children of node k are 2k + 1 (feature at most the threshold) and 2k + 2.
scikit-learn (extra ``fit``) shows what it grew as public arrays, so that predicting needs numba alone.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pandas as pd

_DEPTH = 7          # of all trees: complete ones need no pointers
_TREES = 280        # more gain below 0.1 points of median error on the H200 tables, and take longer
_RATE = 0.1
_SAMPLE = 0.75      # share of the rows that each tree sees, which keeps noise of single rows out
_FEATURES = 0.25    # share of the features that each split chooses among: fewer generalise better to unseen models
_LEAST = 4          # rows of a leaf
_QUANTILE = 0.85    # of the errors; larger ones count linearly (Huber), so that wrong measurements do not bend it
_LEAF = -1          # feature of a leaf


class Forest(NamedTuple):
    """Complete trees: ``feature`` uint8 and ``threshold`` float32 [trees, inner nodes], ``value`` [trees, leaves].

    A prediction is ``start`` plus one value of each tree.
    """

    feature: np.ndarray
    threshold: np.ndarray
    value: np.ndarray
    start: float

    def predict(self, features: np.ndarray) -> np.ndarray:
        """Return float64 [rows] for float32 *features* [features, rows]."""
        from moesim.kernels import forest_loop  # numba

        out = np.full(features.shape[1], self.start)
        forest_loop.add(np.ascontiguousarray(features, dtype=np.float32), self.feature, self.threshold, self.value, out)
        return out


def from_table(table: pd.DataFrame) -> Forest:
    """Return the forest of a table that ``grow`` made: leaves above the bottom are pushed down to it."""
    tree, node = table["tree"].to_numpy(np.int64), table["node"].to_numpy(np.int64)
    trees, inner = int(tree.max()) + 1, 2**_DEPTH - 1
    feature = np.zeros((trees, 2 * inner + 1), dtype=np.uint8)
    threshold = np.full((trees, 2 * inner + 1), np.inf, dtype=np.float32)
    value = np.zeros((trees, 2 * inner + 1), dtype=np.float32)
    at, split = tree >= 0, tree >= 0
    split = at & (table["feature"].to_numpy() != _LEAF)
    feature[tree[split], node[split]] = table["feature"].to_numpy()[split]
    threshold[tree[split], node[split]] = table["threshold"].to_numpy()[split]
    value[tree[at], node[at]] = table["value"].to_numpy()[at]
    for k in range(inner):  # all rows of a leaf go left
        leaf = np.isinf(threshold[:, k])
        value[leaf, 2 * k + 1] = value[leaf, k]
    start = table["value"].to_numpy()[tree == -1]
    return Forest(feature[:, :inner].copy(), threshold[:, :inner].copy(), value[:, inner:].copy(), float(start[0]))


def grow(features: np.ndarray, target: np.ndarray, seed: int) -> pd.DataFrame:
    """Return trees that predict *target* [rows] from *features* [features, rows]: one row per node, first the start.

    Columns: ``tree`` (-1: the start, added once), ``node``, ``feature`` (-1: leaf), ``threshold``, ``value``. Raises
    ``ModuleNotFoundError`` without scikit-learn.
    """
    try:
        from sklearn.ensemble import GradientBoostingRegressor
    except ModuleNotFoundError:
        raise ModuleNotFoundError("fitting a residual needs scikit-learn; pip install 'moesim[fit]'") from None
    model = GradientBoostingRegressor(
        loss="huber", alpha=_QUANTILE, n_estimators=_TREES, learning_rate=_RATE, max_depth=_DEPTH, subsample=_SAMPLE,
        max_features=_FEATURES, min_samples_leaf=_LEAST, random_state=seed)
    model.fit(np.ascontiguousarray(features.T), target)
    start = float(model.predict(features[:, :1].T)[0]) - sum(
        float(tree.predict(features[:, :1].T)[0]) * _RATE for tree in model.estimators_[:, 0])
    first = pd.DataFrame({"tree": [-1], "node": [0], "feature": [_LEAF], "threshold": [0.0], "value": [start]})
    trees = [_nodes(tree.tree_).assign(tree=i) for i, tree in enumerate(model.estimators_[:, 0])]
    table = pd.concat([first, *trees], ignore_index=True)
    return table.astype({"tree": np.int16, "node": np.int16, "feature": np.int8, "threshold": np.float32,
                         "value": np.float32})


def _nodes(tree: Any) -> pd.DataFrame:
    """Return the nodes of a tree of scikit-learn with their numbers in the heap."""
    number = np.zeros(tree.node_count, dtype=np.int64)
    for k in range(tree.node_count):  # parents come before their children
        if tree.children_left[k] != _LEAF:
            number[tree.children_left[k]], number[tree.children_right[k]] = 2 * number[k] + 1, 2 * number[k] + 2
    leaf = tree.children_left == _LEAF
    return pd.DataFrame({"node": number, "feature": np.where(leaf, _LEAF, tree.feature),
                         "threshold": np.where(leaf, 0, _below(tree.threshold)),
                         "value": np.where(leaf, tree.value[:, 0, 0] * _RATE, 0)})


def _below(threshold: np.ndarray) -> np.ndarray:
    """Return *threshold* as float32, never above it: features are float32, so that all rows go the same way."""
    single = threshold.astype(np.float32)
    return np.where(single > threshold, np.nextafter(single, np.float32(-np.inf)), single)
