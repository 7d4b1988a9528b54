"""The one live primitive: anything that can be busy."""

from __future__ import annotations

import simpy


class Server:
    """A processor, a copy engine or a group of links: serves one job after the other, in order of arrival.

    First in, first out needs no queue: a job ends at ``max(now, free_at) + duration``.
    """

    def __init__(self, env: simpy.Environment):
        self._env = env
        self.free_at = 0.0

    def serve(self, duration_s: float) -> tuple[float, simpy.Event]:
        """Return when a job of *duration_s* starts, and the event of its end."""
        now = self._env.now
        start = max(now, self.free_at)
        self.free_at = start + duration_s
        return start, self._env.timeout(self.free_at - now)
