"""Blocks of the micro-benchmark: one part per file, with ``points(target)`` and ``work(point, bench)``."""
