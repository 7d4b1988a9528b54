"""Jobs of one phase that two processors over one memory can share, and how long the phase takes when they do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np


@dataclass(frozen=True)
class Jobs:
    """What there is to do: J jobs on each of any number of devices, in any number of layers.

    ``tokens`` [..., J]; 0 where there is nothing to do. ``own_s``, ``beside_s`` [..., J]: seconds of each job alone, on
    the device's own processor and on the one beside it. ``op_per_byte`` [..., J]: FLOP per byte that must be moved.
    ``space`` int [J]: which part of the memory each job reads, of ``n_spaces``. ``own``: seconds [...] of the device's
    own processor for the jobs in a mask [..., J], which it may run as one kernel; several masks at a time have one more
    dimension in front.
    """

    tokens: np.ndarray
    own_s: np.ndarray
    beside_s: np.ndarray
    op_per_byte: np.ndarray
    space: np.ndarray
    n_spaces: int
    own: Callable[[np.ndarray], np.ndarray]


class Times(NamedTuple):
    """Seconds [...] of a phase, and for how many of them each processor works."""

    phase_s: np.ndarray
    own_s: np.ndarray
    beside_s: np.ndarray


def by_space(values: np.ndarray, space: np.ndarray, n_spaces: int) -> np.ndarray:
    """Return the sums of *values* [..., J] over the jobs of each space: [..., n_spaces]."""
    member = np.zeros((len(space), n_spaces))
    member[np.arange(len(space)), space] = 1.0
    return values @ member


def share(jobs: Jobs, beside: np.ndarray, side_by_side: bool) -> Times:
    """Return the seconds of *jobs* if those in the mask *beside* [..., J] run on the processor beside.

    Without *side_by_side* one processor works at a time. With it both do, each job holding its processor and its space:
    the phase lasts as long as the busiest processor or the busiest space. That is what an open shop with preemption
    reaches (Gonzalez, Sahni, J. ACM 1976): jobs of both processors in one space wait for each other, all others do not.
    """
    own_s = jobs.own(~beside)
    there = np.where(beside, jobs.beside_s, 0.0)
    beside_s = there.sum(axis=-1)
    if not side_by_side:
        return Times(own_s + beside_s, own_s, beside_s)
    alone = np.where(beside, 0.0, jobs.own_s)
    total = alone.sum(axis=-1)
    scale = np.divide(own_s, total, out=np.zeros_like(own_s), where=total > 0)  # of one kernel, not of each job alone
    spaces = by_space(alone * scale[..., None] + there, jobs.space, jobs.n_spaces).max(axis=-1)
    return Times(np.maximum(np.maximum(own_s, beside_s), spaces), own_s, beside_s)


def example(tokens: list[int], n_spaces: int, own_s: Any = None, beside_s: Any = None) -> Jobs:
    """Return jobs for doctests and tests by hand: one expert each, space after space, 1 s per token beside.

    The device's own processor needs 4 s per expert that has tokens, however many (or *own_s*, *beside_s*).
    """
    counts = np.asarray(tokens)
    own = np.where(counts > 0, 4.0, 0.0) if own_s is None else np.asarray(own_s, float)
    other = counts * 1.0 if beside_s is None else np.asarray(beside_s, float)
    return Jobs(counts, own, other, counts * 1.0, np.arange(len(counts)) % n_spaces, n_spaces,
                lambda mask: np.where(mask, own, 0.0).sum(axis=-1))
