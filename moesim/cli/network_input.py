"""What `moesim network` is given: fabric, flows, traffic, faults, balancings; each mistake with its place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from moesim import config, registry
from moesim.cli import library
from moesim.cli.tables import Lines, matrix, placed, read_table
from moesim.cli.values import yaml_value
from moesim.document import read_text
from moesim.hardware import HardwareSpec
from moesim.network import Messages, Network, report, validity
from moesim.network.faults import COLUMNS, Faults
from moesim.network.flows import NEEDED, OPTIONAL
from moesim.network.topologies.degraded import named
from moesim.units import UnitError, parse

BURSTING = 5_000  # flows from which bursts in turn take minutes
WAYS = {"all_to_all": ("dispatch", "combine"), "all_reduce": ("all_reduce", "reduce_scatter", "all_gather")}


@dataclass(frozen=True)
class Wanted:
    """The options that describe a collective, as given."""

    collective: str | None = None
    op: str | None = None
    size: str | None = None
    traffic: Path | None = None
    width: int | None = None

    def settings(self) -> dict[str, Any]:
        """Return them by the names of the options."""
        values = asdict(self)
        return {"bytes" if k == "size" else k: str(v) if isinstance(v, Path) else v for k, v in values.items()}


def fabric(text: str) -> tuple[Network, dict[str, Any]]:
    """Return the network that *text* means, and what describes it in full: a topology or a machine.

    A YAML mapping is a topology; a YAML file a topology or a machine; else it is the name of a machine of the library.
    Raises ``ValueError``.
    """
    path = Path(text)
    machines = library.files("machine")
    if text.lstrip().startswith("{"):
        return _topology(read_text(text, "FABRIC", Path.cwd()), "FABRIC")
    if path.is_file():
        document = config.read(path)
        if "devices_per_node" not in document.data:
            return _topology(document, text)
    elif text in machines:
        path = machines[text]
    elif text in registry.names("topology"):
        raise ValueError(f"FABRIC {text}: a topology needs its sizes; write e.g. "
                         f"'{{name: leaf_spine, leaves: 4, spines: 4, hosts_per_leaf: 8}}'")
    else:
        raise ValueError(f"{text}: no such file, and no machine of that name in the library"
                         f"{registry.suggest(text, machines)}")
    machine = config.load(HardwareSpec, path)
    return Network.of(machine), machine.dump()


def _topology(document: config.Document, name: str) -> tuple[Network, dict[str, Any]]:
    if document.problems:
        raise config.ConfigError(document.problems)
    given, known = document.data.get("name"), registry.names("topology")
    if given not in known:
        raise ValueError(f"{name}: neither a machine (has no devices_per_node) nor a topology: its name is {given!r}"
                         f"{registry.suggest(str(given), known)}")
    try:
        made = registry.make("topology", document.data)
    except registry.UnknownPart as error:
        raise ValueError(f"{name}: {error}") from None
    return Network.on(made), registry.dump(made)


def job(on: Network, flows: Path | None, wanted: Wanted) -> tuple[report.Job, Lines]:
    """Return what *on* is to carry, and the lines of the flows in their file. Raises ``ValueError``."""
    if (flows is None) == (wanted.collective is None):
        raise ValueError("give either --flows FILE.csv or --collective NAME")
    if flows is None:
        return _collective(on, wanted), ()
    extra = [f"--{k}" for k, v in wanted.settings().items() if v is not None]
    if extra:
        raise ValueError(f"{', '.join(extra)}: for a collective; leave it out, or give --collective instead of --flows")
    table, lines = read_table(flows, (*NEEDED, *OPTIONAL))
    return report.FlowList(table), lines


def _collective(on: Network, wanted: Wanted) -> report.Job:
    value = yaml_value("--collective", wanted.collective or "")
    name = value.get("name") if isinstance(value, dict) else value
    kinds = {part: kind for kind in WAYS for part in registry.names(kind)}
    if not isinstance(name, str) or name not in kinds:
        raise ValueError(f"--collective: unknown collective {name!r}{registry.suggest(str(name), kinds)}")
    kind = kinds[name]
    op = wanted.op or WAYS[kind][0]
    if op not in WAYS[kind]:
        raise ValueError(f"--op {op}: {name} is an {kind.replace('_', '-')}; take one of {', '.join(WAYS[kind])}")
    part = registry.make(kind, value)
    if kind == "all_reduce":
        if wanted.traffic is not None or wanted.size is None:
            raise ValueError(f"--collective {name}: an all-reduce adds equal vectors; give their --bytes, e.g. '64 MB'"
                             + ", not --traffic" * (wanted.traffic is not None))
        return report.Reduce(part, _size(wanted.size), wanted.width, op)
    if wanted.width is not None:
        raise ValueError(f"--width: {name} is an all-to-all among all devices; for groups give --traffic with zeros "
                         f"between them")
    if (wanted.size is None) == (wanted.traffic is None):
        raise ValueError(f"--collective {name}: give either --bytes (of each device, e.g. '64 MB') or --traffic")
    n = on.n_devices
    if wanted.traffic is not None:
        return report.Exchange(part, Messages(*matrix(wanted.traffic, n)), reverse=op == "combine")
    return report.Exchange(part, Messages(np.full((n, n), _size(str(wanted.size)) / n)), reverse=op == "combine")


def _size(text: str) -> float:
    size = quantity("--bytes", text, "byte")
    if size <= 0:
        raise ValueError(f"--bytes {text}: give more than 0")
    return size


def quantity(option: str, text: str, unit: str) -> float:
    """Return the SI value of *text*, which *option* gives. Raises ``ValueError`` for what has no such unit."""
    try:
        return parse(text, unit)
    except UnitError as error:
        raise ValueError(f"{option}: {error}") from None


def balancings(texts: Sequence[str]) -> list[Any]:
    """Return the parts that *texts*, names or mappings with commas between them, mean. Raises ``ValueError``."""
    found: list[Any] = []
    for text in texts:
        try:
            found += yaml_value("--balancing", f"[{text}]")
        except (TypeError, ValueError):
            raise ValueError(f"--balancing {text}: not a list of names; write e.g. ecmp,split or "
                             f"'{{name: mprdma, pieces: 8}}'") from None
    return [registry.make("balancing", str(v) if v is None else v) for v in found]


def plain(parts: Sequence[Any]) -> list[dict[str, Any]]:
    """Return *parts* as mappings."""
    return [registry.dump(part) for part in parts]


def faults(on: Network, path: Path | None, detection: str) -> tuple[pd.DataFrame | None, float]:
    """Return the table of faults in the file *path*, checked, and the seconds of *detection*. Raises ``ValueError``."""
    detection_s = quantity("--detection", detection, "second")
    if detection_s < 0:
        raise ValueError(f"--detection {detection}: give a time >= 0")
    if path is None:
        return None, detection_s
    table, lines = read_table(path, ("time_s", "factor"))
    links = on.links()
    for i, where in enumerate(table.get("where", ())):
        try:
            named(links, where)
        except ValueError as error:
            raise ValueError(f"{path}:{lines[i]}: where: {error}") from None
    with placed(path, "fault", lines):
        Faults.of(links, table, detection_s)
    return table[list(COLUMNS)], detection_s


def transport(text: str | None, described: dict[str, Any]) -> str:
    """Return the transport *text*, or that of the machine. Raises ``ValueError`` if there is no such."""
    found = text or (described.get("scale_out") or {}).get("transport", "paced")
    if found not in validity.TRANSPORTS:
        raise ValueError(f"--transport: unknown transport {found!r}{registry.suggest(found, validity.TRANSPORTS)}")
    return str(found)


def slow(job: report.Job, on: Network, parts: Sequence[Any]) -> list[str]:
    """Return a note for each of *parts* that will take minutes."""
    flows = len(job.table) if isinstance(job, report.FlowList) else on.n_devices * (on.n_devices - 1)
    return [f"{report.label(part)}: bursts of some {flows} flows, one after the other, take minutes; --tolerance 0.01 "
            f"or fewer flowlets take less" for part in parts if part.sent == "in_turn" and flows > BURSTING]


def notes(transport: str, on: Network, found: report.Report) -> list[str]:
    """Return what to know before believing *found*, for each balancing. Raises ``ValueError`` for a transport."""
    flows = found.flows
    if on.nodes > 1:  # what stays in a node crosses no port of the fabric
        flows = flows[on.node_of(flows["src"]) != on.node_of(flows["dst"])]
    result = []
    for name, links in found.links.groupby("balancing", sort=False):
        senders = validity.senders_at_once(flows[flows["balancing"] == name])
        result += [f"{name}: {note.removeprefix('network: ')}" for note in validity.notes(transport, links, senders)]
    return result
