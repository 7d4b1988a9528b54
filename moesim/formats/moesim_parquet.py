"""Parquet files written by moesim: one row per token, ids as fixed-size lists, facts in the schema metadata.

>>> from pathlib import Path
>>> MoesimParquet().matches(Path("run.parquet")), MoesimParquet().matches(Path("run.npz"))
(True, False)
"""

from __future__ import annotations

from pathlib import Path

from moesim import trace_file
from moesim.registry import part
from moesim.trace import RoutingTrace, TraceError


@part
class MoesimParquet:
    """Read the native form (docs/reference/trace.md)."""

    def matches(self, path: Path) -> bool:
        """Say whether the file's name ends in ``.parquet``."""
        return trace_file.is_trace_file(path)

    def read(self, path: Path) -> RoutingTrace:
        """Return the trace. Raises ``TraceError`` naming the file if its form or its content is wrong."""
        tokens, experts, probs, meta = trace_file.read_arrays(path)
        try:
            return RoutingTrace(tokens, experts, probs, meta["n_experts"], meta["top_k"], meta)
        except TraceError as error:
            raise TraceError(f"{path}: {error}") from None
