"""Profiles from files that hold only counts: tokens per expert, as engines' recorders sum them.

They are enough to balance load, not to keep tokens on a device: nothing says which experts one token chose.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from moesim import torch_file
from moesim.placement.objective import Profile
from moesim.placement.placement import PlacementError


class Counts(NamedTuple):
    """Tokens per expert, and which layers of the model they are of."""

    profile: Profile
    moe_layer_indices: tuple[int, ...]


def read_counts(paths: str | Path | Sequence[str | Path], top_k: int, layers: Sequence[int] | None = None) -> Counts:
    """Return the profile in dumps of SGLang's expert distribution recorder, modes stat, per_pass and per_token.

    *paths* is one file, or the files of all ranks of one recording (per_pass and per_token write one each), which are
    summed; *top_k* is how many experts a token uses (the files do not say it). SGLang counts all layers of the model:
    *layers* names those with experts, left out it is those in which anything was counted. The profile has no
    transitions: a solver that asks for them gets a ``PlacementError`` that says so.
    Source: sgl-project/sglang (Apache-2.0), python/sglang/srt/eplb/expert_distribution.py, ``_StatAccumulator.dump``
    (logical_count [steps, layers, E]), ``_DetailAccumulator.dump`` (records, last_physical_to_logical_map) and
    eplb_simulator/reader.py (ranks are summed).
    """
    files = [Path(paths)] if isinstance(paths, (str, Path)) else [Path(path) for path in paths]
    found = [_counts(path) for path in files]
    if not found or any(counts.shape != found[0].shape for counts in found):
        raise PlacementError(f"{', '.join(map(str, files)) or 'no file'}: need files of one recording, with equal "
                             f"layers and experts, got {[list(counts.shape) for counts in found]}")
    total = np.stack(found).sum(axis=0)
    chosen = np.flatnonzero(total.any(axis=1)).tolist() if layers is None else list(layers)
    if not chosen or not set(chosen) <= set(range(len(total))) or not total[chosen].any(axis=1).all():
        raise PlacementError(f"{files[0]}: has {len(total)} layers, {int(total.any(axis=1).sum())} with counted "
                             f"tokens, asked for {chosen or 'any'}; record more, or correct layers")
    if not 1 <= top_k <= total.shape[1]:
        raise PlacementError(f"top_k is {top_k}, but a token uses 1 to all {total.shape[1]} experts")
    n_tokens = -(-int(total[chosen].sum(axis=1).max()) // top_k)
    return Counts(Profile(total[chosen], n_tokens, _Missing(files[0])), tuple(chosen))


class _Missing:
    """Stands for transitions that nobody counted."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __call__(self, top1: bool) -> np.ndarray:
        raise PlacementError(f"{self._path}: counts tokens per expert, not what one token chose in all layers, which "
                             "this solver needs; use one that balances load (lpt, eplb), or record mode per_token")


def _counts(path: Path) -> np.ndarray:
    """Return the tokens per logical expert in the file, int64 [layers, E]."""
    try:
        content = torch_file.load(path)
    except torch_file.TorchFileError as error:
        raise PlacementError(str(error)) from None
    try:
        if isinstance(content, dict) and "logical_count" in content:
            counts = _whole(content["logical_count"], "logical_count", (2, 3))
            return counts.reshape(-1, *counts.shape[-2:]).sum(axis=0, dtype=np.int64)
        if isinstance(content, dict) and {"records", "last_physical_to_logical_map"} <= content.keys():
            return _by_expert(content)
        raise PlacementError("holds neither logical_count nor records; give a dump of SGLang's recorder")
    except PlacementError as error:
        raise PlacementError(f"{path}: {error}") from None


def _by_expert(content: dict[str, Any]) -> np.ndarray:
    to_expert = _whole(content["last_physical_to_logical_map"], "last_physical_to_logical_map", (2,))
    total = np.zeros(to_expert.shape, dtype=np.int64)
    for number, record in enumerate(content["records"]):
        counts = _whole(record.get("global_physical_count"), f"record {number}: global_physical_count", (2,))
        if counts.shape != total.shape:
            raise PlacementError(f"record {number}: counts have shape {list(counts.shape)}, the map of slots to "
                                 f"experts {list(total.shape)}; record again")
        total += counts
    counts = np.zeros((len(total), int(to_expert.max()) + 1), dtype=np.int64)
    np.add.at(counts, (np.arange(len(total))[:, None], to_expert), total)
    return counts


def _whole(array: Any, name: str, dimensions: tuple[int, ...]) -> np.ndarray:
    if not isinstance(array, np.ndarray) or array.ndim not in dimensions or array.dtype.kind not in "iu" \
            or 0 in array.shape or array.min() < 0:
        raise PlacementError(f"{name} is no tensor of whole numbers from 0 with layers and experts; record again")
    return array
