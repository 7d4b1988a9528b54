"""Balanced routing: tokens dealt to experts as cards are, so that any tokens in a row load them evenly.

No gate chooses like this. It is what tools without traces assume (AIConfigurator's distribution "balanced"), and what
balance losses work towards. The experts of a layer lie in a random order, a deck; each token takes the next K of them,
and after the last comes the first, so that the loads of any tokens in a row differ by at most one. One deck after the
other serves a step each: over many decks all pairs of experts, in one layer or in neighbouring ones, meet equally often
but for chance, and there is nothing for a placement to learn.

>>> trace = deal(np.array([4, 4]), top_k=2, seed=0, model="small")
>>> trace.counts().tolist() == [[trace.n_tokens // 2] * 4] * 2
True
>>> trace.select(range(3)).counts().max() - trace.select(range(3)).counts().min()       # six choices of four experts
np.int64(1)
"""

from __future__ import annotations

import math

import numpy as np

from moesim.trace import DECODE, RoutingTrace, TraceError

_ROWS = 16384   # chosen: each pair of 256 experts meets a few times if eight of them serve a token
_LEAST = 4      # decks: two for placement solvers and two to run on
_LONGEST = 32768  # rows of a deck; only layers of unlike sizes, which come round together after many tokens, need more


def deal(sizes: np.ndarray, top_k: int, seed: int, model: str) -> RoutingTrace:
    """Return decks of *top_k* experts per token, of *sizes* [L] experts in each layer; a request stands for a deck.

    A token's experts are ordered so that over a deck each expert is first, second, ... equally often. Raises
    ``TraceError`` if layers of different sizes have no deck of reasonable length in common.
    """
    length = math.lcm(*map(int, sizes))
    if length > _LONGEST:
        raise TraceError(f"layers of {sorted(set(sizes.tolist()))} experts are dealt evenly together only after "
                         f"{length} tokens, above {_LONGEST}; use synthetic, or layers of one size")
    n_decks = max(_LEAST, -(-_ROWS // length))
    rng = np.random.default_rng([seed, 4])
    experts = np.empty((n_decks, length, len(sizes), top_k), np.uint16)
    for layer, size in enumerate(sizes.tolist()):
        order = rng.permuted(np.tile(np.arange(size), (n_decks, 1)), axis=1)
        experts[:, :, layer] = order[:, _places(length, size, top_k)]
    deck = np.arange(n_decks).repeat(length)
    return RoutingTrace.from_arrays(
        experts.reshape(-1, len(sizes), top_k), int(sizes.max()), top_k, request=deck, phase=DECODE, step=deck,
        model=model, origin="moesim.balanced: every step spread evenly over the experts", synthetic=True, balanced=True,
        **({} if (sizes == sizes[0]).all() else {"experts_per_layer": sizes.tolist()}))


def _places(length: int, size: int, top_k: int) -> np.ndarray:
    """Return the places in a layer's order of what each token of a deck takes: int64 [length, top_k]."""
    token, rank = np.arange(length)[:, None], np.arange(top_k)
    common = math.gcd(size, top_k)
    turn = token // (size // common) % common  # tokens that come to the same experts again begin with another
    return (token * top_k + (rank + turn) % top_k) % size
