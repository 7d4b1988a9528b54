"""The command that asks a network: flows or a collective on a fabric, under one balancing or several."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from moesim.cli.output import message, print_json, print_rows, waiting

SHOWN = 5  # flows in the table: all if there are no more than twice as many, else so many from both ends
BAR = 24   # characters of the longest bar

Fabric = Annotated[str, typer.Argument(help="Machine of the library, YAML file of a machine or a topology, or "
                                            "'{name: leaf_spine, leaves: 4, ...}'.")]
Flows = Annotated[Path | None, typer.Option(help="CSV file: src, dst, bytes, start_s; optional spine, port, weight, "
                                                 "limit_bytes_per_s.")]
Collective = Annotated[str | None, typer.Option(help="An all_to_all or all_reduce of moesim list, or '{name: deepep_ll,"
                                                     " experts: 256}'.")]
Op = Annotated[str | None, typer.Option(help="dispatch or combine; all_reduce, reduce_scatter or all_gather. (default: "
                                             "the first)")]
Size = Annotated[str | None, typer.Option("--bytes", help="All-to-all: what each device sends, evenly to all devices, "
                                                          "itself too. All-reduce: the vector of each.")]
Traffic = Annotated[Path | None, typer.Option(help="All-to-all: bytes from device (row) to device (column); .csv, .npy,"
                                                   " or .npz with copies, node_copies.")]
Width = Annotated[int | None, typer.Option(min=1, help="All-reduce: devices of a group. (default: all)")]
Balancings = Annotated[list[str] | None, typer.Option(help="Names or '{name: mprdma, pieces: 8}', commas between them; "
                                                           "repeat for more. (default: ecmp)")]
Tolerance = Annotated[float, typer.Option(help="Ends within this share of a flow's duration are one event; 0: exact.")]
FaultFile = Annotated[Path | None, typer.Option(help="CSV file: time_s, where (link, switch or host), factor (0: fails,"
                                                     " 1: repaired).")]
Detection = Annotated[str, typer.Option(help="From a failure until flows look for other paths.")]
Transport = Annotated[str | None, typer.Option(help="paced, pfc_only or sender_window: a note says where the model "
                                                    "fails. (default: the machine's, or paced)")]


def network(fabric: Fabric, flows: Flows = None, collective: Collective = None, op: Op = None, size: Size = None,
            traffic: Traffic = None, width: Width = None, balancing: Balancings = None,
            seed: Annotated[int, typer.Option(min=0, help="Of the hashes.")] = 0,
            seeds: Annotated[int, typer.Option(min=1, help="How many seeds, from --seed on.")] = 1,
            tolerance: Tolerance = 0.0, faults: FaultFile = None, detection: Detection = "1 ms",
            transport: Transport = None, top: Annotated[int, typer.Option(min=1, help="Links shown.")] = 5,
            out: Annotated[Path | None, typer.Option(help="Folder for all flows and links, figure, settings.")] = None,
            as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Run flows or a collective on a fabric: when it ends, which links are busiest, under each balancing."""
    from moesim.cli import network_input as given
    from moesim.cli import network_output as output
    from moesim.network import report

    on, described = given.fabric(fabric)
    transport = given.transport(transport, described)
    wanted = given.Wanted(collective, op, size, traffic, width)
    job, lines = given.job(on, flows, wanted)
    how = report.How(tolerance, *given.faults(on, faults, detection))
    parts, numbers = given.balancings(balancing or ["ecmp"]), list(range(seed, seed + seeds))
    if out:
        output.check(out)
    for note in given.slow(job, on, parts):
        message(f"note: {note}")
    with waiting("sharing links"), given.placed(flows, "flow", lines):
        found = report.compare(on, job, parts, numbers, how)
    for note in given.notes(transport, on, found):
        message(f"note: {note}")
    settings = {"fabric": described, "flows": flows and str(flows), **wanted.settings(), **output.settings(how),
                "balancing": given.plain(parts), "seeds": numbers, "transport": transport}
    if out:
        output.save(out, found, settings)
        message(f"flows, links, figure, settings: {out}")
    if as_json:
        print_json(output.as_json(found, settings, top))
    else:
        _print(found, top)


def _print(found: Any, top: int) -> None:
    """Print the comparison, then flows and links of the first balancing."""
    from moesim.network import report

    first = found.table["balancing"].iloc[0]
    table = found.table.dropna(axis=1, how="all")
    middle = list(table).index("bound_s")  # two tables: one is wider than a terminal
    _rows(table.iloc[:, :middle])
    print()
    _rows(table.iloc[:, [0, *range(middle, table.shape[1])]])
    flows = found.flows[found.flows["balancing"] == first].drop(columns="balancing")
    links = found.links[found.links["balancing"] == first]
    _flows(flows, first)
    busiest = report.busiest(links, top)
    print(f"\n{first}: the {len(busiest)} busiest of {len(links)} links")
    _rows(busiest[["class", "name", "load_bytes", "busy_s", "over_mean"]])
    print(f"\n{first}: links by what they carry")
    _bars(report.histogram(links))


def _flows(flows: Any, name: str) -> None:
    """Print the flows in the order of their ends, the first and the last if there are many."""
    columns = [c for c in ("act", "repeat") if c in flows and flows[c].max() > {"act": 0, "repeat": 1}[c]]
    columns += ["src", "dst", "bytes", "start_s", "finish_s", "bottleneck"]
    table = flows.reset_index(drop=True).rename_axis("flow")[columns].sort_values("finish_s", kind="stable")
    many = len(table) > 2 * SHOWN
    which = f"the first {SHOWN} and the last {SHOWN} to end (all: --out)" if many else "by their ends"
    print(f"\n{name}: {len(table)} flow{'s' * (len(table) > 1)}, {which}")
    rows = table.reset_index()
    cut = [*range(SHOWN), *range(len(rows) - SHOWN, len(rows))] if many else range(len(rows))
    _rows(rows.iloc[list(cut)])


def _bars(table: Any) -> None:
    """Print a histogram of loads, a bar per bin that is not empty."""
    from moesim.units import pretty

    table = table[table["links"] > 0]
    most = table.groupby("class")["links"].transform("max")
    rows = []
    for row, longest in zip(table.itertuples(), most, strict=True):
        low, high = pretty(row.from_bytes, "byte"), pretty(row.to_bytes, "byte")
        rows.append([row[1], low if low == high else f"{low} to {high}", row.links,
                     "█" * max(round(BAR * row.links / longest), 1)])
    print_rows(["class", "bytes", "links", ""], rows)


def _rows(table: Any) -> None:
    """Print a DataFrame; what is not a number stays empty."""
    values: Sequence[Sequence[Any]] = table.astype(object).where(table.notna(), None).to_numpy().tolist()
    print_rows(list(map(str, table.columns)), [list(row) for row in values])
