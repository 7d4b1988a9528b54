"""What must hold of a routing trace, and the error that says where it does not.

Every check names the place (token row, layer), the fact and the remedy.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd

from moesim.registry import suggest

PREFILL, DECODE = 0, 1
PHASES = ("prefill", "decode")
UNKNOWN = "unknown"  # the domain of a token whose domain nobody recorded
INTEGER_COLUMNS = {"request": np.int32, "step": np.int32, "position": np.int32, "phase": np.uint8,
                   "token_id": np.int32}
COLUMNS = (*INTEGER_COLUMNS, "domain")
VERSION = 1  # of the form in docs/reference/trace.md
DESCRIPTIVE = ("model", "revision", "moe_layer_indices", "renormalised", "origin", "licence")
STRUCTURAL = ("version", "n_layers", "n_experts", "top_k", "n_ranked")

# Nothing orders float16 on the CPU as fast as their bits do: for values >= 0 the bit patterns rise with the
# value; negative numbers and NaN have larger patterns than any finite one.
_ONE_AND_A_BIT = np.float16(1.001).view(np.uint16)  # 1 + one unit in the last place: softmax in half precision
_CHUNK = 1 << 14  # token rows per pass of a numpy check: keeps temporaries far below the size of the trace


class TraceError(ValueError):
    """A routing trace that contradicts itself, or a file that is not one."""


def checked_experts(experts: Any, n_experts: int, top_k: int) -> np.ndarray:
    """Return *experts* as a read-only uint16 [T, L, M] whose ids are < *n_experts* and distinct in a row."""
    from moesim.trace_loops import FINE, OUT_OF_RANGE, first_bad_choice  # numba: only when a trace is made

    experts = _shaped(experts, n_experts, top_k)
    fact, row, layer = first_bad_choice(experts, n_experts)
    if fact != FINE:
        ids = experts[row, layer].tolist()
        if fact == OUT_OF_RANGE:
            bad = next(e for e in ids if e >= n_experts)
            raise TraceError(f"token row {row}, layer {layer}: expert {bad} is out of range, ids go from 0 to "
                             f"{n_experts - 1} (n_experts = {n_experts}); ranked: {ids}; count experts from 0 and "
                             "leave shared experts out, or raise n_experts")
        bad = next(e for m, e in enumerate(ids) if e in ids[:m])
        raise TraceError(f"token row {row}, layer {layer}: expert {bad} is chosen twice in {ids}; a gate chooses "
                         "distinct experts: remove padding or placeholder rows, map replicas to logical experts")
    return experts


def check_sizes(experts: np.ndarray, sizes: np.ndarray) -> None:
    """Raise ``TraceError`` if a layer of *experts* [T, L, M] names an expert beyond its *sizes* [L]."""
    bad = np.flatnonzero(experts.max(axis=(0, 2)) >= sizes)
    if len(bad):
        layer = int(bad[0])
        row = int((experts[:, layer] >= sizes[layer]).any(axis=1).argmax())
        raise TraceError(f"token row {row}, layer {layer}: expert {experts[row, layer].max()}, but experts_per_layer "
                         f"says that this layer has {sizes[layer]}; correct the list")


def _shaped(experts: Any, n_experts: int, top_k: int) -> np.ndarray:
    experts = np.asarray(experts)
    if experts.ndim != 3 or 0 in experts.shape:
        raise TraceError(f"experts has shape {list(experts.shape)}; it must be [tokens, layers, ranked] "
                         "with at least one of each")
    if experts.dtype.kind not in "iu":
        raise TraceError(f"experts has dtype {experts.dtype}; expert ids are integers")
    if not 1 <= n_experts <= 1 << 16:
        raise TraceError(f"n_experts is {n_experts}; ids are uint16, so it lies in 1..65536")
    if not 1 <= top_k <= experts.shape[2]:
        raise TraceError(f"top_k is {top_k} but experts has {experts.shape[2]} ranked candidates per layer "
                         "(its last axis); top_k lies in 1..n_ranked")
    if experts.dtype != np.uint16:
        if experts.min() < 0 or experts.max() >= 1 << 16:
            row, layer, rank = (int(i) for i in np.argwhere((experts < 0) | (experts >= 1 << 16))[0])
            raise TraceError(f"token row {row}, layer {layer}: expert {experts[row, layer, rank]} is out of range, "
                             f"ids go from 0 to {n_experts - 1}; drop padding (-1) rows")
    experts = np.ascontiguousarray(experts, dtype=np.uint16).view()
    experts.flags.writeable = False
    return experts


def checked_probs(probs: Any, shape: tuple[int, ...]) -> np.ndarray | None:
    """Return *probs* as a read-only float16 of *shape*, in [0, 1] and descending within each layer."""
    if probs is None:
        return None
    probs = np.ascontiguousarray(probs)
    if probs.shape != shape:
        raise TraceError(f"probs has shape {list(probs.shape)} but experts has {list(shape)}; one probability "
                         "belongs to each ranked expert")
    if probs.dtype.kind != "f":
        raise TraceError(f"probs has dtype {probs.dtype}; probabilities are floats, stored as float16")
    with np.errstate(over="ignore"):  # too large for float16 is too large for a probability: refused below
        probs = probs.astype(np.float16, copy=False).view()
    probs.flags.writeable = False
    bits = probs.view(np.uint16)
    for start in range(0, len(probs), _CHUNK):
        part = bits[start:start + _CHUNK]
        _refuse(part > _ONE_AND_A_BIT, start, probs, "lies outside [0, 1]; store what the gate's softmax or "
                "sigmoid gave, not logits and not weights scaled afterwards")
        _refuse(part[:, :, 1:] > part[:, :, :-1], start, probs, "do not descend; sort the candidates of every "
                "(token, layer) by probability first: some gates return them unsorted")
    return probs


def _refuse(bad: np.ndarray, start: int, probs: np.ndarray, why: str) -> None:
    if bad.any():
        row, layer, rank = (int(i) for i in np.argwhere(bad)[0])
        found = probs[start + row, layer]
        what = f"probabilities {found.tolist()}" if "descend" in why else f"probability {found[rank]}"
        raise TraceError(f"token row {start + row}, layer {layer}: {what} {why}")


def checked_tokens(tokens: pd.DataFrame, n_tokens: int) -> pd.DataFrame:
    """Return *tokens* with the columns and dtypes of a trace, in order; positions rise within each request."""
    for name in COLUMNS:
        if name not in tokens:
            raise TraceError(f"tokens has no column {name!r}{suggest(name, list(tokens.columns))}")
    for name in tokens.columns:
        if name not in COLUMNS:
            raise TraceError(f"tokens has an unknown column {name!r}{suggest(name, COLUMNS)}")
    if len(tokens) != n_tokens:
        raise TraceError(f"tokens has {len(tokens)} rows but experts has {n_tokens}; one row belongs to each token")
    columns: dict[str, Any] = {name: _integers(tokens[name], name, dtype) for name, dtype in INTEGER_COLUMNS.items()}
    columns["domain"] = _domains(tokens["domain"])
    _check_order(columns["request"], columns["position"], columns["step"])
    return pd.DataFrame(columns)


def _integers(column: pd.Series, name: str, dtype: type) -> np.ndarray:
    values = column.to_numpy()
    if values.dtype.kind not in "iub":
        raise TraceError(f"column {name!r} has dtype {values.dtype}; it must hold integers without gaps")
    lowest = -1 if name == "token_id" else 0
    highest = DECODE if name == "phase" else int(np.iinfo(dtype).max)
    bad = np.flatnonzero((values < lowest) | (values > highest))
    if len(bad):
        remedy = {"phase": "0 is prefill, 1 is decode", "token_id": "-1 means unknown"}.get(name, "count from 0")
        raise TraceError(f"token row {bad[0]}: {name} is {values[bad[0]]}, outside {lowest}..{highest}; {remedy}")
    return values.astype(dtype, copy=False)


def _domains(column: pd.Series) -> pd.Categorical:
    if not isinstance(column.dtype, pd.CategoricalDtype):
        column = column.astype("category")
    if len(column.cat.categories) and not all(isinstance(c, str) for c in column.cat.categories):
        raise TraceError(f"column 'domain' has categories {list(column.cat.categories)[:3]}; domains are text")
    if column.isna().any():
        if UNKNOWN not in column.cat.categories:
            column = column.cat.add_categories([UNKNOWN])
        column = column.fillna(UNKNOWN)
    column = column.cat.remove_unused_categories()
    names = sorted(column.cat.categories)  # one order, so that equal traces are equal tables
    code_of = pd.Index(names).get_indexer(column.cat.categories)
    return pd.Categorical.from_codes(code_of[column.cat.codes], categories=names)


def _check_order(request: np.ndarray, position: np.ndarray, step: np.ndarray) -> None:
    order = np.argsort(request, kind="stable")
    same = request[order][1:] == request[order][:-1]
    for name, values, bad, remedy in (
            ("position", position, np.less_equal, "rows of one request follow its tokens, each once"),
            ("step", step, np.less, "a token cannot run before the ones it attends to; pass step= if the default "
                                    "(prefill 0, decode its position) does not fit, as with several turns")):
        ordered = values[order]
        wrong = np.flatnonzero(same & bad(ordered[1:], ordered[:-1]))
        if len(wrong):
            before, row = order[wrong[0]], order[wrong[0] + 1]
            raise TraceError(f"token row {row}: {name} {values[row]} of request {request[row]} comes after {name} "
                             f"{values[before]} (row {before}); {remedy}")


def checked_meta(meta: dict[str, Any], facts: dict[str, int]) -> dict[str, Any]:
    """Return *meta* with every standard key; *facts* (sizes) come from the arrays and must not be contradicted."""
    for key, value in (facts | {"version": VERSION}).items():
        if key in meta and meta[key] != value:
            remedy = f"this moesim reads version {VERSION}" if key == "version" else "leave it out"
            raise TraceError(f"meta says {key} = {meta[key]!r} but the trace has {value}; {remedy}")
    indices = meta.get("moe_layer_indices")
    if indices is not None and len(indices) != facts["n_layers"]:
        raise TraceError(f"meta names {len(indices)} moe_layer_indices but the trace has {facts['n_layers']} layers")
    sizes = meta.get("experts_per_layer")
    if sizes is not None and (len(sizes) != facts["n_layers"] or any(type(size) is not int for size in sizes)
                              or max(sizes) != facts["n_experts"] or min(sizes) < 1):
        raise TraceError(f"meta says experts_per_layer = {sizes}; give one number above 0 for each of "
                         f"{facts['n_layers']} layers, the largest n_experts = {facts['n_experts']}, or leave it out")
    full = {"version": VERSION} | dict.fromkeys(DESCRIPTIVE) | {"synthetic": False} | meta | facts
    try:
        return json.loads(json.dumps(full, allow_nan=False))  # what a file would give back
    except (TypeError, ValueError) as error:
        raise TraceError(f"meta is stored as JSON: {error}; convert arrays with .tolist()") from None
