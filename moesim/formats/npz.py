"""NumPy archives of choices per token: ``topk_ids[T, L, K]``, ``seq_id``, ``pos`` and JSON ``meta``.

>>> from pathlib import Path
>>> Npz().matches(Path("esft_dsv2lite_intent.npz")), Npz().matches(Path("run.parquet"))
(True, False)
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from moesim.registry import part
from moesim.trace import PHASES, RoutingTrace, TraceError

_RENAMED = {"source": "origin", "moe_layers": "moe_layer_indices", "num_shared_experts": "n_shared_experts"}
_USED = {"num_experts", "top_k", "num_layers", "n_tokens", "n_sequences", "phase", "pos", "labels", "domain"}


@part
class Npz:
    """Read archives with ``topk_ids`` by descending weight and, optionally, ``topk_weights`` and ``labels``.

    ``meta`` gives ``num_experts``, ``top_k`` and a ``phase`` that begins with "prefill" or "decode"; ``labels``
    is JSON ``[[dataset, category, prompt length, tokens], ...]`` by ``seq_id`` and its first entry the domain.
    """

    def matches(self, path: Path) -> bool:
        """Say whether the file's name ends in ``.npz``."""
        return Path(path).suffix == ".npz"

    def read(self, path: Path) -> RoutingTrace:
        """Return the trace. Raises ``TraceError`` if the archive holds something else, or contradicts itself."""
        arrays = _load(path)
        try:
            meta = _json(arrays, "meta")
            missing = [key for key in ("num_experts", "top_k", "phase") if key not in meta]
            if missing:
                raise TraceError(f"meta lacks {', '.join(missing)}")
            probs = arrays.get("topk_weights")
            return RoutingTrace.from_arrays(
                arrays["topk_ids"], meta["num_experts"], meta["top_k"], request=arrays["seq_id"],
                position=arrays["pos"], phase=_phase(meta["phase"]), probs=probs, domain=_domain(arrays, meta),
                **_facts(meta, probs is not None))
        except TraceError as error:
            raise TraceError(f"{path}: {error}") from None


def _load(path: Path) -> dict[str, np.ndarray]:
    try:
        if not zipfile.is_zipfile(path):
            raise zipfile.BadZipFile("it is no zip file, or one cut short")
        with np.load(path, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in archive.files}
    except (zipfile.BadZipFile, OSError, EOFError, ValueError) as error:
        raise TraceError(f"{path}: not a readable NumPy archive: {error}") from None
    _refuse_counts(path, list(arrays))
    missing = [key for key in ("topk_ids", "seq_id", "pos", "meta") if key not in arrays]
    if missing:
        held = list(arrays)
        raise TraceError(f"{path}: not a routing trace, it lacks {', '.join(missing)}; it holds "
                         f"{', '.join(held[:8])}{', ...' if len(held) > 8 else ''}")
    return arrays


def _json(arrays: dict[str, np.ndarray], name: str) -> Any:
    try:
        return json.loads(str(arrays[name]))
    except ValueError:
        raise TraceError(f"{name} is not JSON") from None


def _refuse_counts(path: Path, keys: list[str]) -> None:
    what = None
    if "count_frequency" in keys:
        what = "how often each expert is used by whole groups of tokens (count_frequency[group, layer, expert])"
    elif any("expert_counts" in key for key in keys):
        what = "expert counts and cross-layer pair counts per model and domain, summed over tokens"
    if what and "topk_ids" not in keys:
        raise TraceError(f"{path}: holds {what}, not the choices of each token, so no trace can be made of it; "
                         "read it with numpy.load for comparison with counts and transitions of a trace")


def _phase(text: str) -> int:
    for code, name in enumerate(PHASES):
        if text.startswith(name):
            return code
    raise TraceError(f"meta says phase {text!r}; it must begin with 'prefill' or 'decode'")


def _domain(arrays: dict[str, np.ndarray], meta: dict[str, Any]) -> Any:
    if "labels" not in arrays:
        return meta.get("domain")
    names = np.array([label[0] for label in _json(arrays, "labels")])
    if arrays["seq_id"].max() >= len(names):
        raise TraceError(f"seq_id {arrays['seq_id'].max()} has no label; labels has {len(names)} entries")
    return names[arrays["seq_id"]]


def _facts(meta: dict[str, Any], has_weights: bool) -> dict[str, Any]:
    facts = {_RENAMED.get(key, key): value for key, value in meta.items() if key not in _USED}
    if has_weights and "weights" in meta:
        facts["renormalised"] = "renormalised" in meta["weights"] and "not renormalised" not in meta["weights"]
    return facts
