"""Which experts tokens choose, as benchmarks ask for it: even, at random, or skewed.

>>> import numpy as np
>>> ids = choose("balanced", tokens=6, experts=4, top_k=2, rng=np.random.default_rng(0))
>>> counts(ids, 4).tolist()
[3, 3, 3, 3]
"""

from __future__ import annotations

import numpy as np

KINDS = ("balanced", "uniform", "zipf")
ZIPF = 1.2  # exponent of the popularity of the r-th expert, r ** -ZIPF (the value of the plan that this suite follows)


def choose(kind: str, tokens: int, experts: int, top_k: int, rng: np.random.Generator) -> np.ndarray:
    """Return the experts of every token: int64 [tokens, top_k], no expert twice in a row.

    ``balanced``: choices follow each other round the experts, so that counts differ by one at most. ``uniform``: at
    random. ``zipf``: at random with popularity r ** -1.2 of the r-th expert, in a random order of the experts.
    Raises ``ValueError`` for another kind.
    """
    if kind == "balanced":
        return (np.arange(tokens)[:, None] * top_k + np.arange(top_k)) % experts
    if kind not in KINDS:
        raise ValueError(f"unknown routing {kind!r}; use one of {', '.join(KINDS)}")
    popularity = np.zeros(experts) if kind == "uniform" else -ZIPF * np.log(1 + rng.permutation(experts))
    # Exponential times over rates: the first k to come are a draw without replacement.
    times = rng.standard_exponential((tokens, experts), dtype=np.float32) / np.exp(popularity).astype(np.float32)
    return np.argpartition(times, top_k - 1, axis=1)[:, :top_k].astype(np.int64)


def counts(ids: np.ndarray, experts: int) -> np.ndarray:
    """Return the tokens of each expert: int64 [experts]."""
    return np.bincount(ids.reshape(-1), minlength=experts)


def exactly(tokens_per_expert: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return one expert for each of sum(*tokens_per_expert*) tokens, in random order: int64 [tokens, 1]."""
    ids = np.repeat(np.arange(len(tokens_per_expert)), tokens_per_expert)
    return rng.permutation(ids)[:, None]
