"""What a job costs under several balancings, which links it loads most, and how evenly.

Two flows leave one switch over two spines; with seed 0 the hash puts both on one:

>>> from moesim.network import LeafSpine, Network
>>> network = Network.on(LeafSpine(leaves=2, spines=2, hosts_per_leaf=2, link="10 GB/s"))
>>> flows = pd.DataFrame({"src": [0, 1], "dst": [2, 3], "bytes": 1e4, "start_s": 0.0})
>>> found = compare(network, FlowList(flows), ["ecmp", "spray"], seeds=[0])
>>> found.table[["balancing", "time_s", "slowdown"]].round(9).to_numpy().tolist()
[['ecmp', 2e-06, 2.0], ['spray', 1e-06, 1.0]]
>>> busiest(found.links, 1)["name"].tolist()
['leaf0->spine0']
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from moesim import registry
from moesim.network.fluid_memo import Memo
from moesim.network.jobs import Exchange, FlowList, How, Job, Reduce
from moesim.network.network import Network
from moesim.network.pieces import ends_of
from moesim.network.play import Played

__all__ = ["Exchange", "FlowList", "How", "Job", "Reduce", "Report", "busiest", "compare", "histogram", "label"]


EXACT = How()


class Report(NamedTuple):
    """What came of a comparison; ``flows`` and ``links`` are those of the first seed, told apart by ``balancing``.

    ``table``: a row per balancing: balancing, time_s (to the last end), time_min_s and time_max_s if there are several
    seeds, slowdown (over the best of the compared), flow_mean_s and flow_p99_s (from the start of a flow to its end),
    bound_s (the busiest link's bytes at the rate it can reach), closed_form_s (NaN where there is none, and with
    faults), busiest (of the first seed: the link that is busy longest), over_mean (its bytes over the mean
    of the living links of its class), extra_pieces (pieces of flows, less flows). Numbers are means over seeds.
    ``flows``: as ``Played.flows`` or ``run_flows``, with the name of the bottleneck.
    ``links``: class, name, capacity_bytes_per_s, latency_s, alive, load_bytes, busy_s (at the rate it can reach),
    over_mean. A network of one device per node has no links inside nodes here.
    """

    table: pd.DataFrame
    flows: pd.DataFrame
    links: pd.DataFrame


def compare(network: Network, job: Job, balancings: Sequence[Any] = ("ecmp",), seeds: Sequence[int] = (0,),
            how: How = EXACT) -> Report:
    """Run *job* on *network* with each of *balancings* (parts, or their names) and each of *seeds*.

    Raises ``ValueError`` for flows or faults that cannot be, and for a balancing that is given twice.
    """
    if len(balancings) == 0 or len(seeds) == 0:
        raise ValueError("nothing to compare; give at least one balancing and one seed")
    made = [registry.make("balancing", balancing) for balancing in balancings]
    parts = {label(part): part for part in made}
    if len(parts) < len(made):
        raise ValueError(f"balancings {', '.join(map(label, made))}: one is given twice; leave it out")
    memo, rows, flows, links = Memo(), [], [], []
    for name, part in parts.items():
        numbers = []
        for seed in seeds:
            on = replace(network, balancing=part, seed=seed)
            played = job.run(on, how, memo)
            table = _links(on, played, job.rate(on))
            numbers.append(_numbers(played, table) | {
                "closed_form_s": job.closed_form_s(on) if how.faults is None else np.nan,
                "extra_pieces": _extra_pieces(on, played)})
            if seed == seeds[0]:
                flows.append(_named(on, played).assign(balancing=name))
                links.append(table.assign(balancing=name))
        rows.append(_row(name, numbers, busiest(links[-1], 1)["name"].iloc[0]))
    table = pd.DataFrame(rows)
    table.insert(list(table).index("flow_mean_s"), "slowdown", table["time_s"] / table["time_s"].min())
    return Report(table, *(pd.concat(each, ignore_index=True) for each in (flows, links)))


def label(part: Any) -> str:
    """Return the name of *part* with the parameters that are not the defaults.

    >>> label(registry.make("balancing", {"name": "mprdma", "pieces": 8}))
    'mprdma pieces=8'
    """
    given = [f"{f.name}={getattr(part, f.name)}" for f in fields(part) if getattr(part, f.name) != f.default]
    return " ".join([registry.name_of(part), *given])


def busiest(links: pd.DataFrame, top: int) -> pd.DataFrame:
    """Return the *top* rows of *links* that are busy longest, the first in the table first among equals."""
    return links.sort_values("busy_s", ascending=False, kind="stable").head(top)


def histogram(links: pd.DataFrame, bins: int = 8) -> pd.DataFrame:
    """Return how many living *links* carry how much: class, from_bytes, to_bytes, links; per class at most *bins* rows.

    Bins are equal between the least and the most that a link of the class carries; loads that differ by less than 1e-9
    of the most are one bin. A load on the edge of two bins is in the upper one.
    """
    rows = []
    for name, load in links[links["alive"]].groupby("class", sort=False)["load_bytes"]:
        low, high = float(load.min()), float(load.max())
        if high - low <= 1e-9 * high:
            rows.append((name, low, high, len(load)))
            continue
        count, edges = np.histogram(load, bins=bins)
        rows += [(name, *row) for row in zip(edges[:-1].tolist(), edges[1:].tolist(), count.tolist(), strict=True)]
    return pd.DataFrame(rows, columns=["class", "from_bytes", "to_bytes", "links"])


def _links(network: Network, played: Played, rate: np.ndarray) -> pd.DataFrame:
    """Return the links of *network* with what they carried, by *rate* [links]."""
    load = played.load_bytes
    table = network.links().drop(columns="link").assign(
        load_bytes=load, busy_s=np.divide(load, rate, out=np.zeros(len(load)), where=load > 0))
    if network.devices_per_node == 1 and network.nodes > 1:
        table = table.iloc[2 * network.n_devices:].reset_index(drop=True)
    living = table["load_bytes"].where(table["alive"].astype(bool))
    mean = living.groupby(table["class"]).transform("mean")
    return table.assign(over_mean=table["load_bytes"] / mean.where(mean > 0))


def _named(network: Network, played: Played) -> pd.DataFrame:
    """Return the flows with the name of the link that limited each."""
    names = np.append(network.links()["name"].to_numpy(object), [""])  # -1, the last: its own limit did
    return played.flows.assign(bottleneck=names[played.flows["bottleneck"].to_numpy(np.int64)])


def _numbers(played: Played, links: pd.DataFrame) -> dict[str, float]:
    """Return the numbers of one run."""
    flows = played.flows
    taken = (flows["finish_s"] - flows["start_s"]).to_numpy()
    if "repeat" in flows:
        taken = np.repeat(taken, flows["repeat"])
    most = busiest(links, 1).iloc[0]
    return {"time_s": played.time_s, "flow_mean_s": float(taken.mean()), "flow_p99_s": float(np.quantile(taken, 0.99)),
            "bound_s": float(most["busy_s"]), "over_mean": float(most["over_mean"])}


def _extra_pieces(network: Network, played: Played) -> int:
    """Return how many pieces the flows are cut into, less the flows; packets of a sprayed flow are no pieces."""
    part, flows = network.balancing, played.flows
    if part.sent == "together" or "spine" in flows:
        return 0
    acts = flows.groupby("act") if "act" in flows else [(0, flows)]
    extra = 0
    for _, act in acts:
        act = act if "port" in act else act.assign(port=0)
        pieces = len(part.paths(ends_of(network, act.astype({"src": int, "dst": int})), network.seed).flow)
        extra += (pieces - len(act)) * int(act["repeat"].iloc[0] if "repeat" in act else 1)
    return extra


def _row(name: str, numbers: list[dict[str, float]], link: str) -> dict[str, Any]:
    """Return the row of the balancing *name* from the *numbers* of its seeds; *link*: its busiest."""
    many = pd.DataFrame(numbers)
    row: dict[str, Any] = {"balancing": name, "time_s": many["time_s"].mean()}
    if len(many) > 1:
        row |= {"time_min_s": many["time_s"].min(), "time_max_s": many["time_s"].max()}
    means = {k: many[k].mean() for k in ("flow_mean_s", "flow_p99_s", "bound_s", "closed_form_s")}
    return row | means | {"busiest": link, "over_mean": many["over_mean"].mean(),
                          "extra_pieces": many["extra_pieces"].mean()}
