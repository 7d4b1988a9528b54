"""Commands on traces and results: plot, convert, capture."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from moesim.cli.output import message, waiting


def plot(source: Annotated[Path, typer.Argument(help="Result folder (of run), sweep folder, or trace file.")],
         kinds: Annotated[list[str] | None, typer.Option("--kind", help="Figure; repeat for more. "
                                                                        "(default: all that fit)")] = None,
         options: Annotated[list[str] | None, typer.Option("--set", metavar="NAME=VALUE",
                                                           help="Option of the figure, e.g. x=tpot_p50_s.")] = None,
         out: Annotated[Path | None, typer.Option(help="Folder. (default: figures, beside the tables)")] = None,
         suffix: Annotated[str, typer.Option("--format", help="png or svg.")] = "png") -> None:
    """Draw figures of a result, a sweep or a trace; print their paths."""
    from moesim.cli import figures

    folder = out or (source if source.is_dir() else source.parent) / "figures"
    for path in figures.draw(source, kinds, figures.options(options or ()), folder, suffix):
        print(path)


def convert(source: Annotated[Path, typer.Argument(metavar="IN", help="Trace or placement of any known format.")],
            out: Annotated[Path, typer.Argument(metavar="OUT", help="Parquet file, or the placement to write.")],
            form: Annotated[str | None, typer.Option("--format", help="Format of IN: a name, or e.g. {name: esft_text, "
                                                                      "top_k: 8}. (default: found)")] = None,
            to: Annotated[str | None, typer.Option(help="IN is a placement, and OUT gets this format of "
                                                        "`moesim list placement_format`.")] = None,
            devices: Annotated[int | None, typer.Option(min=1, help="Of the placement; most files do not say it.")
                               ] = None,
            experts: Annotated[int | None, typer.Option(min=1, help="Per layer, of the placement; ExFlow's file does "
                                                                    "not say it.")] = None) -> None:
    """Convert a trace of another tool to moesim's Parquet form, or (with --to) a placement to any form."""
    from moesim.cli.values import yaml_value

    kind = yaml_value("--format", form) if form else None
    if to is not None:
        from moesim.placement import read_placement, write_placement

        placement = read_placement(source, devices, kind, experts)
        out.parent.mkdir(parents=True, exist_ok=True)
        write_placement(placement, out, yaml_value("--to", to))
        message(f"{out}: {placement.n_layers} layers, {placement.n_experts} experts, {placement.n_devices} devices, "
                f"{int(placement.replicas.sum())} replicas")
        return
    if devices is not None or experts is not None:
        raise ValueError("--devices and --experts are for placements; say the format to write with --to")
    from moesim.trace import read_trace

    _check_name(out)
    _write(read_trace(source, kind), out)


def capture(model: Annotated[Path, typer.Option(help="Hugging Face model folder.")],
            text: Annotated[list[Path], typer.Option(help="Text file; a prompt is a paragraph. Repeat for more.")],
            out: Annotated[Path, typer.Option(help="Trace file to write.")],
            domain: Annotated[list[str] | None, typer.Option(help="Label of the text: one, or one per file. "
                                                                  "(default: the files' names)")] = None,
            prompt_tokens: Annotated[int, typer.Option(min=1, help="Longer prompts are cut.")] = 256,
            new_tokens: Annotated[int, typer.Option(min=1, help="Tokens sampled after each prompt.")] = 64,
            rows: Annotated[int, typer.Option(min=1, help="Prompts side by side.")] = 8,
            ranked: Annotated[int | None, typer.Option(min=1, help="Candidates kept per layer. (default: top-k)")
                              ] = None,
            origin: Annotated[str, typer.Option(help="Where the text is from; kept in the trace.")] = "",
            licence: Annotated[str, typer.Option(help="Licence of the text; kept in the trace.")] = "",
            seed: Annotated[int, typer.Option(min=0)] = 0) -> None:
    """Record which experts a PyTorch model chooses on text, in prefill and in decode."""
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # read when transformers is imported
    from moesim.capture import text as library

    if not (model / "config.json").is_file():
        raise ValueError(f"{model}: holds no config.json; give the folder that save_pretrained wrote")
    _check_name(out)
    prompts, labels = _prompts(text, domain)
    plan = library.Plan(prompt_tokens, new_tokens, rows, ranked, seed)
    with waiting("capturing"):
        trace = library.capture_text(str(model), prompts, labels, plan, origin=origin, licence=licence)
    _write(trace, out)


def _prompts(files: list[Path], domains: list[str] | None) -> tuple[list[str], list[str]]:
    """Return the paragraphs of *files* and the label of each. Raises ``ValueError``."""
    names = domains or [file.stem for file in files]
    names = names * len(files) if len(names) == 1 else names
    if len(names) != len(files):
        raise ValueError(f"{len(names)} domains for {len(files)} text files; give one, or one for each file")
    prompts, labels = [], []
    for file, name in zip(files, names, strict=True):
        found = [part.strip() for part in file.read_text(encoding="utf-8").split("\n\n") if part.strip()]
        if not found:
            raise ValueError(f"{file}: holds no text; give a file with at least one paragraph")
        prompts += found
        labels += [name] * len(found)
    return prompts, labels


def _check_name(out: Path) -> None:
    if out.suffix != ".parquet":
        raise ValueError(f"{out}: traces are written as Parquet; end the name in .parquet")


def _write(trace: Any, out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    trace.write(out)
    message(f"{out}: {trace.n_tokens} tokens, {trace.n_layers} layers, {trace.n_experts} experts, top {trace.top_k}")
