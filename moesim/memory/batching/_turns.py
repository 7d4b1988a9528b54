"""Requests taken in turn: each gives one turn (a token, or a whole prompt) to every pass in which it runs."""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np

from moesim.memory.events import Passes
from moesim.trace import DECODE, RoutingTrace

Prompts = Literal["tokens", "whole"]


@dataclasses.dataclass(frozen=True, eq=False)
class Turns:
    """Hold the turns of each request: row numbers ordered by request, and of each its request and turn."""

    rows: np.ndarray  # int64 [T]
    request: np.ndarray  # int64 [T]: 0.. in the order in which they are taken
    turn: np.ndarray  # int64 [T]: 0.. within the request
    lengths: np.ndarray  # int64 [requests]: turns

    @classmethod
    def of(cls, trace: RoutingTrace, prompts: Prompts, order: np.random.Generator | None) -> Turns:
        """Return the turns of *trace*; requests in the order of their numbers, or as *order* draws."""
        ids, request = np.unique(trace.tokens["request"].to_numpy(), return_inverse=True)
        if order is not None:
            request = order.permutation(len(ids))[request]
        rows = np.argsort(request, kind="stable")
        request, step = request[rows], trace.tokens["step"].to_numpy()[rows]
        first = np.concatenate([[True], request[1:] != request[:-1]])
        decode = trace.tokens["phase"].to_numpy()[rows] == DECODE
        new = first.copy()
        new[1:] |= (step[1:] != step[:-1]) | decode[1:] | (decode[1:] != decode[:-1])
        if prompts == "tokens":
            new[:] = True
        turn = np.cumsum(new) - 1
        turn -= np.repeat(turn[first], np.diff(np.append(np.flatnonzero(first), len(rows))))
        return cls(rows, request, turn, np.bincount(request[new], minlength=len(ids)))

    def passes(self, begins: np.ndarray) -> Passes:
        """Return the passes if request r begins at pass *begins*[r] and runs without a break."""
        step = begins[self.request] + self.turn
        order = np.lexsort((self.request, step))
        step = step[order]
        starts = np.concatenate([[0], np.flatnonzero(np.diff(step)) + 1, [len(step)]])
        later = self.turn[order] > 0
        return Passes(self.rows[order], starts, 1 - np.maximum.reduceat(later, starts[:-1]).astype(np.uint8))
