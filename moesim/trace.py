"""What the gates chose: a routing trace, its checks, its split and its counts.

One row per token and forward pass; per MoE layer the ranked candidates, best first, of which the first
``top_k`` were used. Letters: T tokens, L MoE layers, M ranked candidates, K = top-k, E experts, S steps.

>>> import numpy as np
>>> trace = RoutingTrace.from_arrays(np.array([[[0, 1], [2, 3]], [[0, 2], [2, 1]]]), n_experts=4, top_k=1)
>>> trace.counts().tolist()
[[2, 0, 0, 0], [0, 0, 2, 0]]
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from moesim import registry, trace_file
from moesim.trace_checks import (
    COLUMNS,
    DECODE,
    PHASES,
    PREFILL,
    UNKNOWN,
    TraceError,
    check_sizes,
    checked_experts,
    checked_meta,
    checked_probs,
    checked_tokens,
)

__all__ = ["DECODE", "PHASES", "PREFILL", "RoutingTrace", "TraceError", "read_trace"]


@dataclasses.dataclass(frozen=True, eq=False)
class RoutingTrace:
    """Hold the expert choices of every token; check them on construction.

    tokens   one row per token: request, step (forward pass), position in the request, phase (0 prefill,
             1 decode), token_id (-1 unknown), domain; rows of a request are in token order
    experts  uint16 [T, L, M], within a layer by descending probability; the first ``top_k`` were used
    probs    float16 [T, L, M] or None: what the gate gave, before any renormalisation unless meta says so
    meta     model, revision, origin, licence, synthetic, ... (JSON values); ``experts_per_layer`` if layers differ:
             ``n_experts`` is that of the largest then

    Arrays are read-only. Raises ``TraceError`` with token row, layer, fact and remedy.
    """

    tokens: pd.DataFrame
    experts: np.ndarray
    probs: np.ndarray | None
    n_experts: int
    top_k: int
    meta: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        store = object.__setattr__
        store(self, "n_experts", int(self.n_experts))
        store(self, "top_k", int(self.top_k))
        store(self, "experts", checked_experts(self.experts, self.n_experts, self.top_k))
        store(self, "probs", checked_probs(self.probs, self.experts.shape))
        store(self, "tokens", checked_tokens(self.tokens, self.n_tokens))
        facts = {"n_layers": self.n_layers, "n_experts": self.n_experts, "top_k": self.top_k,
                 "n_ranked": self.n_ranked}
        store(self, "meta", checked_meta(self.meta, facts))
        if "experts_per_layer" in self.meta:
            check_sizes(self.experts, self.sizes)

    @classmethod
    def from_arrays(cls, experts: Any, n_experts: int, top_k: int, request: Any = None, position: Any = None,
                    phase: Any = None, probs: Any = None, *, step: Any = None, token_id: Any = None,
                    domain: Any = None, **meta: Any) -> RoutingTrace:
        """Return the trace of the arrays (each [T], or one value for all) and facts about their origin.

        Left out, *request* is 0 (one request), *position* counts the rows of each request, *phase* is prefill,
        *step* is 0 for prefill and the position for decode (all requests run side by side), *token_id* is
        unknown (-1) and *domain* "unknown".
        """
        given = {"request": 0 if request is None else request, "step": step, "position": position,
                 "phase": PREFILL if phase is None else phase, "token_id": -1 if token_id is None else token_id,
                 "domain": UNKNOWN if domain is None else domain}
        n_tokens = len(experts) if np.ndim(experts) else 0
        for name, values in given.items():
            if np.ndim(values) and np.shape(values) != (n_tokens,):
                raise TraceError(f"{name} has shape {list(np.shape(values))} but experts has {n_tokens} tokens")
        columns = pd.DataFrame(given, index=range(n_tokens), columns=list(COLUMNS))
        if position is None:
            columns["position"] = columns.groupby("request").cumcount()
        if step is None:
            columns["step"] = columns["position"].where(columns["phase"] == DECODE, 0)
        return cls(columns, experts, probs, n_experts, top_k, meta)

    @property
    def n_tokens(self) -> int:
        """Return T."""
        return self.experts.shape[0]

    @property
    def n_layers(self) -> int:
        """Return L, the number of MoE layers."""
        return self.experts.shape[1]

    @property
    def sizes(self) -> np.ndarray:
        """Return the experts of each layer, int64 [L]."""
        return np.array(self.meta.get("experts_per_layer") or [self.n_experts] * self.n_layers, dtype=np.int64)

    @property
    def n_ranked(self) -> int:
        """Return M, the number of ranked candidates stored per layer."""
        return self.experts.shape[2]

    @property
    def chosen(self) -> np.ndarray:
        """Return the experts that were used, uint16 [T, L, K], best first."""
        return self.experts[:, :, :self.top_k]

    @property
    def requests(self) -> np.ndarray:
        """Return the distinct request ids, ascending."""
        return np.unique(self.tokens["request"].to_numpy())

    def domains(self) -> tuple[str, ...]:
        """Return the names of the domains that occur, sorted."""
        return tuple(sorted(self.tokens["domain"].cat.categories))

    def select(self, rows: Any) -> RoutingTrace:
        """Return the trace of the token *rows*: a mask [T] or row numbers. Raises if nothing is left."""
        rows = np.asarray(rows)
        if rows.dtype == bool:
            if rows.shape != (self.n_tokens,):
                raise TraceError(f"the mask has shape {list(rows.shape)} but the trace has {self.n_tokens} tokens")
            rows = np.flatnonzero(rows)
        if not rows.size:
            raise TraceError(f"the selection keeps none of the {self.n_tokens} tokens; a trace needs at least one")
        if rows.dtype.kind not in "iu" or rows.ndim != 1:
            raise TraceError(f"rows has dtype {rows.dtype} and shape {list(rows.shape)}; give a mask or row numbers")
        if rows.min() < 0 or rows.max() >= self.n_tokens:
            bad = rows[(rows < 0) | (rows >= self.n_tokens)][0]
            raise TraceError(f"row {bad} is selected but the trace has {self.n_tokens} tokens, from row 0")
        return dataclasses.replace(self, tokens=self.tokens.iloc[rows], experts=self.experts[rows],
                                   probs=None if self.probs is None else self.probs[rows])

    def of_requests(self, ids: Iterable[int]) -> RoutingTrace:
        """Return the trace of the requests *ids*. Raises if one of them does not occur."""
        wanted = np.unique(np.asarray(list(ids)))
        missing = np.setdiff1d(wanted, self.requests)
        if len(missing):
            raise TraceError(f"request {missing[0]} is not in the trace; it has {len(self.requests)} requests, "
                             f"{self.requests[0]}..{self.requests[-1]}")
        return self.select(np.isin(self.tokens["request"].to_numpy(), wanted))

    def of_domain(self, name: str) -> RoutingTrace:
        """Return the trace of the tokens of one domain. Raises if it does not occur."""
        if name not in self.domains():
            raise TraceError(f"the trace has no domain {name!r}{registry.suggest(name, self.domains())}")
        return self.select((self.tokens["domain"] == name).to_numpy())

    def phase(self, name: str) -> RoutingTrace:
        """Return the trace of the phase *name*, ``"prefill"`` or ``"decode"``. Raises if it does not occur."""
        if name not in PHASES:
            raise TraceError(f"unknown phase {name!r}{registry.suggest(name, PHASES)}")
        rows = self.tokens["phase"].to_numpy() == PHASES.index(name)
        if not rows.any():
            raise TraceError(f"the trace has no {name} tokens, only {PHASES[1 - PHASES.index(name)]}")
        return self.select(rows)

    def profile(self, fraction: float = 0.5, seed: int = 0) -> RoutingTrace:
        """Return the part that solvers may see: a *fraction* of the requests, chosen by the hash of their ids.

        The choice depends on the ids and *seed* only, not on the order of rows; at least one request stays on
        each side. Raises if the trace has a single request.
        """
        return self.of_requests(self._split(fraction, seed)[0])

    def evaluation(self, fraction: float = 0.5, seed: int = 0) -> RoutingTrace:
        """Return the rest of ``profile(fraction, seed)``: the requests that solvers did not see."""
        return self.of_requests(self._split(fraction, seed)[1])

    def _split(self, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
        if not 0 < fraction < 1:
            raise TraceError(f"fraction is {fraction}; the profile part is more than 0 and less than 1 of the trace")
        requests = self.requests
        if len(requests) < 2:
            raise TraceError(f"the trace has one request ({requests[0]}); a split into profile and evaluation keeps "
                             "requests whole and needs two: capture more, or give rows their true request ids")
        shuffled = requests[np.argsort(_hash(requests, seed), kind="stable")]
        cut = min(max(round(fraction * len(requests)), 1), len(requests) - 1)
        return shuffled[:cut], shuffled[cut:]

    def counts(self, step: int | None = None) -> np.ndarray:
        """Return the tokens per expert, int64 [L, E], of the whole trace or of one *step*."""
        from moesim.trace_loops import add_step_counts

        if step is not None:
            rows = self.tokens["step"].to_numpy() == step
            if not rows.any():
                raise TraceError(f"step {step} is not in the trace; steps go from {self.tokens['step'].min()} to "
                                 f"{self.tokens['step'].max()}")
            return self.select(rows).counts()
        counts = np.zeros((1, self.n_layers, self.n_experts), dtype=np.int64)
        add_step_counts(self.experts, self.top_k, np.zeros(self.n_tokens, dtype=np.int64), counts)
        return counts[0]

    def transitions(self, top1: bool = True) -> np.ndarray:
        """Return how often expert i of layer l is followed by j of layer l+1 in one token, int64 [L-1, E, E].

        ``top1`` counts the first choices only (sum per layer = T); otherwise all K x K pairs of used experts.
        """
        from moesim.trace_loops import add_transitions

        counts = np.zeros((self.n_layers - 1, self.n_experts, self.n_experts), dtype=np.int64)
        add_transitions(self.experts, 1 if top1 else self.top_k, counts)
        return counts

    def write(self, path: str | Path) -> None:
        """Write the trace as Parquet (docs/reference/trace.md); ``read_trace`` gives back the same bits."""
        with trace_file.TraceWriter(path, self.meta, probs=self.probs is not None) as writer:
            writer.write(self.tokens, self.experts, self.probs)


def _hash(ids: np.ndarray, seed: int) -> np.ndarray:
    """Return 64 well-mixed bits per id (the finaliser of SplitMix64, Steele et al., OOPSLA 2014)."""
    with np.errstate(over="ignore"):
        x = ids.astype(np.uint64) + np.uint64(seed % (1 << 64)) * np.uint64(0x9E3779B97F4A7C15)
        x = x + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def read_trace(path: str | Path, format: Any = None) -> RoutingTrace:
    """Return the trace in the file *path*; *format* is the reader (a part, its name, or a mapping with its name and
    parameters), left out it is found from the file.

    Raises ``TraceError`` if the file is missing, of no known format, or not a valid trace.
    """
    path = Path(path)
    if not path.exists():
        raise TraceError(f"{path}: no such file{registry.near_files(path)}")
    if format is not None:
        return registry.make("format", format).read(path)
    readers = [registry.make("format", name) for name in registry.names("format")]
    fitting = [reader for reader in readers if reader.matches(path)]
    if len(fitting) == 1:
        return fitting[0].read(path)
    if not fitting:
        raise TraceError(f"{path}: no format fits a file that ends in {path.suffix!r}"
                         f"{registry.suggest(path.suffix, registry.names('format'))}; rename it or give format=...")
    raise TraceError(f"{path}: several readers know this file ({', '.join(map(registry.name_of, fitting))}); "
                     "name one with format=...")
