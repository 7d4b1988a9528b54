"""What a step needs, however it is computed: model FLOP by data type, and the bytes that must be read once.

The numerators of MFU and MBU. Model FLOP (PaLM, arXiv 2204.02311, appendix B: no recomputation; a forward pass, so no
factor 3) are those of the matrices that a token meets, of the output head for tokens that it gives, and of the pairs of
tokens that attention joins. Bytes (Databricks, "LLM Inference Performance Engineering", 2023: weights and KV cache) are
of weights that the step meets: of experts only those that are chosen, on every device that runs them (S-MBU of MoE-CAP,
arXiv 2412.07067). An embedding table is not read, but for a few rows, and not counted.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from moesim.layers import DTYPE_BYTES, Gemms
from moesim.scenario import Scenario
from moesim.sim.cost import Batch, StepCost
from moesim.sim.operators import pairs

_ALL = 1 << 40  # a window that no context fills


class Needs:
    """Per token, sampled token, attended pair, reading device and activated expert: what a step of *scenario* needs."""

    def __init__(self, scenario: Scenario):
        model, tp = scenario.model, scenario.parallelism.tp
        self._tp, self._groups = tp, scenario.n_groups
        coherent = scenario.parallelism.mode == "context_coherent"
        self._copies = scenario.hardware.n_devices if coherent else 1  # of a prompt's keys and values
        self._token = _flop(scenario)
        self._head = {model.head_gemm().dtype: model.head_gemm().flop_per_token}
        self.dtypes = sorted({*self._token, *self._head, model.dtype.activations})
        windows, layers = np.unique(model.attention_windows, return_counts=True)
        self._windows: list[tuple[int, float, float, float]] = []  # window; FLOP per pair in decode, in prefill; bytes
        kv_bytes = model.attention.kv_values(tp) * DTYPE_BYTES[model.dtype.kv] * tp
        for window, n in zip(windows.tolist(), layers.tolist(), strict=True):
            per_pair = [2.0 * n * shape.heads * (shape.qk_dim + shape.v_dim)
                        for shape in (model.attention_shape(1, "decode"), model.attention_shape(1, "prefill"))]
            self._windows.append((window or _ALL, per_pair[0], per_pair[1], n * kv_bytes))
        self._attention = model.dtype.activations
        self._head_bytes = model.head_gemm(tp).bytes
        self._body_bytes = model.non_expert_bytes(tp) - (1 if model.tied_embeddings else 2) * self._head_bytes
        self._expert_bytes = model.expert_bytes if model.moe is not None else 0.0

    def of(self, batch: Batch, costs: Sequence[StepCost], reached: np.ndarray) -> dict[str, float]:
        """Return ``model_flop_<dtype>``, ``active_experts`` and ``read_bytes`` of a step that runs *batch*.

        *costs*: of the step, or of its halves. ``active_experts``: those with tokens, of all layers and devices.
        *reached* [P]: tokens that each prompt had in memory when it was preempted; computing them again is not counted.
        Tokens that only fill up are not either, but experts that they alone choose are read.
        """
        n, past, kv = len(batch.decode), batch.prefill_past, batch.decode_kv
        pair_flop = kv_bytes = 0.0
        for window, per_pair, _, per_token in self._windows:
            attended = int(np.minimum(kv, window).sum())
            pair_flop += attended * per_pair
            kv_bytes += attended * per_token
        samples = n
        if len(past):
            samples += int(np.count_nonzero(batch.prefill_sampled))
            end = past + batch.prefill_tokens
            begin = np.minimum(np.maximum(past, reached), end)
            n += int((end - begin).sum())
            for window, _, per_pair, per_token in self._windows:
                pair_flop += float((pairs(end, window) - pairs(begin, window)).sum()) * per_pair
                seen = np.minimum(past, window - 1) + batch.prefill_tokens
                kv_bytes += float(seen.sum()) * per_token * self._copies
        found = {f"model_flop_{dtype}": n * self._token.get(dtype, 0.0) + samples * self._head.get(dtype, 0.0)
                 for dtype in self.dtypes}
        found[f"model_flop_{self._attention}"] += pair_flop
        body, head = self._readers(batch) if costs[0].readers is None else costs[0].readers
        active = _activated(costs)
        weights = body * self._body_bytes + head * self._head_bytes + active * self._expert_bytes
        return found | {"active_experts": active, "read_bytes": weights + kv_bytes}

    def _readers(self, batch: Batch) -> tuple[float, float]:
        """Return how many devices have tokens, and how many give tokens."""
        if self._groups == 1:
            sampled = len(batch.decode) > 0 or bool(batch.prefill_sampled.any())
            return self._tp, self._tp * sampled
        busy = np.zeros(self._groups, bool)
        busy[batch.decode_group] = True
        giving = busy.copy() if len(batch.prefill) else busy
        busy[batch.prefill_group] = True
        giving[batch.prefill_group[batch.prefill_sampled]] = True
        return self._tp * int(np.count_nonzero(busy)), self._tp * int(np.count_nonzero(giving))


def peaks(scenario: Scenario) -> dict[str, float]:
    """Return the peak FLOP/s of a device for each data type that *scenario*'s model computes in."""
    processor = scenario.hardware.device.processor
    return {dtype: processor.peak_flop_per_s(dtype) for dtype in Needs(scenario).dtypes}


def _flop(scenario: Scenario) -> dict[str, float]:
    """Return the FLOP of a token in all matrices but the output head, by data type."""
    model, found = scenario.model, dict[str, float]()
    moe = model.n_moe_layers
    counted: list[tuple[float, Gemms]] = [
        (model.layers, model.attention_gemms()), (model.layers - moe, model.dense_gemms())]
    if model.moe is not None:
        gates = float(model.experts_per_layer.sum()) / model.n_experts
        counted += [(gates, Gemms((model.gate_gemm,))), (moe, model.shared_gemms()),
                    (moe * model.top_k, model.expert_gemms())]
    for times, matrices in counted:
        for matrix in matrices:
            found[matrix.dtype] = found.get(matrix.dtype, 0.0) + times * matrix.flop_per_token
    return found


def _activated(costs: Sequence[StepCost]) -> int:
    """Return how many experts, of all layers and devices, have tokens in the halves of a step."""
    tokens = [cost.expert_tokens for cost in costs if cost.expert_tokens is not None]
    if not tokens:
        return 0
    return int(np.count_nonzero(tokens[0] if len(tokens) == 1 else np.add(*tokens)))
