"""Traces of ExFlow: one npy array ``[token, MoE layer]`` of the expert that a top-1 gate chose.

>>> import tempfile, pathlib
>>> path = pathlib.Path(tempfile.mkdtemp()) / "trace.npy"
>>> np.save(path, [[0, 3], [1, 2]])
>>> trace = ExflowNpy(n_experts=4).read(path)
>>> trace.experts.tolist(), trace.tokens["request"].tolist()
([[[0], [3]], [[1], [2]]], [0, 1])
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from moesim.formats import _arrays
from moesim.registry import part
from moesim.trace import RoutingTrace, TraceError


@part
class ExflowNpy:
    """Read what YJHMITWEB/ExFlow's solve_affinity.py loads (``routing_array``).

    ``n_experts`` is that script's ``num_expert_per_layer``; the file does not say it. It does not say either which
    tokens belong together, so every token is a prefill request of its own: overlap of consecutive tokens and the
    lengths of requests mean nothing in such a trace.
    """

    n_experts: int | None = None

    def matches(self, path: Path) -> bool:
        """Say whether *path* is an ``.npy`` file of two axes."""
        return Path(path).suffix == ".npy" and _arrays.dimensions(Path(path)) == 2

    def read(self, path: Path) -> RoutingTrace:
        """Return the trace, top 1. Raises ``TraceError``."""
        arrays = _arrays.load(Path(path))
        chosen = arrays.get("")
        if chosen is None or chosen.ndim != 2:
            shapes = {name or "array": list(array.shape) for name, array in arrays.items()}
            raise TraceError(f"{path}: holds {shapes}, not one array [tokens, layers] of a top-1 gate; see moesim list "
                             "format")
        if self.n_experts is None:
            raise TraceError(f"{path}: does not say how many experts a layer has; give it: "
                             "{name: exflow_npy, n_experts: ...}")
        try:
            return RoutingTrace.from_arrays(chosen[:, :, None], self.n_experts, 1, request=np.arange(len(chosen)),
                                            origin="ExFlow trace (tokens without requests)")
        except TraceError as error:
            raise TraceError(f"{path}: {error}") from None
