"""The report of a validation: one page, as Markdown with figures beside it, and as one HTML file that holds them."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from ruamel.yaml import YAML

from moesim import plots, whole
from moesim.page import markdown
from moesim.runs.compare import QUANTITIES
from moesim.runs.run import Run
from moesim.runs.validating import Validation

# What a saved validation consists of.
FILES = {"report.md", "report.html", "figures", "errors.csv", "ranks.csv", "timeline_errors.csv", "requests.parquet",
         "timeline.parquet", "replay.parquet", "scenario.yaml"}
READING = (
    "TTFT: first token, E2E: last token, both from the moment at which the engine takes a request into its queue (from "
    "the client's sending where a run does not have it); *from arrival* adds the wait for the step in progress. TPOT: "
    "first to last token over the tokens after the first. Errors: simulated over measured, less one. Spearman and "
    "Kendall: whether the same requests are slow.")
_QUANTITIES = {"output_tok_per_s": "output tokens/s", "prompt_tok_per_s": "prompt tokens/s", "running": "running",
               "waiting": "waiting", "kv_used": "KV in use (share)"}


class Block(NamedTuple):
    """A piece of the page: kind is heading, text, list, table or figure."""

    kind: str
    content: Any
    caption: str = ""


def save(found: Validation, folder: str | Path) -> Path:
    """Write report, figures, tables, and the scenario with the replayed requests to *folder*.

    The folder appears complete or not at all. Raises ``FileExistsError`` if it holds other files.
    """
    with whole.folder(folder, FILES, "moesim validate") as new:
        (new / "figures").mkdir()
        _tables(found, new)
        figures = draw(found, new / "figures")
        blocks = list(_page(found, figures))
        title = f"{found.scenario.name}: simulated against measured"
        (new / "report.md").write_text(f"# {title}\n\n" + "\n\n".join(map(_markdown, blocks)) + "\n", encoding="utf-8")
        (new / "report.html").write_text(_html(title, blocks, new), encoding="utf-8")
    return Path(folder).resolve()


def check_folder(folder: str | Path) -> Path:
    """Return *folder* if a validation may be saved there. Raises ``FileExistsError``."""
    return whole.checked(folder, FILES, "moesim validate")


def draw(found: Validation, folder: Path) -> dict[str, str]:
    """Draw the figures into *folder*; return file name -> caption."""
    comparison = found.comparison
    metrics = [name for name in ("ttft", "tpot", "e2e") if comparison.requests[f"{name}_measured_s"].notna().any()]
    drawn = {}
    for name in metrics:
        long = pd.concat([pd.DataFrame({"source": source, f"{name}_s": comparison.requests[f"{name}_{source}_s"]})
                          for source in ("measured", "simulated")], ignore_index=True)
        axes = plots.draw("run_cdf", long, column=f"{name}_s")
        drawn[plots.save(axes.figure, folder / f"cdf_{name}.png").name] = f"{name.upper()} of all requests."
    for name in metrics:
        axes = plots.draw("run_scatter", comparison.requests, metric=name)
        drawn[plots.save(axes.figure, folder / f"scatter_{name}.png").name] = \
            f"{name.upper()}, a point per request; dotted: 10 % off."
    shown = [q for q in QUANTITIES if q in comparison.timeline]
    figure, axes = plots.figure(rows=len(shown), size=(7.2, 2.6 * len(shown)))
    for ax, quantity in zip(axes[:, 0], shown, strict=True):
        plots.draw("run_timeline", comparison.timeline, ax=ax, quantity=quantity)
    timeline = plots.save(figure, folder / "timeline.png")
    drawn[timeline.name] = "The engine over time; a prompt counts as its first token comes."
    return drawn


def _tables(found: Validation, folder: Path) -> None:
    comparison = found.comparison
    for name in ("errors", "ranks", "timeline_errors"):
        getattr(comparison, name).to_csv(folder / f"{name}.csv", index=False, float_format="%.6g")
    comparison.requests.to_parquet(folder / "requests.parquet", index=False)
    comparison.timeline.to_parquet(folder / "timeline.parquet", index=False)
    found.requests.to_parquet(folder / "replay.parquet", index=False)
    with open(folder / "scenario.yaml", "w", encoding="utf-8") as file:
        YAML().dump(found.scenario.dump() | {"requests": {"kind": "replay", "path": "replay.parquet"}}, file)


def _page(found: Validation, figures: dict[str, str]) -> Iterable[Block]:
    comparison = found.comparison
    totals = comparison.errors[comparison.errors["statistic"] == "total"].set_index("metric")
    timeline = comparison.timeline_errors
    yield Block("text", _setting(found.run, found))
    yield Block("heading", "Latencies")
    yield Block("table", comparison.table())
    yield Block("text", READING)
    yield Block("heading", "Totals and timeline")
    yield Block("table", pd.DataFrame({
        "": ["makespan (s)", "output tokens/s"], "measured": totals.loc[["makespan", "output_tok_per_s"], "measured"],
        "simulated": totals.loc[["makespan", "output_tok_per_s"], "simulated"],
        "error (%)": totals.loc[["makespan", "output_tok_per_s"], "error_percent"]}))
    yield Block("table", pd.DataFrame({
        "over time": timeline["quantity"].map(_QUANTITIES), "measured, mean": timeline["measured_mean"],
        "simulated, mean": timeline["simulated_mean"], "median error of a tick": timeline["median_error"],
        "of the mean (%)": timeline["median_error_percent"]}))
    yield Block("heading", "Figures")
    yield from (Block("figure", name, caption) for name, caption in figures.items())
    if found.notes:
        yield Block("heading", "What to keep in mind")
        yield Block("list", [note[0].upper() + note[1:] + "." for note in found.notes])
    yield Block("heading", "Files")
    yield Block("list", ["errors.csv, ranks.csv, timeline_errors.csv: the tables above with all digits.",
                         "requests.parquet, timeline.parquet: every request and every tick, measured and simulated.",
                         "scenario.yaml, replay.parquet: scenario and requests as simulated; moesim run scenario.yaml "
                         "repeats it."])


def _setting(run: Run, found: Validation) -> str:
    scenario, requests = found.scenario, run.requests
    model = f" of {run.meta['model']}" if run.meta["model"] else ""
    tokens = [int(requests[name].sum()) for name in ("prompt_tokens", "output_tokens")]
    return (f"Measured: {len(requests)} requests{model} with {tokens[0]:,} prompt and {tokens[1]:,} output tokens in "
            f"{run.makespan_s:.1f} s. Simulated: the same requests, sent at the same times, in the scenario "
            f"\"{scenario.name}\" (model {scenario.model.name} on {scenario.hardware.name}, {scenario.n_groups} engine"
            f"{'s' if scenario.n_groups > 1 else ''}, detail {scenario.detail}, seed {scenario.seed}).")


def _cells(table: pd.DataFrame) -> list[list[str]]:
    """Return headings and rows as text, numbers with four digits, an empty cell where there is none."""
    def text(value: Any) -> str:
        if not isinstance(value, float):
            return str(value)
        return "" if pd.isna(value) else f"{value:,.1f}" if abs(value) >= 1000 else f"{value:.4g}"

    return [list(map(str, table.columns)), *([text(value) for value in row] for row in table.to_numpy(object).tolist())]


def _markdown(block: Block) -> str:
    if block.kind == "heading":
        return f"## {block.content}"
    if block.kind == "list":
        return "\n".join(f"- {line}" for line in block.content)
    if block.kind == "figure":
        return f"![{block.caption}](figures/{block.content})\n\n{block.caption}"
    if block.kind == "table":
        head, *rows = _cells(block.content)
        return markdown(head, rows, words=1)
    return str(block.content)


_STYLE = ("body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#262626}"
          "table{border-collapse:collapse;margin:1rem 0}th,td{padding:.25rem .7rem;text-align:right;"
          "border-bottom:1px solid #d9d9d9}th:first-child,td:first-child{text-align:left}"
          "figure{margin:1.5rem 0}img{max-width:100%}figcaption{color:#595959}")


def _html(title: str, blocks: Iterable[Block], folder: Path) -> str:
    """Return the page as HTML that needs no other file."""
    def one(block: Block) -> str:
        if block.kind == "heading":
            return f"<h2>{html.escape(block.content)}</h2>"
        if block.kind == "list":
            return f"<ul>{''.join(f'<li>{html.escape(line)}</li>' for line in block.content)}</ul>"
        if block.kind == "figure":
            data = base64.b64encode((folder / "figures" / block.content).read_bytes()).decode()
            caption = html.escape(block.caption)
            return (f'<figure><img alt="{caption}" src="data:image/png;base64,{data}">'
                    f"<figcaption>{caption}</figcaption></figure>")
        if block.kind == "table":
            head, *rows = _cells(block.content)
            lines = [f"<tr>{''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in row)}</tr>"
                     for tag, row in (("th", head), *(("td", row) for row in rows))]
            return f"<table>{''.join(lines)}</table>"
        return f"<p>{html.escape(block.content).replace('*from arrival*', '<em>from arrival</em>')}</p>"

    return (f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
            f"<style>{_STYLE}</style></head>\n<body><h1>{html.escape(title)}</h1>\n"
            + "\n".join(map(one, blocks)) + "\n</body></html>\n")
