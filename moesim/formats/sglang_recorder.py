"""Dumps of SGLang's expert distribution recorder (``.pt``) in mode per_token, read without torch.

One rank writes one file, and the file does not say which token belongs to which request:

>>> joiner = _Joiner()
>>> joiner._prompts([0, 1, 0, 1, 2], lengths=[2, 3]), joiner._decoded([2, 3])  # by position
([0, 0, 1, 1, 1], [0, 1])
"""

from __future__ import annotations

from collections import defaultdict, deque
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import numpy as np

from moesim import torch_file
from moesim.registry import part
from moesim.trace import DECODE, PREFILL, RoutingTrace, TraceError

_EXTEND, _DECODE, _IDLE = 1, 2, 4  # ForwardMode of python/sglang/srt/model_executor/forward_batch_info.py
_REMEDY = "record mode per_token again, without speculative decoding and mixed chunks"


class _Pass(NamedTuple):
    """One forward pass: slots chosen [T, layers, 8], the tokens' request, position, id, phase."""

    slots: np.ndarray
    request: np.ndarray
    position: np.ndarray
    token: np.ndarray
    phase: int


@part
class SglangRecorder:
    """Slots become experts by ``last_physical_to_logical_map``; layers in which nothing was chosen are dropped.

    Requests are put together here: a decoded token continues the request that expects its position, the first in the
    batch if several do (``meta`` counts these as ``ambiguous_joins``); a prompt that SGLang ran in chunks stays in
    pieces. The recorder keeps 8 choices at most, in the order of the engine's kernel, and no weights. Tensor-parallel
    ranks record the same tokens: read one file. Files of the modes stat and per_pass hold counts, not choices:
    ``moesim.placement.read_counts`` reads them. Source: sgl-project/sglang (Apache-2.0), ``_DetailAccumulator.dump``
    and ``_DetailSinglePassGatherer.collect`` in python/sglang/srt/eplb/expert_distribution.py.
    """

    def matches(self, path: Path) -> bool:
        """Say whether the file's name ends in ``.pt``."""
        return Path(path).suffix == ".pt"

    def read(self, path: Path) -> RoutingTrace:
        """Return the trace; its steps are the forward passes. Raises ``TraceError``."""
        try:
            content = torch_file.load(path)
        except torch_file.TorchFileError as error:
            raise TraceError(str(error)) from None
        try:
            return _trace(content)
        except ValueError as error:
            raise TraceError(f"{path}: {error}") from None


def _trace(content: Any) -> RoutingTrace:
    records, to_expert = _parts(content)
    joiner = _Joiner()
    passes = [joiner.add(record, f"record {i}") for i, record in enumerate(records)
              if record.get("forward_mode") != _IDLE]
    if not passes:
        raise ValueError("holds no forward pass; " + _REMEDY)
    slots = np.concatenate([p.slots for p in passes])
    chosen = (slots != -1).any(axis=(0, 2))
    layers = np.flatnonzero(chosen).tolist()
    if not layers or slots.shape[1] != len(to_expert):
        raise ValueError(f"{slots.shape[1]} layers, {len(layers)} of them with choices, but {len(to_expert)} in the "
                         "map of slots to experts; " + _REMEDY)
    top_k = int((slots[:, layers] != -1).sum(axis=2).max())
    slots = slots[:, layers, :top_k]
    bad = np.argwhere((slots < 0) | (slots >= to_expert.shape[1]))
    if len(bad):
        row, layer, rank = bad[0].tolist()
        raise ValueError(f"token row {row}, layer {layers[layer]}: choice {rank} is slot {slots[row, layer, rank]} of "
                         f"{to_expert.shape[1]}; others have {top_k} choices; " + _REMEDY)
    columns = {name: np.concatenate([getattr(p, name) for p in passes]) for name in ("request", "position", "token")}
    lengths = [len(p.slots) for p in passes]
    return RoutingTrace.from_arrays(
        to_expert[layers][np.arange(len(layers))[:, None], slots], int(to_expert.max()) + 1, top_k, columns["request"],
        columns["position"], np.repeat([p.phase for p in passes], lengths), step=np.repeat(range(len(passes)), lengths),
        token_id=columns["token"], moe_layer_indices=layers, origin="SGLang expert distribution recorder, per_token",
        ambiguous_joins=joiner.ambiguous)


