"""The report of the demo: the question, the answer in words made from the numbers, table, figures, caveats."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import pandas as pd

from moesim import units
from moesim.demo import answer
from moesim.demo.points import Points, best, slug
from moesim.page import markdown
from moesim.result import Result
from moesim.scenario import Scenario

QUESTION = "Where should the experts of this model go on two 8-GPU nodes behind a leaf-spine network?"

# column -> its heading, what its values are divided by, how they are shown. Both directions of a link class carry the
# same bytes: one is shown, the table has both.
SHOWN: dict[str, tuple[str, float, str]] = {
    "throughput_tok_per_s": ("tokens/s", 1, ".0f"),
    "tpot_mean_s": ("TPOT (ms)", 1e-3, ".2f"),
    "ttft_mean_s": ("TTFT (ms)", 1e-3, ".0f"),
    "cross_top1": ("cross top-1 (%)", 0.01, ".1f"),
    "cross_top1_profile": ("on profile (%)", 0.01, ".1f"),
    "cross_all": ("cross all (%)", 0.01, ".1f"),
    "cross_all_profile": ("all, on profile (%)", 0.01, ".1f"),
    "cross_node_top1": ("cross node (%)", 0.01, ".1f"),
    "fanout": ("fan-out", 1, ".2f"),
    "load_max_over_mean": ("load max/mean", 1, ".2f"),
    "step_load_max_over_mean": ("in a step", 1, ".2f"),
    "bytes_scale_up_out": ("scale-up (GB)", 1e9, ".1f"),
    "bytes_nic_out": ("NIC (GB)", 1e9, ".1f"),
    "bytes_leaf_up": ("spine (GB)", 1e9, ".1f"),
    "kv_peak_bytes": ("KV peak (GB)", 1e9, ".2f")}

READING = (
    "*cross top-1*: share of the steps from layer to layer at which a token's first choice is on another device, on "
    "requests that solvers did not see, and on the profile that they saw; *all*: over all pairs of its choices. "
    "*cross node*: the first, between nodes. *fan-out*: devices that a token's experts of a layer are on. *load "
    "max/mean*: the busiest device over the mean, mean over layers; *in a step*: mean over the steps of the run, each "
    "with its own busiest devices. Bytes are those of the whole run on all links of a class in one direction. *KV "
    "peak*: keys and values on the fullest device. `joint x`: x is what balance is worth against transitions.")

CAPTIONS = {
    "pareto": "What balance costs: in transitions, and in the bytes that each mode sends between nodes. Grey line: the "
              "Pareto front, what no other placement beats in both.",
    "breakdown_decode": "A decode step. wait: a device waits for others.",
    "breakdown_prefill": "A step with prompts.",
    "device_load": "How evenly each placement spreads the tokens.",
    "links": "Bytes per link class over the whole run.",
    "latency": "Time per output token of the requests, baseline and fastest placement of each mode.",
    "affinity": "What the expert of one layer tells about the next: all that affinity placement has to work with."}


# What a terminal has room for; the report shows all.
BRIEF = ("throughput_tok_per_s", "tpot_mean_s", "ttft_mean_s", "cross_top1", "fanout", "load_max_over_mean",
         "bytes_scale_up_out", "bytes_nic_out", "bytes_leaf_up")


def shown(table: pd.DataFrame, only: Collection[str] = tuple(SHOWN)) -> pd.DataFrame:
    """Return the *table* of the demo as text for people, headings with units; of the numbers, *only* those columns."""
    columns = {name: table[name] for name in ("placement", "mode")}
    for column, (heading, divisor, form) in SHOWN.items():
        if column in table and column in only:
            columns[heading] = pd.Series([format(v / divisor, form) for v in table[column]], index=table.index)
    return pd.DataFrame(columns)


def write(out: Path, scenario: Scenario, points: Points, results: Mapping[tuple[str, str], Result],
          figures: Mapping[str, Path]) -> Path:
    """Write ``report.md`` to *out*."""
    name, mode = best(points.table)
    table = shown(points.table)
    parts = [
        f"# {QUESTION}", _setting(scenario, results[name, mode]),
        "## Answer", *answer.sentences(points),
        "## Numbers", markdown(table, table.to_numpy(), words=2), READING,
        "## Figures", *(f"![{CAPTIONS[key]}](figures/{figures[key].name})\n\n{CAPTIONS[key]}" for key in CAPTIONS),
        "## What to keep in mind",
        "\n".join(f"- {line}" for line in [*_warnings(results), *_caveats(scenario, results[name, mode])]),
        "## Files", _files(name)]
    path = out / "report.md"
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return path


def _setting(scenario: Scenario, result: Result) -> str:
    model, machine, trace = scenario.model, scenario.hardware, result.meta["trace"]
    prompt, output = (result.requests[f"{what}_tokens"] for what in ("prompt", "output"))
    kind = "synthetic" if trace["synthetic"] else "captured from a trained model"
    return (f"`{model.name}`: {model.n_moe_layers} layers of {model.n_experts} experts, top-{model.top_k}, "
            f"{units.pretty(model.total_bytes, 'byte')} of weights, on {machine.nodes} nodes of "
            f"{machine.devices_per_node} {machine.device.name}. {len(result.requests)} requests, {prompt.min()} to "
            f"{prompt.max()} prompt tokens, {output.min()} to {output.max()} output tokens. The routing is that of "
            f"`{trace['model']}`, {kind}: solvers saw {scenario.traced.profile_fraction:.0%} of its requests, the "
            f"simulation runs on the others ({trace['evaluation_tokens']} tokens).")


def _warnings(results: Mapping[tuple[str, str], Result]) -> list[str]:
    """Return the warnings of all results, those that differ only in numbers (in brackets) once."""
    return list({w.partition(" (")[0]: w for result in results.values() for w in result.meta["warnings"]}.values())


def _caveats(scenario: Scenario, result: Result) -> list[str]:
    used = result.meta["kernels"]
    times = f"Operator times: kernel model `{used['model']}`."
    if used["accuracy"]:
        errors = ", ".join(f"{op.replace('_', ' ')} {row['median']:.0f}%" for op, row in used["accuracy"].items())
        p90 = max(row["p90"] for row in used["accuracy"].values())
        times += (f" Median error of `{used['file']}` on held-out measurements: {errors}; nine in ten rows are within "
                  f"{p90:.0f}%. Another version of the engine may differ by more (docs/background/time.md).")
    return [
        f"{times} An error that all placements share cancels in their differences, not in absolute times.",
        "Collectives are closed form, have the network to themselves, and nothing overlaps. An engine that hides "
        "communication behind computing sees smaller differences.",
        f"One seed ({scenario.seed}). Profile and evaluation are of the same domains: on other text a placement loses "
        f"part of its gain.",
        "`context_coherent` follows ExFlow (arXiv 2401.08383); replicated prompts, and the replicated keys and values, "
        "are charged."]


def _files(name: str) -> str:
    return "\n".join([
        f"- `placements/{slug(name)}.json`: the placement of the answer, `devices[layer][expert]`; the others beside "
        f"it.",
        "- `timeline.json`: its first steps, every busy interval of every device. Open https://ui.perfetto.dev and "
        "drop the file there (or chrome://tracing, Load).",
        "- `results/`: baseline and fastest placement of each mode, whole: requests, steps, spans, links and memory as "
        "Parquet, resolved scenario, versions.",
        "- `tables/`: the table above with all columns (`points.parquet`), and what each figure was drawn from.",
        "- `scenario.yaml`: the resolved scenario, for `moesim run`."])
