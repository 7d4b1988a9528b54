"""What the stages of this study share: traces and where they come from, their halves, placements, rows of a CSV file.

Letters: T tokens, L layers with experts, D devices.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from moesim.placement import Placement, Profile, evaluate
from moesim.plots import _style as style
from moesim.sim import routing
from moesim.trace import RoutingTrace, read_trace

HERE = Path(__file__).resolve().parent
OWN, GPT, DEEPSEEK = "reference-moe", "GPT-OSS-20B", "DeepSeek-V2-Lite"
NUMBERS = ("cross_top1", "cross_all", "fanout", "load_max_over_mean")
# Fewer disturbances than the solvers' defaults, and no bounds but in `study.py time`: there are hundreds of points.
# With its defaults joint lets 0 to 6 % fewer first choices cross (measured: the three traces, 4 to 32 devices).
QUICK: dict[str, Any] = {"name": "joint", "perturbations": 300, "bound_rounds": 0}
FANOUT: dict[str, Any] = {"name": "coactivation", "restarts": 2, "perturbations": 2}
AFFINITY: dict[str, Any] = {"name": "affinity_sweep"}


# Trace -> its files in the folder of public traces (stems; ours ships). Licences, and where to get them: README.md.
SOURCES: dict[str, tuple[str, ...]] = {OWN: (), GPT: ("gptoss20b_decode_167seq",),
                                       DEEPSEEK: ("esft_dsv2lite_intent", "esft_dsv2lite_summary")}


class Half(NamedTuple):
    """What solvers may see of a trace, the same as sums, and what they are judged on: other requests."""

    profile: RoutingTrace
    sums: Profile
    evaluation: RoutingTrace


def traces(public: Path | None) -> dict[str, RoutingTrace]:
    """Return our own trace, and those of the folder *public*. Raises ``ValueError`` if one of its files is missing."""
    found = {OWN: read_trace(HERE.parents[1] / "workloads" / "traces" / "reference-moe.parquet")}
    for name, stems in SOURCES.items():
        if stems and public is not None:
            found[name] = mixed([read_trace(file(public, stem)) for stem in stems])
    return found


def file(folder: Path, stem: str) -> Path:
    """Return the file of a public trace, npz or parquet."""
    for path in (folder / f"{stem}.npz", folder / f"{stem}.parquet"):
        if path.is_file():
            return path
    raise ValueError(f"{folder}: has no {stem}.npz or .parquet; see the README of this study for where to get it, and "
                     "docs/howto/get-routing-traces.md for how to make it a trace")


def mixed(parts: Sequence[RoutingTrace]) -> RoutingTrace:
    """Return the traces as one, requests and domains kept apart."""
    if len(parts) == 1:
        return parts[0]
    first = np.cumsum([0] + [int(part.requests.max()) + 1 for part in parts])
    tokens = pd.concat([part.tokens.assign(request=part.tokens["request"] + start,
                                           domain=part.tokens["domain"].astype(str))
                        for part, start in zip(parts, first, strict=False)], ignore_index=True)
    return RoutingTrace.from_arrays(
        np.concatenate([part.experts for part in parts]), parts[0].n_experts, parts[0].top_k,
        request=tokens["request"], position=tokens["position"], phase=tokens["phase"], domain=tokens["domain"])


def half(trace: RoutingTrace) -> Half:
    """Return the two halves of *trace*, requests kept whole."""
    profile = trace.profile()
    return Half(profile, Profile.of(profile), trace.evaluation())




def measured(placement: Placement, halves: Half) -> dict[str, float]:
    """Return the numbers of *placement* on the evaluation half, with ``profile_`` on the other, and its copies."""
    numbers: dict[str, float] = {}
    for prefix, trace in (("", halves.evaluation), ("profile_", halves.profile)):
        values = evaluate(placement, trace)
        numbers |= {prefix + name: float(values[name]) for name in NUMBERS}
    return numbers | copies(placement, halves.evaluation)


def copies(placement: Placement, trace: RoutingTrace) -> dict[str, float]:
    """Return hidden states that leave a device, per token and layer, under both meanings of expert parallelism.

    copies_home  dispatch_combine: to the other devices that hold its experts and the sums back; requests are dealt
                 over the devices in turn
    copies_stay  context_coherent: from where its last token was, to the devices of its experts, and the sums of the
                 others to that of its first; every token taken as decoded. What is told to all devices about a token
                 (keys and values, once per step) does not depend on the placement and is left out.
    """
    slots, n_devices = routing.SlotMap.of(placement), placement.n_devices
    chosen, request = np.ascontiguousarray(trace.chosen), trace.tokens["request"].to_numpy()
    shape = (placement.n_layers, n_devices)
    home = (np.unique(request, return_inverse=True)[1] % n_devices).astype(np.int32)
    where = np.empty((len(chosen), placement.n_layers + 1), np.int32)
    where[:, 0] = np.roll(placement.device_of[-1][chosen[:, -1, 0]], 1)
    begins = np.r_[True, request[1:] != request[:-1]]
    where[begins, 0] = home[begins]
    sent, there, back = (np.zeros((*shape, n_devices), np.int32) for _ in range(3))
    tokens = np.zeros((*shape, slots.n_slots), np.int32)
    routing.dispatch(chosen, home, slots.device, slots.slot, n_devices, True, tokens, sent, None)
    routing.follow(chosen, where, slots.device, slots.slot, n_devices, tokens, there, back)
    per = len(chosen) * placement.n_layers
    return {"copies_home": 2 * _leaving(sent) / per, "copies_stay": (_leaving(there) + _leaving(back)) / per}


def _leaving(messages: np.ndarray) -> float:
    """Return the sum of *messages* [L, D, D] without what stays on a device."""
    return float(messages.sum() - messages.diagonal(axis1=1, axis2=2).sum())


def renewed(path: Path, rows: pd.DataFrame) -> pd.DataFrame:
    """Return *rows*, and of the CSV file *path* those of other traces, in the order of ``SOURCES``; write it."""
    if path.is_file():
        old = pd.read_csv(path)
        rows = pd.concat([rows, old[~old["trace"].isin(rows["trace"])]], ignore_index=True)
    order = rows["trace"].map({name: i for i, name in enumerate(SOURCES)}).fillna(len(SOURCES))
    rows = rows.iloc[np.argsort(order.to_numpy(), kind="stable")]
    rows.to_csv(path, index=False, float_format="%.12g")
    return pd.read_csv(path)


def only(table: pd.DataFrame, **where: Any) -> pd.DataFrame:
    """Return the rows of *table* with these values. Raises ``ValueError`` if there is none."""
    found = table.loc[(table[list(where)] == pd.Series(where)).all(axis=1)]
    if found.empty:
        raise ValueError(f"no row has {where}; run study.py again to make the tables of this version")
    return found


def span(values: Iterable[float], form: str = ".2f") -> str:
    """Return "least to most" of *values*, or one number where they read the same."""
    numbers = list(values)
    low, high = format(min(numbers), form), format(max(numbers), form)
    return low if low == high else f"{low.removesuffix('%')} to {high}"


def titled(figure: Any, title: str, note: str = "") -> Any:
    """Give *figure* a title over all its panels, on as many lines as needed, and a *note* below."""
    width = int(72 * figure.get_figwidth() / (0.63 * style.TITLE))  # 0.63: mean width of a bold letter
    figure.suptitle(textwrap.fill(title, width), x=0.01, ha="left", fontsize=style.TITLE, fontweight="bold",
                    color=style.INK)
    if note:
        figure.supxlabel(note, x=0.99, ha="right", fontsize=style.SMALL, color=style.INK)
    return figure
