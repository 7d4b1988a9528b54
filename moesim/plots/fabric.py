"""A fabric and how busy its links are."""

from __future__ import annotations

import re

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import ListedColormap, Normalize

from moesim.plots import _fabric
from moesim.plots import _style as style

MOST_HOSTS = 72  # a rack-scale domain is drawn whole; more hosts are drawn as one for each set of switches
# Colour-blind safe and perceptually uniform, dark where busy; without the lightest part, which white paper swallows.
MAP = ListedColormap(matplotlib.colormaps["viridis_r"](np.linspace(0.08, 1.0, 256)), "busy")
PLURALS = {"leaf": "leaves", "switch": "switches", "agg": "aggregation\nswitches", "chip": "switch chips"}


def fabric(table: pd.DataFrame, ax: Axes | None = None, *, title: str = "{answer}") -> Axes:
    """Draw hosts, switches and links, coloured by the time a link needs for its bytes; dead links are dashed.

    *table*: class, name, capacity_bytes_per_s and perhaps alive, as a topology's ``links()`` has them, and load_bytes.
    With a column utilisation (0 to 1) that is the colour, and capacity and load are not needed. Each end of a line has
    the colour of what leaves there, so the lower half is the way up. Many hosts are drawn as one for each set of
    switches, with the colour of its busiest port.
    """
    style.need(table, ("class", "name", *(["utilisation"] if "utilisation" in table else
                                          ["capacity_bytes_per_s", "load_bytes"])), "fabric")
    ends = _ends(table)
    divisor, unit = _unit(ends["value"], "utilisation" in table)
    ends["value"] /= divisor
    drawn, hosts = _together(ends)
    nodes = _fabric.place(drawn)
    height = 1.35 + 0.6 * min(float((nodes["tier"] == 1).sum()) / 16, 1.0)
    ax = style.axes(ax, (style.WIDTH, 1.6 + height * max(float(nodes["y"].max()), 1.0)))
    _lines(ax, drawn, nodes, unit)
    _tiers(ax, nodes, hosts)
    _nodes(ax, nodes)
    notes = ["each end of a line has the colour of what leaves there"]
    notes += ["of a group the busiest port"] * (len(hosts) > 0) + ["dashed: dead"] * bool(ends["dead"].any())
    return style.finish(ax, style.answer(title, _title(ends, unit)), "; ".join(notes))


def _ends(table: pd.DataFrame) -> pd.DataFrame:
    """Return a, b, class, port (from a host), value (seconds, or share) and dead for each link of *table*."""
    ends = table["name"].astype(str).str.extract(r"^(?P<a>.+)->(?P<b>.+)$")
    if ends["a"].isna().any():
        raise ValueError(f"fabric: a link is called {table['name'][ends['a'].isna()].iloc[0]!r}; "
                         'give its name as "from->to"')
    ends["class"], ends["port"] = table["class"].astype(str), table["class"].isin(["nic_out", "scale_up_out"])
    if ends["class"][ends["port"]].nunique() != 1:
        raise ValueError("fabric: hosts are where links of the class nic_out, or of scale_up_out, begin; the table has "
                         "neither or both; give all links of one topology")
    ends["dead"] = ~table["alive"].astype(bool) if "alive" in table else False
    with np.errstate(divide="ignore", invalid="ignore"):
        ends["value"] = table["utilisation"] if "utilisation" in table else np.where(
            table["load_bytes"] > 0, table["load_bytes"] / table["capacity_bytes_per_s"], 0.0)
    ends.loc[ends["dead"], "value"] = 0.0
    return ends


def _unit(values: pd.Series, share: bool) -> tuple[float, str]:
    """Return the divisor for *values* and the name of the colour bar with its unit."""
    return (0.01, "utilisation (%)") if share else style.scale(values, "time to carry its bytes_s")


def _together(ends: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, int]]:
    """Return *ends* with hosts of the same switches as one if there are many, and how many each of these stands for."""
    ports = ends[ends["port"]]
    if ports["a"].nunique() <= MOST_HOSTS:
        return ends, {}
    switches = ports.groupby("a", sort=False)["b"].agg(lambda names: " ".join(names))
    number = {group: i for i, group in enumerate(dict.fromkeys(switches))}
    name = {host: f"hosts{number[group]}" for host, group in switches.items()}
    merged = ends.assign(a=ends["a"].replace(name), b=ends["b"].replace(name))
    merged = merged.groupby(["a", "b", "class", "port"], sort=False, as_index=False).agg(
        {"value": "max", "dead": "min"})
    return merged, pd.Series(name).value_counts(sort=False).to_dict()


