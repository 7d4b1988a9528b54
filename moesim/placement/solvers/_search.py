"""Local search on the chain of layers: sweeps until nothing helps, restarts, disturbances (shared by solvers)."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from moesim.placement.solvers._chain import Chain, swap

Improve = Callable[[Chain, np.ndarray, int], bool]


def settle(chain: Chain, devices: np.ndarray, layers: Iterable[int], improve: Improve) -> set[int]:
    """Improve *layers*, forward and backward in turn, then the neighbours of what changed, until nothing does.

    Changes *devices* in place and returns the layers that changed.
    """
    waiting, changed, forward = set(layers), set(), True
    while waiting:
        for layer in sorted(waiting, reverse=not forward):
            if improve(chain, devices, layer):
                changed.add(layer)
                waiting |= {n for n in (layer - 1, layer + 1) if 0 <= n < chain.n_layers}
            waiting.discard(layer)
        forward = not forward
    return changed


def descend(chain: Chain, improve: Improve, restarts: int, rng: np.random.Generator) -> np.ndarray:
    """Return the best of *restarts* random assignments, each settled."""
    best, best_cost = np.empty(0), np.inf
    for _ in range(restarts):
        devices = chain.random(rng)
        settle(chain, devices, range(chain.n_layers), improve)
        cost = chain.all_terms(devices).sum()
        if cost < best_cost:
            best, best_cost = devices, cost
    return best


def search(chain: Chain, devices: np.ndarray, perturbations: int, rng: np.random.Generator) -> np.ndarray:
    """Return *devices* after an iterated local search: disturb a few layers, settle, keep what is not worse.

    In turn the experts of one to three neighbouring layers are shuffled, and two devices, or two nodes, change
    names in a run of layers (which only the ends of the run notice). Settling is by exchanges: as good as exact
    assignment in the end, and several times as fast.
    """
    terms = chain.all_terms(devices)
    for turn in range(perturbations):
        trial = devices.copy()
        disturbed, uneasy = (_shuffle, _rename)[turn % 2](chain, trial, rng)
        touched = settle(chain, trial, uneasy, swap) | set(disturbed)
        trial_terms = terms.copy()
        for layer in {n for t in touched for n in (t - 1, t) if n >= 0}:
            trial_terms[layer] = chain.terms(trial, layer)
        if trial_terms.sum() <= terms.sum():
            devices, terms = trial, trial_terms
    return devices


def _shuffle(chain: Chain, devices: np.ndarray, rng: np.random.Generator) -> tuple[range, range]:
    length = min(int(rng.integers(1, 4)), chain.n_layers)
    start = int(rng.integers(0, chain.n_layers - length + 1))
    run = range(start, start + length)
    for layer in run:
        row = chain.row(devices, layer)
        row[:] = chain.shuffled(row, layer, rng)
    return run, run


def _rename(chain: Chain, devices: np.ndarray, rng: np.random.Generator) -> tuple[range, list[int]]:
    group_of = chain.levels[int(rng.integers(len(chain.levels)))][0]
    names = np.append(np.arange(len(group_of)), -1)  # -1, where there is no expert, keeps its name
    n_groups = int(group_of.max()) + 1
    if n_groups > 1:
        first, second = (np.flatnonzero(group_of == g) for g in rng.choice(n_groups, 2, replace=False))
        names[first], names[second] = second, first
    start, stop = np.sort(rng.choice(chain.n_layers + 1, 2, replace=False)).tolist()
    devices[start:stop] = names[devices[start:stop]]
    return range(start, stop), [n for n in (start - 1, start, stop - 1, stop) if 0 <= n < chain.n_layers]
