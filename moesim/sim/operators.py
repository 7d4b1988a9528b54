"""Seconds of the operators of one model on one device: model shapes put into the kernel model.

Arrays of tokens may have any shape; seconds come back in the same shape. No tokens take no time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import numpy as np

from moesim import kernels
from moesim.layers import DTYPE_BYTES, Gemm
from moesim.scenario import Scenario
from moesim.sim.cost import Batch

# Values moved per token and hidden unit around one attention or feed-forward block: the norm with residual addition
# reads the block's output and the residual, and writes both (assumed: one fused kernel, as in vLLM and SGLang).
_NORM_VALUES = 4


class ByCount:
    """Seconds of a number of tokens through some operators: a table by count, filled in as counts come up.

    Steps repeat: the same few counts on many devices, layer after layer, step after step.
    """

    def __init__(self, time: Callable[[np.ndarray], np.ndarray]):
        self._time = time
        self._seconds = np.zeros(1)  # no tokens take no time

    def __call__(self, tokens: np.ndarray) -> np.ndarray:
        """Return seconds for every entry of *tokens*."""
        tokens = tokens.astype(np.int64, copy=False)
        try:
            seconds = self._seconds[tokens]
        except IndexError:  # more than ever before
            unknown = np.full(2 * int(tokens.max()) + 1 - len(self._seconds), np.nan)
            self._seconds = np.concatenate([self._seconds, unknown])
            seconds = self._seconds[tokens]
        if not math.isnan(seconds.sum()):
            return seconds
        missing = np.unique(tokens[np.isnan(seconds)])
        self._seconds[missing] = self._time(missing)
        return self._seconds[tokens]


class Pricing(Protocol):
    """What says how long a step's pieces take: ``Operators`` from kernels, ``Profiled`` from measured layers."""

    windows: np.ndarray           # the model's attention windows (0: none), each once
    window_of_layer: np.ndarray   # which of them a layer has

    def projections(self, tokens: np.ndarray) -> np.ndarray:
        """Return the seconds of an attention block without attention itself."""

    def dense(self, tokens: np.ndarray) -> np.ndarray:
        """Return the seconds of the feed-forward of a layer without experts."""

    def gate(self, tokens: np.ndarray) -> np.ndarray:
        """Return the seconds of what comes before the experts of a layer."""

    def shared(self, tokens: np.ndarray) -> np.ndarray:
        """Return the seconds of the shared experts."""

    def head(self, samples: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """Return the seconds of what opens and closes a step of *tokens* of which *samples* give an output token."""

    def attention(self, batch: Batch, n_groups: int) -> np.ndarray:
        """Return the seconds of a layer's attention in every group, for each window: [windows, groups]."""

    def experts(self, tokens_per_expert: np.ndarray) -> np.ndarray:
        """Return the seconds of each device's experts, from their true tokens [layers, devices, experts]."""

    def extrapolated(self) -> list[str]:
        """Return a warning for each piece that was asked for beyond what was measured."""


class Operators:
    """The operators of *scenario*'s model on one device of a tensor-parallel group.

    By number of tokens: ``projections`` (one attention block without attention itself), ``dense`` (feed-forward of a
    layer without experts) and ``gate`` (whose cost depends on the layer's experts), each with its norm and residual
    addition; ``shared`` (shared experts, whole on every device unless tokens are replicated).
    """

    def __init__(self, scenario: Scenario, processor: Any = None, part: Any = None):
        """Bind to the device's own processor and the scenario's kernel model, or to *processor* and *part*."""
        self._model = model = scenario.model
        self._tp = tp = scenario.parallelism.tp
        processor, part = processor or scenario.hardware.device.processor, part or scenario.kernels
        self._expert_tp, replicated = scenario.parallelism.expert_tp, scenario.parallelism.dispatch == "replicated"
        self._part, self._device = part, scenario.hardware.device.name
        stored = model.dtype
        dtypes: set[str | None] = {stored.weights, stored.experts if model.moe else None, stored.activations,
                                   stored.embeddings}
        self._kernels = {dtype: kernels.bind(processor, part, dtype) for dtype in dtypes if dtype}
        self._largest: dict[tuple[str, str, str], dict[str, Any]] = {}  # of each operator, each shape's maximum
        attention, dense, head = model.attention_gemms(tp), model.dense_gemms(tp), (model.head_gemm(tp),)
        shared = model.shared_gemms(tp if replicated else 1)
        self.projections = ByCount(lambda m: self._norm(m) + self._through(attention, m))
        self.dense = ByCount(lambda m: self._norm(m) + self._through(dense, m))
        self._sizes = model.experts_per_layer.tolist()
        self._gates = {size: ByCount(partial(self._norm_and_gate, size)) for size in set(self._sizes)}
        self.shared = ByCount(lambda m: self._through(shared, m))
        self._head = ByCount(lambda m: self._through(head, m))
        windows = model.attention_windows
        self.windows, self.window_of_layer = np.unique(windows, return_inverse=True)

    def _time(self, dtype: str, op: str, name: str = "", **shapes: Any) -> np.ndarray:
        """Return the seconds of *op* (of the matrix *name*), and remember the largest of each shape asked for."""
        largest = self._largest.setdefault((dtype, op, name), dict.fromkeys(shapes, 0.0))
        for shape, value in shapes.items():
            if shape == "tokens_per_expert":
                busiest = value.reshape(-1, value.shape[-1])[np.argmax(value.sum(axis=-1))]
                if busiest.sum() > np.sum(largest[shape]):
                    largest[shape] = busiest.copy()
            elif isinstance(value, np.ndarray):
                largest[shape] = max(float(value.max(initial=0.0)), largest[shape])
            else:
                largest[shape] = max(value, largest[shape])
        return self._kernels[dtype].time_s(op, **shapes)

    def extrapolated(self) -> list[str]:
        """Return a warning for each operator whose largest shapes so far lie outside what was measured for it."""
        found = self._carried_over()
        for (dtype, op, name), largest in self._largest.items():
            kernel = self._kernels[dtype]
            if kernel.domain(op) is None:
                found.append(f"kernel times extrapolated: {op}: not fitted to measurements")
            elif not kernel.in_domain(op, **largest):
                sizes = ", ".join(f"{np.sum(v):g} tokens on {len(v)} experts" if np.ndim(v) else f"{k} {v:g}"
                                  for k, v in largest.items())
                what = f"{op} ({name})" if name else op
                found.append(f"kernel times extrapolated: {what}: largest shapes ({sizes}) are outside the measured "
                             f"domain")
        return sorted(set(found))

    def _carried_over(self) -> list[str]:
        """Return warnings for a device, or a data type, on which the kernel model's constants were not measured."""
        fitted_on, known = self._part.fitted_on, self._part.fitted_dtypes
        if not fitted_on:
            return []
        found = [f"kernel times extrapolated: {dtype}: constants were fitted with {', '.join(sorted(known))}"
                 for dtype in self._kernels if dtype not in known]
        if fitted_on not in self._device:
            found.append(f"kernel times extrapolated: constants fitted on {fitted_on} are used on {self._device}, with "
                         f"its own peak rates")
        return found

    def _through(self, matrices: tuple[Gemm, ...], tokens: np.ndarray) -> np.ndarray:
        times = [self._time(g.dtype, "gemm", g.name, m=tokens, n=g.n, k=g.k) for g in matrices]
        return np.sum(times, axis=0)

    def _norm(self, tokens: np.ndarray) -> np.ndarray:
        size = tokens * (_NORM_VALUES * self._model.activation_bytes_per_token)
        return self._time(self._model.dtype.activations, "elementwise", bytes=size)

    def _norm_and_gate(self, experts: int, tokens: np.ndarray) -> np.ndarray:
        model = self._model
        gate = self._time(model.dtype.activations, "gate", tokens=tokens, hidden=model.hidden, experts=experts,
                          top_k=model.top_k)
        return self._norm(tokens) + gate

    def gate(self, tokens: np.ndarray) -> np.ndarray:
        """Return the seconds of *tokens*, [D] or [M, D], in the M layers with experts: same shape, or [M, D]."""
        if len(self._gates) == 1:
            return self._gates[self._sizes[0]](tokens)
        rows = np.broadcast_to(tokens, (len(self._sizes), tokens.shape[-1]))
        return np.stack([self._gates[size](row) for size, row in zip(self._sizes, rows, strict=True)])

    def head(self, samples: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """Return the seconds of the output head on *samples*; looking up the embeddings of *tokens* is not charged."""
        return self._head(samples)

    def attention(self, batch: Batch, n_groups: int) -> np.ndarray:
        """Return the seconds of a layer's attention in every group, for each window of the model: [windows, groups]."""
        requests = np.bincount(batch.decode_group, minlength=n_groups)
        found = []
        for window in self.windows.tolist():
            kv = np.minimum(batch.decode_kv, window) if window else batch.decode_kv
            found.append(self.decode_attention(requests, np.bincount(batch.decode_group, kv, n_groups)))
            if len(batch.prefill):
                prompts = self.prefill_attention(batch.prefill_tokens, batch.prefill_past, window)
                found[-1] = found[-1] + np.bincount(batch.prefill_group, prompts, n_groups)
        return np.stack(found)

    def decode_attention(self, batch: np.ndarray, kv_tokens: np.ndarray) -> np.ndarray:
        """Return the seconds of *batch* decoding requests with *kv_tokens* of context in all."""
        heads, kv_heads, qk_dim, v_dim = self._model.attention_shape(self._tp, "decode")
        mean = kv_tokens / np.maximum(batch, 1)
        stored = self._model.dtype  # kernels count values as wide as activations: narrower ones count as fewer
        values = self._model.attention.kv_values(self._tp) * DTYPE_BYTES[stored.kv] / DTYPE_BYTES[stored.activations]
        return self._time(
            self._model.dtype.activations, "attention_decode", batch=batch, kv_len=mean, heads_q=heads,
            heads_kv=kv_heads, head_dim=qk_dim, head_dim_v=v_dim, kv_values=values)

    def prefill_attention(self, tokens: np.ndarray, past: np.ndarray, window: int) -> np.ndarray:
        """Return the seconds of each prompt's, or chunk's, *tokens* behind *past* ones that are in memory.

        Each token looks back at most *window* tokens (0: at all). A window shorter than the prompt is put to the kernel
        model as the context length with the same causal work: pairs = q (kv - (q - 1) / 2).
        """
        heads, kv_heads, qk_dim, v_dim = self._model.attention_shape(self._tp, "prefill")
        q = np.asarray(tokens, float)
        kv = q + past
        if window:
            kv = (pairs(q + past, window) - pairs(past, window)) / q + (q - 1) / 2
        return self._time(
            self._model.dtype.activations, "attention_prefill", q_len=q, kv_len=kv, batch=1, heads_q=heads,
            heads_kv=kv_heads, head_dim=qk_dim, head_dim_v=v_dim)

    def experts(self, tokens_per_expert: np.ndarray) -> np.ndarray:
        """Return the seconds of the experts of one device, from the true tokens of each ([..., experts])."""
        model, moe = self._model, self._model.moe
        assert moe is not None, "asked only for layers with experts"
        return self._time(
            model.dtype.experts, "moe", tokens_per_expert=tokens_per_expert, hidden=model.hidden,
            inter=moe.ffn / self._expert_tp, matrices=3 if model.gated_ffn else 2)


def pairs(tokens: np.ndarray, window: int) -> np.ndarray:
    """Return how many pairs of tokens the first *tokens* of a sequence make if each sees *window*, itself too."""
    near = np.minimum(tokens, window)
    return near * (near + 1) / 2 + (tokens - near) * window