def _lines(ax: Axes, ends: pd.DataFrame, nodes: pd.DataFrame, unit: str) -> None:
    """Draw the half of each link next to its sender, the busiest on top."""
    ends = ends.sort_values("value", kind="stable")
    here, there = (nodes.loc[ends[end], ["x", "y"]].to_numpy() for end in ("a", "b"))
    halves, dead = np.stack([here, (here + there) / 2], axis=1), ends["dead"].to_numpy()
    values = ends["value"].to_numpy()[~dead]
    top = float(values.max(initial=0.0)) or 1.0
    norm = Normalize(min(float(values.min(initial=top)), 0.8 * top), top)  # 0.8: small differences do not look large
    width = float(np.clip(200 / len(ends), 0.9, 2.0))
    lines = LineCollection(list(halves[~dead]), cmap=MAP, norm=norm, zorder=2, capstyle="butt",
                           linewidths=np.maximum(width * (0.35 + 1.2 * norm(values) ** 3), min(0.5, 100 / len(ends))))
    lines.set_array(values)
    ax.add_collection(lines)
    ax.add_collection(LineCollection(list(halves[dead]), colors=style.VERMILION, linestyles=(0, (3, 2)),
                                     linewidths=max(width, 1.0), zorder=3))
    bar = ax.figure.colorbar(lines, cax=ax.inset_axes((1.02, 0.1, 0.02, 0.8)))
    bar.set_label(unit, fontsize=style.NORMAL)
    bar.ax.tick_params(labelsize=style.SMALL)
    bar.outline.set_visible(False)


def _nodes(ax: Axes, nodes: pd.DataFrame) -> None:
    """Draw boxes for switches, with their numbers if there is room, and dots for hosts."""
    style.settle(ax)
    inside = ax.get_window_extent().width * 72 / ax.figure.dpi  # points
    for tier, some in nodes.groupby("tier"):
        room = 0.8 * inside * float(some["slot"].min())
        side = float(np.clip(room, 2.0, 15.0) if tier else np.clip(0.8 * room, 1.5, 5.0))
        ax.scatter(some["x"], some["y"], s=side**2, marker="s" if tier else "o", color="white", linewidths=0.8,
                   edgecolors=style.INK, zorder=4)
        texts = [re.findall(r"\d*$", str(name))[0] for name in some.index]
        size = min(style.SMALL, 1.35 * side / max(1, *map(len, texts)))
        for text, x, y in zip(texts, some["x"], some["y"], strict=True):
            if tier and size >= 4.5:
                ax.text(x, y, text, ha="center", va="center_baseline", fontsize=size, color=style.INK, zorder=5)


def _tiers(ax: Axes, nodes: pd.DataFrame, hosts: dict[str, int]) -> None:
    """Name the tiers at the left of *ax*, and planes above them; *hosts*: how many each group of them has."""
    labels = []
    for tier, some in nodes.groupby("tier"):
        word = re.sub(r"^.*\.|\d+$", "", str(some.index[0]))
        count = sum(hosts.values()) if hosts and tier == 0 else len(some)
        labels.append(f"{count} {word if count == 1 else PLURALS.get(word, word.rstrip('s') + 's')}"
                      + f"\nin {len(some)} group{'s' * (len(some) > 1)}" * (hosts != {} and tier == 0))
    ax.set_yticks(sorted(nodes["y"].unique()), labels, fontsize=style.NORMAL)
    ax.set_xticks([])
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.set_xlim(0, 1)
    ax.set_ylim(-0.12, float(nodes["y"].max()) + 0.12)
    top = nodes[nodes["tier"] == nodes["tier"].max()]
    planes = top.groupby(top.index.str.extract(r"^(.*)\.", expand=False), sort=False)["x"].mean()
    for name, x in planes.items():
        ax.annotate(re.sub(r"(?<=[a-z])(?=\d)", " ", str(name)), (x, nodes["y"].max()), (0, 11), ha="center",
                    textcoords="offset points", fontsize=style.NORMAL, color=style.INK, annotation_clip=False)


def _title(ends: pd.DataFrame, unit: str) -> str:
    """Say which link is the busiest, and how far it is above its class; if it is a port, of links between switches too.
    """
    if not ends["value"].max():
        return "No link carries anything"
    hosts = set(ends.loc[ends["port"], "a"])
    inner = ends[~ends["a"].isin(hosts) & ~ends["b"].isin(hosts)]
    found = _busiest(ends, unit)
    if not (inner.empty or inner["value"].max() in (0.0, ends["value"].max())):
        found += f"; between switches {_busiest(inner, unit)}"
    return found[0].upper() + found[1:]


def _busiest(ends: pd.DataFrame, unit: str) -> str:
    """Return the busiest of *ends*, its value, and the ratio to the mean of the living links of its class."""
    top = float(ends["value"].max())
    most = ends["value"] >= top * (1 - 1e-9)
    alike = ends[ends["class"].isin(ends["class"][most]) & ~ends["dead"]]
    classes = " or ".join(name.replace("_", " ") for name in alike["class"].unique())
    value = f"{top:.3g}{'%' if '%' in unit else ' ' + unit[unit.rindex('(') + 1:-1]}"
    if most.sum() == len(alike):
        return f"every {classes} link is equally busy: {value}"
    one, other = ends.loc[most, ["a", "b"]].iloc[0]
    name = f"{one} to {other} is" if most.sum() == 1 else f"{most.sum()} links are"
    return f"{name} busiest: {value}, {top / alike['value'].mean():.2f}x the mean {classes} link"
