"""Implementations by name, so that a benchmark and a layer stack run the same ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd

from moesim.measure import layers

ADD_NORM = "add_rms_norm"
# Which measured kernels stand for the operators of a step: those that ``Stack`` runs.
ENGINE = {"cpu": {"gemm": "linear", "moe": "expert_loop", "attention_prefill": "rope_cache_sdpa",
                  "attention_decode": "rope_cache_sdpa", "elementwise": ADD_NORM, "gate": "linear_softmax_topk"},
          "cuda": {"gemm": "linear", "moe": "triton_fused", "attention_prefill": "rope_cache_sdpa",
                   "attention_decode": "rope_cache_triton", "elementwise": ADD_NORM, "gate": "linear_softmax_topk"}}


def experts(impl: str) -> tuple[Callable[..., Any], bool]:
    """Return the function of an expert layer, and whether a CUDA graph may record it.

    Raises ``ModuleNotFoundError`` if it needs Triton and that is not installed.
    """
    if impl == "triton_fused":
        from moesim.measure.triton import experts as fused

        return fused.experts_fused, True
    return {"expert_loop": (layers.experts_loop, False), "grouped_mm": (layers.experts_grouped_mm, True)}[impl]


def of_engine(table: pd.DataFrame, kind: str) -> pd.DataFrame:
    """Return the rows of *table* to fit a step's operators to: the engine's kernels, norms warm, the rest cold."""
    wanted = table["op"].map(ENGINE[kind]) == table["impl"]
    return table[wanted & (table["cold"] != (table["impl"] == ADD_NORM))].reset_index(drop=True)


def decode_triton(lengths: Sequence[int], device: str) -> Callable[..., Any]:
    """Return attention of queries [B, Q, D] over caches [B, G, S, D] by our split-KV kernel. *lengths* are fixed."""
    import torch

    from moesim.measure.triton import decode as kernel

    on_device = torch.tensor(list(lengths), dtype=torch.int32, device=device)
    return lambda q, keys, values: kernel.decode_split(q, keys, values, on_device, max(lengths))


def decode(impl: str, lengths: Sequence[int], device: str) -> Callable[..., Any]:
    """Return decode attention as a function of (projection, cache, heads, angles).

    ``rope_cache_sdpa`` or ``rope_cache_triton``; sequences have *lengths*, the new token included.
    """
    if impl == "rope_cache_sdpa":
        return lambda qkv, cache, heads, angles: layers.attend_decode(qkv, cache, heads, lengths, angles)
    import torch

    attend = decode_triton(lengths, device)
    rows, last = torch.arange(len(lengths), device=device), torch.tensor(list(lengths), device=device) - 1

    def run(qkv: Any, cache: Any, heads: layers.Heads, angles: Any) -> Any:
        q, k, v = layers.split_heads(qkv, heads, angles)
        cache[0][rows, :, last], cache[1][rows, :, last] = k, v
        return attend(q, *cache).flatten(1)

    return run