def _parts(content: Any) -> tuple[list[dict[str, Any]], np.ndarray]:
    """Return the records and the map of slots to experts [layers, P]."""
    if isinstance(content, dict) and "logical_count" in content:
        raise ValueError("holds tokens per expert (mode stat), not the choices of each token, so no trace can be made "
                         "of it; moesim.placement.read_counts makes a profile of it, or record mode per_token")
    if not isinstance(content, dict) or not {"records", "last_physical_to_logical_map"} <= content.keys():
        raise ValueError("holds no records with a last_physical_to_logical_map; give a dump of SGLang's recorder")
    records, to_expert = content["records"], content["last_physical_to_logical_map"]
    if not isinstance(records, list) or not records or not all(isinstance(record, dict) for record in records):
        raise ValueError("its records are no list of mappings, or none; " + _REMEDY)
    if any("topk_ids_of_layer" not in record for record in records):
        raise ValueError("holds tokens per expert and pass (mode per_pass), not the choices of each token, so no trace "
                         "can be made of it; moesim.placement.read_counts makes a profile of it, or record per_token")
    if not isinstance(to_expert, np.ndarray) or to_expert.ndim != 2 or to_expert.dtype.kind not in "iu" \
            or not to_expert.size or to_expert.min() < 0:
        raise ValueError("last_physical_to_logical_map is no tensor of experts [layers, slots]; " + _REMEDY)
    return records, to_expert


def _numbers(values: Any, count: int) -> TypeGuard[list[int]]:
    return isinstance(values, list) and len(values) == count and all(type(value) is int for value in values)


class _Joiner:
    """Gives every token its request, pass by pass."""

    def __init__(self) -> None:
        self._requests = 0
        self._waiting: dict[int, deque[int]] = defaultdict(deque)  # position -> requests that expect it, in batch order
        self.ambiguous = 0

    def add(self, record: dict[str, Any], place: str) -> _Pass:
        """Return the pass in *record*."""
        slots, tokens, positions = (record.get(key) for key in ("topk_ids_of_layer", "input_ids", "positions"))
        mode, lengths = record.get("forward_mode"), record.get("extend_seq_lens")
        if mode not in (_EXTEND, _DECODE):
            raise ValueError(f"{place}: forward_mode is {mode!r}, read are {_EXTEND} (prompts) and {_DECODE} (decode); "
                             + _REMEDY)
        if not isinstance(slots, np.ndarray) or slots.ndim != 3 or slots.dtype.kind not in "iu":
            raise ValueError(f"{place}: topk_ids_of_layer is no tensor [layers, tokens, choices]; " + _REMEDY)
        n = slots.shape[1]
        if not (_numbers(tokens, n) and _numbers(positions, n)):
            raise ValueError(f"{place}: input_ids and positions are no lists of {n} numbers; " + _REMEDY)
        if mode == _EXTEND:
            if not isinstance(lengths, list) or any(type(i) is not int or i < 0 for i in lengths) or sum(lengths) != n:
                raise ValueError(f"{place}: extend_seq_lens are no lengths that sum to {n} tokens; " + _REMEDY)
            request = self._prompts(positions, lengths)
        else:
            request = self._decoded(positions)
        return _Pass(slots.transpose(1, 0, 2), np.array(request), np.array(positions), np.array(tokens),
                     PREFILL if mode == _EXTEND else DECODE)

    def _prompts(self, positions: list[int], lengths: list[int]) -> list[int]:
        requests, start = [], 0
        for length in lengths:
            if length:
                start += length
                requests += [self._requests] * length
                self._waiting[positions[start - 1] + 1].append(self._requests)
                self._requests += 1
        return requests

    def _decoded(self, positions: list[int]) -> list[int]:
        """Continue requests; those that are not in the pass have ended, because a pass decodes all that run."""
        requests = []
        after: dict[int, deque[int]] = defaultdict(deque)
        for position in positions:
            fitting = self._waiting[position]
            self.ambiguous += len(fitting) > 1
            if not fitting:  # begun before the recording
                fitting.append(self._requests)
                self._requests += 1
            requests.append(fitting.popleft())
            after[position + 1].append(requests[-1])
        self._waiting = after
        return requests
