"""Token rows of balanced routing: each step is dealt tokens in a row, whoever their requests are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moesim.trace import RoutingTrace


@dataclass(frozen=True)
class Decks:
    """So many decks of so many rows each, one after the other in the trace (``moesim.balanced``)."""

    n_decks: int
    length: int

    @classmethod
    def of(cls, trace: RoutingTrace) -> Decks:
        """Return the decks of *trace*: its requests."""
        n = len(trace.requests)
        return cls(n, trace.n_tokens // n)

    def source(self) -> Dealer:
        """Return what deals an island's steps their rows, from the first deck on."""
        return Dealer(self)


class Dealer:
    """Deals rows in turn: a step gets rows of one deck, from where the last step ended in its own."""

    def __init__(self, decks: Decks):
        self._decks = decks
        self._step = self._dealt = 0

    def next_step(self) -> None:
        """Go on to the next deck."""
        self._step += 1

    def span(self, requests: np.ndarray, prompt: np.ndarray, past: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """Return rows for *tokens* of each of *requests*, as ``TokenRows.span``."""
        return self._deal(int(tokens.sum()))

    def decode(self, requests: np.ndarray, i: np.ndarray) -> np.ndarray:
        """Return a row for the next token of each of *requests*, as ``TokenRows.decode``."""
        return self._deal(len(requests))

    def padding(self, n_tokens: int, n_rows: int) -> np.ndarray:
        """Return rows for *n_tokens* that only fill up a step."""
        return self._deal(n_tokens)

    def _deal(self, n: int) -> np.ndarray:
        rows = self._step % self._decks.n_decks * self._decks.length + (self._dealt + np.arange(n)) % self._decks.length
        self._dealt += n
        return rows
