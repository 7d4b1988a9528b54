"""Live requests and the groups of devices that serve them: what a scheduler sees and changes.

A request waits, or runs in a group: it then has KV memory. It has ``prompt + produced`` tokens, the first ``computed``
of which are in memory; a step computes some of the others, and when all are computed the next one is produced.
"""

from __future__ import annotations

import bisect
import heapq
from collections.abc import Callable

import numpy as np
import pandas as pd

from moesim.serving import loops
from moesim.serving.pool import Pool

_NONE = np.empty(0, np.int64)
# requests, tokens of each in memory, tokens after them -> how many of these choose each expert of a layer [R, L x E]
Demand = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
_ALL = np.iinfo(np.int64).max  # tokens: no limit


class Requests:
    """The requests of a run as arrays [requests], numbered in order of arrival."""

    def __init__(self, table: pd.DataFrame):
        n = len(table)
        self.arrival_s = table["arrival_s"].to_numpy(float).copy()
        self.prompt = table["prompt_tokens"].to_numpy(np.int64)
        self.output = table["output_tokens"].to_numpy(np.int64)
        self.priority = table["priority"].to_numpy(np.int64) if "priority" in table else np.zeros(n, np.int64)
        self.stored = self.prompt + self.output - 1  # KV tokens in the end: the last one is never read again
        self.produced = np.zeros(n, np.int64)
        self.computed = np.zeros(n, np.int64)
        self.reached = np.zeros(n, np.int64)  # the most that was computed when it was preempted
        self.group = np.full(n, -1)
        self.queued_s, self.scheduled_s, self.first_token_s, self.finish_s = np.full((4, n), np.nan)
        self.preemptions, self.cached = np.zeros((2, n), np.int64)

    def __len__(self) -> int:
        return len(self.arrival_s)

    def left(self, requests: np.ndarray) -> np.ndarray:
        """Return the tokens that *requests* compute before each produces its next one; 0 if it has produced all."""
        known = self.prompt[requests] + np.minimum(self.produced[requests], self.output[requests] - 1)
        return known - self.computed[requests]


