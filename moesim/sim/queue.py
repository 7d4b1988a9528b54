"""The live requests of a run: who waits, who runs, how far each has come, and the memory they hold."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moesim.serving.view import Plan, QueueView
from moesim.sim.cost import Batch
from moesim.sim.inputs import Inputs


@dataclass(frozen=True)
class Pools:
    """KV memory: tokens that each pool holds, and the pool of each group."""

    capacity: np.ndarray
    of_group: np.ndarray


class Queue:
    """Request numbers are in order of arrival; a request is waiting, admitted (no prompt run yet), running or done."""

    def __init__(self, inputs: Inputs, pools: Pools):
        table = inputs.requests
        self.arrival_s = table["arrival_s"].to_numpy(float).copy()
        self.prompt = table["prompt_tokens"].to_numpy(np.int64)
        self.output = table["output_tokens"].to_numpy(np.int64)
        self.need = self.prompt + self.output - 1  # the last token is never read again: its KV is not stored
        self._check(inputs, pools)
        self.produced = np.zeros(len(table), np.int64)
        self.group = np.full(len(table), -1)
        self.first_token_s = np.full(len(table), np.nan)
        self.finish_s = np.full(len(table), np.nan)
        self.waiting = self.admitted = self.running = np.empty(0, np.int64)
        self._next = 0  # the first request that has not arrived
        self._rows = inputs.rows
        self._pools = pools
        self.reserved = np.zeros(len(pools.capacity), np.int64)
        self.requests = np.zeros(len(pools.of_group), np.int64)

    def _check(self, inputs: Inputs, pools: Pools) -> None:
        worst, room = int(np.argmax(self.need)), int(pools.capacity.max())
        need, limit = int(self.need[worst]), inputs.scenario.model.context
        if need > room:
            raise inputs.scenario.error("requests", (
                f"request {worst} needs the KV of {need} tokens, the memory left beside the weights holds {room} "
                f"({need - room} too few); shorten it, or use more or larger devices, a larger parallelism.tp or a "
                f"higher memory_fraction"))
        if need + 1 > limit:
            raise inputs.scenario.error("requests", (
                f"request {worst} has {need + 1} tokens, above the model's context of {limit}; shorten it"))

    @property
    def done(self) -> bool:
        """Whether every request has finished."""
        return self._next == len(self.arrival_s) and not (len(self.waiting) + len(self.admitted) + len(self.running))

    @property
    def next_arrival_s(self) -> float:
        """When the next request comes, seconds; infinite if none is due by itself."""
        if self._next == len(self.arrival_s) or np.isnan(self.arrival_s[self._next]):
            return float("inf")
        return float(self.arrival_s[self._next])

    def arrive(self, now: float) -> None:
        """Move the requests that have arrived by *now* to the waiting ones."""
        first = self._next
        while self._next < len(self.arrival_s) and self.arrival_s[self._next] <= now:
            self._next += 1
        if self._next > first:
            self.waiting = np.concatenate([self.waiting, np.arange(first, self._next)])

    def view(self) -> QueueView:
        """Return what the scheduler may see."""
        return QueueView(self.waiting, self.admitted, self.running, self.prompt, self.need, self.requests,
                         self._pools.of_group, self._pools.capacity - self.reserved)

    def start(self, plan: Plan) -> Batch:
        """Carry out *plan*: reserve memory for what it admits; return the tokens that run in this step."""
        if plan.admit:
            new = np.fromiter(plan.admit, np.int64, len(plan.admit))
            self.group[new] = np.fromiter(plan.admit.values(), np.int64, len(new))
            np.add.at(self.requests, self.group[new], 1)
            np.add.at(self.reserved, self._pools.of_group[self.group[new]], self.need[new])
            self.waiting = self.waiting[~np.isin(self.waiting, new)]
            self.admitted = np.concatenate([self.admitted, new])
        p, d = plan.prefill, plan.decode
        return Batch(p, self.prompt[p], self.group[p], self._rows.prompt(p, self.prompt[p]),
                     d, self.prompt[d] + self.produced[d], self.group[d], self._rows.decode(d, self.produced[d] - 1))

    def finish_step(self, batch: Batch, now: float) -> None:
        """Every request of *batch* has one more token at *now*; free those that are complete."""
        self.first_token_s[batch.prefill] = now
        stepped = np.concatenate([batch.prefill, batch.decode])
        self.produced[stepped] += 1
        if len(batch.prefill):
            self.admitted = self.admitted[~np.isin(self.admitted, batch.prefill)]
            self.running = np.concatenate([self.running, batch.prefill])
        complete = stepped[self.produced[stepped] == self.output[stepped]]
        if len(complete) == 0:
            return
        self.finish_s[complete] = now
        self.running = self.running[~np.isin(self.running, complete)]
        np.subtract.at(self.requests, self.group[complete], 1)
        np.subtract.at(self.reserved, self._pools.of_group[self.group[complete]], self.need[complete])
        waiting_users = slice(self._next, self._next + len(complete))  # closed loop: each user sends the next request
        self.arrival_s[waiting_users] = np.where(np.isnan(self.arrival_s[waiting_users]), now,
                                                 self.arrival_s[waiting_users])

    @property
    def kv_tokens(self) -> int:
        """KV tokens in use by running requests."""
        return int((self.prompt[self.running] + self.produced[self.running] - 1).sum())
