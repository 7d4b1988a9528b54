"""Groups that only prefill and groups that only decode: who holds memory while keys and values are on their way.

As in vLLM (the KV connectors of v1) and SGLang: the prompt's memory is kept until the other side has it all, and the
other side has set memory aside before anything moves. Where it has none, a request waits, with its memory.

>>> from moesim.serving.group import example
>>> one = example(prompts=[5, 3], outputs=[1, 1], blocks=2, block=4)
>>> group = Prefilling(one.requests, one.pool, moves=np.array([True, False]))
>>> for request in (0, 1):
...     group.add(request)
>>> group.admit(0, found=0, tokens=5), group.admit(1, found=0, tokens=3)    # the first prompt fills both blocks
(True, False)
>>> group.complete(group.advance(np.array([0]), np.array([5]))), group.pool.free, group.n_kept
(array([0]), 0, 1)
>>> group.sent(0)
>>> group.pool.free, group.n_kept
(2, 0)
"""

from __future__ import annotations

import copy
import heapq
from collections import deque

import numpy as np

from moesim.serving.group import Group, Requests
from moesim.serving.pool import Pool


class Prefilling(Group):
    """Computes prompts and their first tokens. ``n_kept``: requests that are done here but keep their memory.

    *moves*: whose KV goes elsewhere, bool [requests]; others have one output token and are done for good. *requests*
    have one output token each.
    """

    def __init__(self, requests: Requests, pool: Pool, moves: np.ndarray):
        super().__init__(requests, pool)
        self._moves, self.n_kept = moves, 0

    def complete(self, stepped: np.ndarray) -> np.ndarray:
        """Return which of *stepped*, whose first tokens have come, are done: all but those preempted meanwhile.

        They have no KV to send (a step that was planned as their last one began took it), and compute it again.
        """
        lost = stepped[self._moves[stepped] & ~np.isin(stepped, self.running)]
        self.requests.produced[lost] = 0
        return super().complete(np.setdiff1d(stepped, lost) if len(lost) else stepped)

    def _let_go(self, request: int) -> None:
        if self._moves[request]:
            self.n_kept += 1
        else:
            super()._let_go(request)

    def sent(self, request: int) -> None:
        """Take the memory of *request*, all of whose KV is where it decodes."""
        self.n_kept -= 1
        super()._let_go(request)


class Decoding(Group):
    """Decodes requests whose KV comes from elsewhere: they are expected, then on their way, here, and run.

    *max_batch*: who may run at once; *whole*: memory is set aside for the whole answer, not for its next token alone.
    Who is preempted waits, as in any group, and computes prompt and answer so far again here (vLLM's connectors bring
    KV once per request); nobody else is given memory before it.
    """

    def __init__(self, requests: Requests, pool: Pool, max_batch: int | None, whole: bool):
        super().__init__(requests, pool)
        self._max_batch, self._whole = max_batch, whole
        self._expected: list[tuple[int, int, int]] = []  # priority, number of the offer, request
        self._here: deque[int] = deque()
        self._coming: list[int] = []
        self._offers = 0

    @property
    def n_expected(self) -> int:
        """Requests that have no memory here yet."""
        return len(self._expected)

    @property
    def n_kept(self) -> int:
        """Requests that have memory here but do not run: their KV is on its way, or the batch is full."""
        return len(self._coming) + len(self._here)

    def expect(self, request: int) -> None:
        """Let *request*, prefilled elsewhere, wait for memory."""
        self.promised += int(self.requests.stored[request])
        heapq.heappush(self._expected, (int(self.requests.priority[request]), self._offers, request))
        self._offers += 1

    def make_room(self) -> list[int]:
        """Give memory to those expected, in order, while there is any; return who has got it: their KV may come.

        Those that run come first: what they need for their next tokens is left to them.
        """
        live, found = self.requests, list[int]()
        next_tokens = live.computed[self.running] + live.left(self.running)
        more = -(-next_tokens // self.pool.block) - self.pool.held[self.running]
        kept = int(np.maximum(more, 0).sum())
        while self._expected and not self.n_waiting:
            request = self._expected[0][-1]
            tokens = int(live.stored[request] if self._whole else live.prompt[request] + 1)
            if self.pool.blocks(tokens) + kept > self.pool.free:
                break
            self.pool.grow(request, tokens)
            heapq.heappop(self._expected)
            found.append(request)
        self._coming += found
        return found

    def arrived(self, request: int) -> None:
        """Note that all KV of *request* is here."""
        self._coming.remove(request)
        self._here.append(request)

    def join(self) -> None:
        """Let those whose KV is here run, as many as may: their prompt is computed, and their first token is known."""
        while self._here and (self._max_batch is None or len(self.running) < self._max_batch):
            request = self._here.popleft()
            self.requests.computed[request] = self.requests.prompt[request]
            self.requests.produced[request] = 1
            self.running = np.append(self.running, request)

    def seen(self) -> Group:
        """Return the group as a router sees it: all that it has been promised wait."""
        other = copy.copy(self)
        coming = [*self._coming, *self._here, *(request for *_, request in self._expected)]
        other._waiting = self._waiting + [(int(self.requests.priority[request]), request) for request in coming]
        return other