class Group:
    """One engine: devices that share a queue and KV memory. ``running``: int64, in order of admission.

    ``demand``: what experts tokens will choose, for schedulers that may know; None if nobody does.
    """

    def __init__(self, requests: Requests, pool: Pool):
        self.requests, self.pool = requests, pool
        self.demand: Demand | None = None
        self.passed = np.zeros(len(requests), np.int64)  # steps in a row for which a scheduler did not choose each
        self.running = _NONE
        self.promised = 0      # KV tokens that all its requests, waiting ones too, need in the end
        self._waiting: list[tuple[int, int]] = []
        self.under_way = 0     # batches that have departed and not arrived
        self._held: list[int] = []  # preempted while their token is on its way: they wait when it has come
        self._reports: list[tuple[float, int, int]] = []  # time, who waited and who ran, as steps ended

    @property
    def n_waiting(self) -> int:
        """Requests without memory."""
        return len(self._waiting)

    def first(self) -> int:
        """Return the request that waits in front: the smallest priority number, then the earliest."""
        return self._waiting[0][1]

    def waiting(self) -> list[int]:
        """Return all that wait, in order."""
        return [request for _, request in sorted(self._waiting)]

    def add(self, request: int) -> None:
        """Let *request*, new here, wait."""
        self.promised += int(self.requests.stored[request])
        self.passed[request] = 0
        self._wait(request)

    def _wait(self, request: int) -> None:
        heapq.heappush(self._waiting, (int(self.requests.priority[request]), request))

    def note_turn(self, able: np.ndarray, chosen: np.ndarray) -> None:
        """Note that of the requests *able* to run a scheduler has *chosen* some, and passed over the others."""
        self.passed[able] += 1
        self.passed[chosen] = 0

    def report(self, time_s: float) -> None:
        """Keep how many wait and run now that a step has ended, for routers that see no more than that."""
        self._reports.append((time_s, self.n_waiting, len(self.running)))

    def reported(self, time_s: float) -> tuple[int, int]:
        """Return how many waited and ran after the last step that had ended by *time_s*; forget what was before it."""
        known = bisect.bisect_right(self._reports, time_s, key=lambda report: report[0])
        del self._reports[:max(known - 1, 0)]
        return self._reports[0][1:] if known else (0, 0)

    def newer(self, time_s: float) -> int:
        """Return how many of those that run or wait arrived at *time_s* or later."""
        here = np.concatenate([self.running, np.array([request for _, request in self._waiting], np.int64)])
        return int(np.count_nonzero(self.requests.arrival_s[here] >= time_s))

    def admit(self, request: int, found: int, tokens: int, reserve: bool = False) -> bool:
        """Let the waiting *request* run: *found* of its tokens are computed, a step computes *tokens* more.

        It gets room for these, with *reserve* for all that it needs in the end. False: there is no room.
        """
        room = int(self.requests.stored[request]) if reserve else found + tokens
        if not self.pool.take(request, found, room):
            return False
        self.pool.filled(np.array([request]), np.array([found + tokens]))
        entry = (int(self.requests.priority[request]), request)
        if self._waiting[0] == entry:
            heapq.heappop(self._waiting)
        else:
            self._waiting.remove(entry)
            heapq.heapify(self._waiting)
        self.requests.computed[request] = found
        if self.requests.preemptions[request] == 0:
            self.requests.cached[request] = found
        self.running = np.append(self.running, request)
        return True

    def preempt(self, request: int) -> None:
        """Take the memory of *request*; it waits, and computes all its tokens again when it is admitted."""
        on_its_way = self.under_way and self.requests.left(np.array([request]))[0] == 0
        self.running = self.running[self.running != request]
        self.pool.release(request)
        self.requests.reached[request] = max(self.requests.reached[request], self.requests.computed[request])
        self.requests.computed[request] = 0
        self.requests.preemptions[request] += 1
        if on_its_way:
            self._held.append(request)
        else:
            self._wait(request)

    def room(self, requests: np.ndarray, budget: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Make room for what *requests*, which run, compute next: in order, *budget* tokens in all (None: any number).

        Return who has room, and the tokens of each. Where there is too little, whoever runs and is last (largest
        priority number, then number) is preempted; what it was given in this step, others may have. Who is preempted
        in its own turn holds back those behind it (as in vLLM), so that nobody may be left: ask again.
        """
        live = self.requests
        served, tokens, after = loops.share(requests, _ALL if budget is None else budget, live.prompt, live.output,
                                            live.produced, live.computed)
        if not self.pool.grow_all(served, after):
            served, tokens = self._squeeze(requests[live.left(requests) > 0].tolist(), budget)
            after = live.computed[served] + tokens
        self.pool.filled(served, after)
        return served, tokens

    def _squeeze(self, requests: list[int], budget: int | None) -> tuple[np.ndarray, np.ndarray]:
        """As ``room``, one request after the other, where not all of *requests* find room."""
        live, given, gone = self.requests, dict[int, int](), set[int]()
        free = float("inf") if budget is None else budget
        for request in requests:
            count = int(min(live.left(np.array([request]))[0], free))
            if count == 0:
                break
            while request not in gone and not self.pool.grow(request, int(live.computed[request]) + count):
                victim = max(self.running.tolist(), key=lambda r: (live.priority[r], r))
                self.preempt(victim)
                free += given.pop(victim, 0)
                gone.add(victim)
                if victim == request:
                    return _table(given)
            if request not in gone:
                given[request] = count
                free -= count
        return _table(given)

    def advance(self, requests: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """Note that a step computes *tokens* more of each of *requests*; return those of which it produces a token."""
        live = self.requests
        return loops.advance(requests, tokens, live.prompt, live.output, live.produced, live.computed)

    def depart(self, requests: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """As ``advance``, of a batch whose tokens are only produced when it has come (``arrive``).

        Until then who is in it has nothing left to compute, unless it is a prompt in chunks.
        """
        self.under_way += 1
        self.requests.computed[requests] += tokens
        return requests[self.requests.left(requests) == 0]

    def arrive(self, stepped: np.ndarray) -> None:
        """Note that the batch has come in which those *stepped* get a token."""
        self.under_way -= 1
        self.requests.produced[stepped] += 1
        for request in set(self._held) & set(stepped.tolist()):
            self._held.remove(request)
            self._wait(request)

    def complete(self, stepped: np.ndarray) -> np.ndarray:
        """Return which of *stepped*, whose tokens have come, are done; they leave."""
        done = loops.done(stepped, self.requests.produced, self.requests.output)
        if len(done):
            self._leave(done)
        return done

    def _leave(self, done: np.ndarray) -> None:
        before = len(self.running)
        for request in done.tolist():
            self.running = self.running[self.running != request]
            self._let_go(request)
        if before - len(self.running) < len(done):  # preempted while its last token was computed
            self._waiting = [entry for entry in self._waiting if entry[1] not in done]
            heapq.heapify(self._waiting)

    def _let_go(self, request: int) -> None:
        """Take the memory of *request*, which is done."""
        self.pool.release(request)
        self.promised -= int(self.requests.stored[request])


def _table(given: dict[int, int]) -> tuple[np.ndarray, np.ndarray]:
    return np.array(list(given), np.int64), np.array(list(given.values()), np.int64)


def example(prompts: list[int], outputs: list[int], blocks: int, block: int = 16, experts: list[int] | None = None
            ) -> Group:
    """Return a group with one waiting request for each of *prompts* and *outputs*, for examples and tests.

    *experts*: the one that all tokens of each request choose.
    """
    table = pd.DataFrame({"arrival_s": 0.0, "prompt_tokens": prompts, "output_tokens": outputs})
    group = Group(Requests(table), Pool(blocks, block, len(table)))
    if experts is not None:
        of = np.eye(max(experts) + 1)[experts]
        group.demand = lambda requests, past, tokens: of[requests] * tokens[:, None]
    for request in range(len(table)):
        group.add(request)
    return group
