"""Kernel models: one part per file, each with ``time_s(rates, op, shapes) -> seconds`` and ``domain(op)``."""
