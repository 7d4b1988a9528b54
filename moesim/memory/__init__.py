"""Expert caches replayed without a machine: policies, prefetchers and batches on what a trace asks for.

>>> stats = replay([{1, 2}, {0, 1}, {1, 2}, {0, 1}, {1, 2}], "lru", capacity=2)
>>> stats.hits, stats.misses, stats.contract
(4, 6, 'event')
>>> stats = replay([{1, 2}, {0, 1}, {1, 2}, {0, 1}, {1, 2}], "lru", capacity=2, contract="sequential")
>>> stats.hits, stats.misses
(2, 8)
"""

from __future__ import annotations

from moesim.memory.comparing import compare, label, with_gaps
from moesim.memory.events import Events
from moesim.memory.replaying import replay
from moesim.memory.setup import events_of
from moesim.memory.stats import CacheStats
from moesim.memory.terms import CacheError

__all__ = ["CacheError", "CacheStats", "Events", "compare", "events_of", "label", "replay", "with_gaps"]
