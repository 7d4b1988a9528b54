"""What `moesim network` leaves: a folder of tables with a figure, or JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd

import moesim
from moesim import whole
from moesim.network import report

FILES = {"balancings.parquet", "flows.parquet", "links.parquet", "fabric.png", "settings.json"}
INSIDE = ("scale_up_out", "scale_up_in")  # links inside nodes


def check(folder: Path) -> None:
    """Raise ``FileExistsError`` if *folder* is a file or holds what no `moesim network` wrote."""
    whole.checked(folder, FILES, "moesim network")


def settings(how: report.How) -> dict[str, Any]:
    """Return *how* flows were run, as JSON knows it."""
    return {"tolerance": how.tolerance, "detection_s": how.detection_s,
            "faults": None if how.faults is None else _records(how.faults)}


def save(folder: Path, found: report.Report, about: dict[str, Any]) -> None:
    """Write tables, a figure of the first balancing and what is *about* them; *folder* appears complete, or not."""
    from moesim import plots

    with whole.folder(folder, FILES, "moesim network") as new:
        for name, table in (("balancings", found.table), ("flows", found.flows), ("links", found.links)):
            table.to_parquet(new / f"{name}.parquet", index=False)
        first = found.links[found.links["balancing"] == found.table["balancing"].iloc[0]]
        plots.save(plots.draw("fabric", _drawn(first)).figure, new / "fabric.png")
        text = json.dumps({"moesim": moesim.__version__, **about}, indent=1)
        (new / "settings.json").write_text(text + "\n", encoding="utf-8")


def _drawn(links: pd.DataFrame) -> pd.DataFrame:
    """Return the *links* between nodes, or those of the one node, with the rate that was reached as their capacity."""
    between = links[~links["class"].isin(INSIDE)]
    links = between if len(between) else links
    reached = links["capacity_bytes_per_s"].mask(links["load_bytes"] > 0, links["load_bytes"] / links["busy_s"])
    return links.assign(capacity_bytes_per_s=reached)


def as_json(found: report.Report, about: dict[str, Any], top: int) -> dict[str, Any]:
    """Return what is *about* it, the comparison, and of the first balancing *top* links, histogram and all flows."""
    first = found.table["balancing"].iloc[0]
    links = found.links[found.links["balancing"] == first]
    flows = found.flows[found.flows["balancing"] == first].drop(columns="balancing")
    return {"settings": about, "balancings": _records(found.table),
            "links": _records(report.busiest(links, top).drop(columns="balancing")),
            "histogram": _records(report.histogram(links)), "flows": _records(flows)}


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows of *table*; what JSON does not know (NaN, infinity) is null."""
    finite = table.notna() & ~table.isin([float("inf"), -float("inf")])
    return [{str(k): v for k, v in row.items()} for row in table.astype(object).where(finite, None).to_dict("records")]
