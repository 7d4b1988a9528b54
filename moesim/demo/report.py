"""The report of the demo: the question, the answer in words made from the numbers, table, figures, caveats."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from moesim import kernels, units
from moesim.demo import answer
from moesim.demo.points import Points, best, slug
from moesim.result import Result
from moesim.scenario import Scenario

# column -> its heading and how its values are shown. Of the two directions of a link class, which carry the same bytes,
# one is shown; the table has both.
SHOWN: dict[str, tuple[str, float, str]] = {
    "throughput_tok_per_s": ("tokens/s", 1, ".0f"), "tpot_mean_s": ("TPOT (ms)", 1e-3, ".2f"),
    "ttft_mean_s": ("TTFT (ms)", 1e-3, ".0f"), "cross_top1": ("cross device, first choice (%)", 0.01, ".1f"),
    "cross_top1_profile": ("the same on the profile (%)", 0.01, ".1f"),
    "cross_all": ("cross device, all pairs (%)", 0.01, ".1f"),
    "cross_all_profile": ("the same on the profile (%)", 0.01, ".1f"), "cross_node_top1": ("cross node (%)", 0.01, ".1f"),
    "fanout": ("fan-out", 1, ".2f"), "load_max_over_mean": ("load max/mean", 1, ".2f"),
    "bytes_scale_up_out": ("scale-up (GB)", 1e9, ".1f"),
    "bytes_nic_out": ("NIC (GB)", 1e9, ".1f"), "bytes_leaf_up": ("leaf-spine (GB)", 1e9, ".1f"),
    "kv_peak_bytes": ("KV peak per device (GB)", 1e9, ".2f")}

CAPTIONS = {
    "pareto": "Load imbalance against the bytes that cross the spines.",
    "links": "Bytes per link class.", "breakdown_decode": "A decode step.", "breakdown_prefill": "A step with prompts.",
    "latency": "Time per output token, requests of the baseline and of the fastest placement of each mode.",
    "device_load": "Load of the devices.", "affinity": "The affinity that there is to use."}


def shown(table: pd.DataFrame) -> pd.DataFrame:
    """Return the *table* of the demo as text for people, headings with units."""
    columns = {"placement": table["placement"], "mode": table["mode"]}
    for column, (heading, divisor, form) in SHOWN.items():
        if column in table:
            name = heading if heading not in columns else f"{heading} "
            columns[name] = pd.Series([format(v / divisor, form) for v in table[column]], index=table.index)
    return pd.DataFrame(columns)


def write(out: Path, scenario: Scenario, points: Points, results: Mapping[tuple[str, str], Result],
          figures: Mapping[str, Path]) -> Path:
    """Write ``report.md`` to *out*."""
    name, mode = best(points.table)
    warnings = sorted({w for result in results.values() for w in result.meta["warnings"]})
    parts = [
        "# Where should the experts of this model go on two 8-GPU nodes behind a leaf-spine network?",
        _setting(scenario, results[name, mode]), "## Answer", *answer.sentences(points),
        "## Numbers", _markdown(shown(points.table)), _reading(),
        "## Figures", *(f"![{caption}](figures/{figures[key].name})\n\n*{caption}*"
                        for key, caption in CAPTIONS.items() if key in figures),
        "## What to keep in mind", "\n".join(f"- {line}" for line in [*warnings, *_caveats(scenario)]),
        "## Files", _files(name, mode)]
    path = out / "report.md"
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return path


def _setting(scenario: Scenario, result: Result) -> str:
    model, machine, trace = scenario.model, scenario.hardware, result.meta["trace"]
    requests = result.requests
    return (f"{model.name}: {model.n_moe_layers} layers of {model.n_experts} experts, top-{model.top_k}, "
            f"{units.pretty(model.total_bytes, 'byte')} of weights, on {machine.nodes} nodes of "
            f"{machine.devices_per_node} {machine.device.name}. {len(requests)} requests of {_range(requests, 'prompt')} "
            f"prompt and {_range(requests, 'output')} output tokens. The routing is that of {trace['model']}, "
            f"recorded from real text; solvers saw {scenario.trace.profile_fraction:.0%} of its requests, everything "
            f"here is computed on the others ({trace['evaluation_tokens']} tokens) unless it says profile.")


def _range(requests: pd.DataFrame, what: str) -> str:
    lengths = requests[f"{what}_tokens"]
    return f"{lengths.min()} to {lengths.max()}"


def _reading() -> str:
    return ("*cross device*: fraction of the steps from one layer to the next at which a token's first choice (or a pair "
            "of its choices) is on another device. *fan-out*: devices that a token's experts are on. *load max/mean*: "
            "busiest device over the mean, mean over layers. Both directions of "
            " a link class carry the same bytes. `joint x`: x is the weight of load against transitions.")


def _caveats(scenario: Scenario) -> list[str]:
    accuracy = kernels.load("h200-tile").info["accuracy"]
    errors = ", ".join(f"{op.replace('_', ' ')} {row['median']:.0f}%" for op, row in accuracy.items())
    return [
        f"Operator times come from the `{type(scenario.kernels).__name__.lower()}` kernel model. Median error on held-out "
        f"measurements of the H200: {errors}; 90% of the rows are within "
        f"{max(row['p90'] for row in accuracy.values()):.0f}%. Differences between placements cancel most of it.",
        "Collectives are closed form and have the network to themselves; nothing overlaps with anything else. An engine "
        "that hides communication behind computing will see smaller differences.",
        f"One seed ({scenario.seed}). The profile and the evaluation part are of the same domains: a placement that "
        "meets other text loses part of its gain.",
        "In context_coherent every device keeps the keys and values of all requests and runs all prompts; both are "
        "charged here."]


def _files(name: str, mode: str) -> str:
    return "\n".join([
        f"- `placements/{slug(name)}.json`: the placement above (`devices[layer][expert]`); the others beside it",
        "- `timeline.json`: the first steps of it, every busy interval of every device. Open https://ui.perfetto.dev and "
        "drop the file there, or load it in chrome://tracing",
        "- `results/`: baseline and fastest placement of each mode, whole: requests, steps, spans, links, memory "
        "(Parquet), the resolved scenario, versions",
        "- `tables/`: the table above with all columns, and what each figure was drawn from (Parquet)",
        "- `scenario.yaml`: the resolved scenario",
        f"- Again, step by step: `moesim run scenario.yaml --set parallelism.mode={mode}`"])


def _markdown(table: pd.DataFrame) -> str:
    rows = [list(table.columns), ["---", "---", *["---:"] * (len(table.columns) - 2)], *table.to_numpy().tolist()]
    return "\n".join(f"| {' | '.join(str(cell).strip() for cell in row)} |" for row in rows)


