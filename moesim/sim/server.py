"""The one live primitive: anything that can be busy."""

from __future__ import annotations

import simpy


class Server:
    """A processor or a copy engine: serves one job after the other, in order of arrival.

    First in, first out needs no queue: a job ends at ``max(now, free_at) + duration``.
    """

    def __init__(self, env: simpy.Environment):
        self._env = env
        self.free_at = 0.0

    def serve(self, duration_s: float) -> float:
        """Return when a job of *duration_s* starts; jobs asked for at one time follow one another."""
        start = max(self._env.now, self.free_at)
        self.free_at = start + duration_s
        return start

    def done(self) -> simpy.Event:
        """Return the event of the end of all jobs so far."""
        return self._env.timeout(self.free_at - self._env.now)
