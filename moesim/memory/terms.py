"""What a cache policy may look at when it chooses a victim, and how it is written so that the replay loop is fast.

A policy's order is one compiled function over all candidates of an event, called through a pointer: the loop is
compiled once, and a new policy is a new file. Letters: n candidates, C columns, F facts, P parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit, types

# Columns of the table ``of``, one row per key. Their numbers are compiled into functions that numba keeps on disk and
# renews only when the function's own file changes: add at the end, do not renumber.
LAST = 0  # time of the last use; before every time if there was none
SEEN = 1  # time of the last use or of a load ahead of use
COUNT = 2  # events that used it since the counts were reset
NEXT = 3  # time of the next use, infinite if there is none: for policies that see the future
DUE = 4  # time for which a prefetcher last expected it
FLAG = 5  # the policy's flag of its last use
FLAGS = 6  # sum of the policy's flags since the counts were reset
MARK = 7  # phase in which it was last used, see ``now[PHASE]``
LAYER = 8  # layer to which it belongs
VALUE = 9  # what the policy's rule gives for it in this pass
COLUMNS = 10
# Facts of the moment, ``now``. A pass of L layers lasts L units of time; layer l of pass p is at p * L + l.
TIME, START, HERE, LAYERS = 0, 1, 2, 3  # time now, start of this pass, layer of this event, L
SINCE = 4  # passes since the counts were reset, this one included
PHASE = 5  # phases of this cache so far: a victim used in this phase begins a new one (marking algorithms)
DRAW = 6  # where random numbers of this event begin
FACTS = 7

NEVER = -2.0**40  # "time" of what has not happened: below every other, and sums with times lose nothing

KEYS, VECTOR, TABLE = types.Array(types.int32, 1, "C"), types.Array(types.float64, 1, "C"), types.Array(
    types.float64, 2, "C")
SIGNATURE = types.void(KEYS, types.int64, TABLE, VECTOR, VECTOR, VECTOR)
SCORE = types.FunctionType(SIGNATURE)

Score = Callable[[np.ndarray, int, np.ndarray, np.ndarray, np.ndarray, np.ndarray], None]


def score(function: Score) -> Any:
    """Compile *function*: ``(keys, n, of, now, p, out)`` writes to *out* what each of *keys*[:n] is worth.

    The least is the victim, ties are drawn. *of* [keys, COLUMNS] and *now* [FACTS] are as above; *p* are the rule's
    parameters.
    """
    return njit(SIGNATURE, cache=True, nogil=True, error_model="numpy")(function)


@njit(cache=True, nogil=True)
def mixed(a: int, b: int) -> int:
    """Return 62 well-mixed bits of *a* and *b* (the finaliser of SplitMix64, Steele et al., OOPSLA 2014)."""
    x = np.uint64(a) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(b) + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return int((x ^ (x >> np.uint64(31))) >> np.uint64(2))


@njit(cache=True, nogil=True)
def uniform(a: int, b: int) -> float:
    """Return a number in [0, 1) that *a* and *b* decide."""
    return mixed(a, b) * 2.0**-62


@dataclass(frozen=True, eq=False)
class Rule:
    """Say how one replay chooses victims.

    score       a function compiled by ``score``; the key with the least is the victim
    parameters  given to it
    bypass      what was missed competes with what is there and may not be admitted; else all of it that fits is
    resets      counts begin anew with a pass in which every request is new
    nexts       fill the column NEXT: the policy sees the future
    flags       uint8 [accesses]: column FLAG
    values      float32 [1 or passes, keys]: column VALUE
    held        keys that are there before the first event
    oracle      the policy sees what has not happened yet; tables and figures say so
    """

    score: Any
    parameters: tuple[float, ...] = ()
    bypass: bool = False
    resets: bool = False
    nexts: bool = False
    flags: np.ndarray | None = None
    values: np.ndarray | None = None
    held: np.ndarray | None = None
    oracle: bool = False


class CacheError(ValueError):
    """What a replay was given does not make a replay."""
