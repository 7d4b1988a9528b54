"""What a step wants of experts and does not find, and what may become of it: what parts of kind ``miss`` see and say.

Letters: M layers with experts, H holders of experts (devices, or sets of devices that share each), S slots of a holder,
K = top-k. Numbers of tokens count choices: a token that chose an expert.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np


def _none() -> np.ndarray:
    return np.zeros(0)


class Seconds(NamedTuple):
    """What each expert's tokens would take: one copy of an expert; then [M, H, S], alone on its device, at the host.

    ``host``: with the way of the hidden states there and back.
    """

    copy: float
    device: np.ndarray
    host: np.ndarray


@dataclass(frozen=True, eq=False)
class Missed:
    """What the tokens of one step want, and what of it is not there as their layer begins.

    tokens   of each expert, int [M, H, S]
    missing  experts that have tokens and are not there, bool [M, H, S]
    low      experts that are there in a low-bit copy alone, bool [M, H, S]

    Only for parts that say they need it:

    ranks    ``ranks``: tokens by the rank that they give the expert, 0 the best, int [M, H, S, K]
    weight   ``weights``: the largest share that the expert has of a token's chosen gate weight, float [M, H, S]
    seconds  ``seconds``: what experts would take
    """

    tokens: np.ndarray
    missing: np.ndarray
    low: np.ndarray = field(default_factory=_none)
    ranks: np.ndarray = field(default_factory=_none)
    weight: np.ndarray = field(default_factory=_none)
    seconds: Seconds | None = None

    def of(self, which: np.ndarray) -> np.ndarray:
        """Return the tokens of the experts *which*, 0 of all others, int [M, H, S]."""
        return np.where(which, self.tokens, 0)


class Fate(NamedTuple):
    """What becomes of it, all [M, H, S]; None: a part never does that.

    fetched   share of the expert's bytes that comes to its device, 0 if it does not come
    low       experts whose tokens are computed with low-bit weights, bool
    host      tokens that the host computes while the devices compute their own
    deferred  tokens that the host computes after those, added one layer later; none in the last layer
    dropped   tokens that nobody computes

    The device computes what is in none of the last three.
    """

    fetched: np.ndarray | None = None
    low: np.ndarray | None = None
    host: np.ndarray | None = None
    deferred: np.ndarray | None = None
    dropped: np.ndarray | None = None

    @property
    def elsewhere(self) -> np.ndarray | None:
        """Return the tokens that the devices do not compute [M, H, S]; None: there are never any."""
        given = [tokens for tokens in (self.host, self.deferred, self.dropped) if tokens is not None]
        return np.sum(given, axis=0) if given else None
