"""The command that replays what a trace asks of expert caches."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from moesim.cli.output import message, print_rows, waiting

COLUMNS = ["batch", "capacity", "policy", "oracle", "hit_ratio", "misses", "miss_fraction", "misses_over_best"]
SWAPPED = ["swapped_share", "given_up"]  # beside the hit ratio
AHEAD = ["loaded_ahead", "unused_ahead"]


def cache(trace: Annotated[Path, typer.Argument(help="Trace file.")],
          capacity: Annotated[str, typer.Option(help="Experts of a layer that fit, a share, or bytes of all caches; "
                                                     "several: '[4, 8]', '[25%, 50%]', 2 GB.")] = "[25%, 50%]",
          policy: Annotated[str, typer.Option(help="Name, or {name: mark0, missed: 0.1}; '\\[lru, lfru]'.")] = (
              "[random, lru, lfu, lfru, static]"),
          batch: Annotated[str, typer.Option(help="Requests side by side, or {name: static, size: 4}; several: "
                                                  "'[1, 8]'.")] = "[1, 8]",
          scope: Annotated[str, typer.Option(help="layer: a cache for each layer; global: one for all.")] = "layer",
          contract: Annotated[str, typer.Option(help="event, or sequential: one expert after the other.")] = "event",
          prefetcher: Annotated[str, typer.Option(help="Name, or {name: rpp, recall: 0.9}.")] = "none",
          reroute: Annotated[str, typer.Option(help="Choose by what is resident: {name: cache_conditional, keep: 1}; "
                                                    "Belady stays as without.")] = "none",
          phase: Annotated[str | None, typer.Option(help="prefill, decode or all. (default: decode where there is "
                                                         "some)")] = None,
          profile_fraction: Annotated[float, typer.Option(min=0, max=0.99, help=(
              "Part of the requests from which policies learn and that is not replayed."))] = 0.5,
          expert_bytes: Annotated[str | None, typer.Option(help="Size of an expert: 25 MB.")] = None,
          overflow: Annotated[str, typer.Option(help="Of events that use more than fits: refuse, stream.")] = "stream",
          seed: Annotated[int, typer.Option(min=0)] = 0,
          out: Annotated[Path | None, typer.Option(help="CSV file for the table, all columns.")] = None) -> None:
    """Replay a trace on expert caches without a machine; say what each policy misses, and the best that there is."""
    from moesim import memory
    from moesim.cli.values import yaml_value
    from moesim.trace import read_trace

    read = read_trace(trace)
    asked, phase = _phase(read, phase)
    fit = None
    if profile_fraction:
        fit, asked = asked.profile(profile_fraction), asked.evaluation(profile_fraction)
    options: dict[str, Any] = {"scope": scope, "prefetcher": yaml_value("--prefetcher", prefetcher),
                               "reroute": yaml_value("--reroute", reroute), "seed": seed, "overflow": overflow,
                               "expert_bytes": expert_bytes}
    lists = {name: _several(yaml_value(f"--{name}", text))
             for name, text in (("policy", policy), ("capacity", capacity), ("batch", batch))}
    with waiting("replaying"):
        table = memory.compare(asked, lists["policy"], lists["capacity"], lists["batch"], contract, fit=fit, **options)
    message(f"{len(asked.requests)} requests, {asked.n_tokens} tokens ({phase}); contract {contract}, scope {scope}, "
            f"prefetcher {table['prefetcher'][0]}")
    _say(table)
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        table.to_csv(out, index=False)
        message(f"table: {out}")
    columns = [*COLUMNS[:5], *(SWAPPED if _rerouted(table) else []), *COLUMNS[5:],
               *(AHEAD if table["loaded_ahead"].any() else []), *(["bytes_per_token"] if expert_bytes else [])]
    print_rows(columns, table[columns].to_numpy().tolist())


def _rerouted(table: Any) -> bool:
    return bool((table["reroute"] != "none").any())


def _say(table: Any) -> None:
    """Say what of each setting's misses need not be."""
    if _rerouted(table):
        message("rerouted: the swapped share of choices is not what the gates chose; what that costs in quality is not "
                "known here. Belady is of what they chose: less can be missed than that")
    for (size, room), rows in table.groupby(["batch", "capacity"], sort=False, dropna=False):
        row = rows.iloc[0]
        if row["gap"] < 0:
            message(f"batch {size}, capacity {room}: {row['best_causal']} misses less than Belady without rerouting")
            continue
        message(f"batch {size}, capacity {room}: of the misses of {row['best_causal']} {row['gap']:.1%} need not be; "
                f"{row['victim_share']:.0%} of those because it does not know whose next use is furthest")


def _several(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _phase(trace: Any, phase: str | None) -> tuple[Any, str]:
    """Return the tokens of *phase*, left out the decode tokens if there are some, and what they are."""
    if phase is None:
        phase = "decode" if trace.tokens["phase"].any() else "all"
    return (trace, "all phases") if phase == "all" else (trace.phase(phase), phase)
