"""The computed part of the README, from the tables of this study."""

from __future__ import annotations

import pandas as pd
import setting

from moesim.page import markdown

ACCOUNTINGS = {"paper": "the paper's: SN40L over all links, a DGX over one, data sheet",
               "all links": "all links, data sheet", "all links, measured": "all links, measured",
               "overlapped": "all links, measured, while another expert runs"}


def text(tables: dict[str, pd.DataFrame]) -> str:
    """Return the whole computed part."""
    parts = (_answer, _switches, _table_v, _popularity, _capacity, _launches, _decoding, _placing)
    return "\n\n".join(part(tables) for part in parts)


def _stated(tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    return tables["table_v"][tables["table_v"]["router"] == "stated"]


def _answer(tables: dict[str, pd.DataFrame]) -> str:
    stated, seen = _stated(tables), tables["table_v"][tables["table_v"]["router"] == "one cell"]
    new = seen[~seen["input"]]
    fair = stated.set_index(["prompts", "tokens", "machine"])["fair"]
    return ("**The accounting is right, and where answers are short most of the gain is in it.** Copies over one link "
            "of a DGX and misses for every prompt give Table V within "
            f"{100 * stated['error'].abs().max():.1f}% (with one "
            f"number solved from one cell and none fitted otherwise, the other five within "
            f"{100 * new['error'].abs().max():.1f}%). If the GPUs use their eight links, "
            f"{setting.TABLE_V[8, 20, 'DGX A100']} and {setting.TABLE_V[8, 20, 'DGX H100']} become "
            f"{fair[8, 20, 'DGX A100']:.1f} and {fair[8, 20, 'DGX H100']:.1f}: little more than the experts' own speed "
            f"({setting.EXPERT_ONLY[20]['DGX A100']} and {setting.EXPERT_ONLY[20]['DGX H100']}, inputs).\n\n"
            "![Table V](figures/speedup.png)")


def _switches(tables: dict[str, pd.DataFrame]) -> str:
    rows = []
    for row in tables["switches"].itertuples():
        if row.machine == "SN40L" and row.accounting != "paper":
            continue
        published = setting.SWITCH_RATIO.get(row.machine) if row.accounting == "paper" else None
        rows.append([f"{row.machine}, {'all links' if row.machine == 'SN40L' else ACCOUNTINGS[row.accounting]}",
                     f"{1e3 * row.switch_s:.1f}", f"{row.ratio:.1f}", f"{published:g}" if published else "",
                     f"{100 * (row.ratio / published - 1):+.1f}%" if published else ""])
    size = setting.model().total_bytes / 1e9
    return (f"## Switching: {size:.2f} GB from below into HBM\n\n"
            + markdown(["", "ms", "over SN40L", "published", "error"], rows, 1).replace(
                "the paper's: SN40L over all links, a DGX over one, data sheet", "one link, data sheet (the paper's)"))


def _table_v(tables: dict[str, pd.DataFrame]) -> str:
    stated, seen = _stated(tables), tables["table_v"][tables["table_v"]["router"] == "one cell"]
    rows = [[f"{a.machine}, {a.prompts} prompt{'s' * (a.prompts > 1)}, {a.tokens} tokens", f"{a.published:.1f}",
             f"{a.model:.2f}", f"{100 * a.error:+.1f}%", f"{b.model:.2f}",
             "input" if b.input else f"{100 * b.error:+.1f}%", f"{a.fair:.2f}"]
            for a, b in zip(stated.itertuples(), seen.itertuples(), strict=True)]
    return "## Table V: how much longer a DGX takes, every prompt a miss\n\n" + markdown(
        ["", "published", "stated inputs", "error", "one cell solved", "error", "all links, measured"], rows, 1)


def _popularity(tables: dict[str, pd.DataFrame]) -> str:
    table, rows = tables["popularity"], []
    for (popularity, accounting), some in table.groupby(["popularity", "accounting"], sort=False):
        by = some.set_index("machine")
        rows.append([f"{popularity}; {ACCOUNTINGS[accounting]}", f"{100 * by.loc['SN40L', 'hit_rate']:.0f}%",
                     f"{100 * by.loc['DGX A100', 'hit_rate']:.0f}%",
                     *(f"{by.loc[name, 'ratio']:.2f}" for name in setting.GPUS)])
    header = ["popularity; accounting", "hits, SN40L", "hits, DGX", *(f"{g} over SN40L" for g in setting.GPUS)]
    return ("## With hits: 148 experts, batches of 8 prompts, 20 tokens\n\nThe paper says nothing of popularity. A DGX "
            "has the larger HBM, so it hits more often.\n\n" + markdown(header, rows, 1))


def _capacity(tables: dict[str, pd.DataFrame]) -> str:
    table = tables["capacity"].groupby("machine", sort=False)[["near", "most"]].first()
    rows = [[name, str(row.near), str(row.most)] for name, row in table.iterrows()]
    some = tables["footprint"]
    shares = [[f"{100 * r.share:.0f}%", f"{r.experts:.0f}", f"{r.dgx_hbm:.0f}", f"{r.dgx_host:.0f}"]
              for r in some.itertuples()]
    near, most = (table.loc["DGX A100", c] for c in ("near", "most"))
    found = ((near, setting.HBM_EXPERTS), (most, setting.HOST_EXPERTS))
    held = all(low <= count <= high for count, (low, high) in found)
    return (f"## Capacity\n\nPublished: latency of a DGX jumps at about 50 experts, its host memory is full at 150. "
            f"Here {near} and {most}: {'holds' if held else '**does not hold**'} (45 to 50, 145 to 155).\n\n"
            + markdown(["", "experts beside the router in HBM", "experts in all"], rows, 1)
            + "\n\n![Capacity](figures/capacity.png)\n\n"
            + f"Published: up to {setting.FOOTPRINT} times fewer machines. One SN40L node stands for this many DGX, if "
            "a DGX keeps every expert in HBM, and if it keeps them in host memory as SN40L does in DDR:\n\n"
            + markdown(["DDR used for experts", "experts", "DGX, all in HBM", "DGX, all in host memory"], shares, 1))


def _launches(tables: dict[str, pd.DataFrame]) -> str:
    rows = []
    for r in tables["within"].itertuples():
        never = pd.isna(r.most_s)
        costs = "with none" if never else f"{1e6 * r.least_s:.0f} to {1e6 * r.most_s:.0f}"
        rows.append([f"{r.phase}, {LABELS[r.ratio]}", f"{r.low:g} to {r.high:g}", costs])
    first = tables["launches"].query("phase == 'prefill' and launch_s == 0").iloc[0]
    free = tables["launches"].query("phase == 'decode' and launch_s == 0").iloc[0]
    kernels = tables["kernels"].iloc[0]
    return ("## Fusing layers, and what a launch costs\n\n"
            f"Without a launch cost fusing makes decoding {free.fusion:.2f} times as fast, prefill {first.fusion:.2f} "
            "times: at one token all bytes are weights and cache, at 4,096 the scores of attention go to memory and "
            "back. So in decoding fusion saves launches and nothing else.\n\n"
            + markdown(["Llama-2-7B, 8 sockets, 4,096 tokens", "published, all models",
                        "launch costs that give it (µs)"], rows, 1)
            + "\n\n![Launches](figures/launches.png)\n\n"
            + f"Calls: a layer has {kernels.operators:.0f} operators; the published ratio of {kernels.published:.0f} "
            f"calls (prefill of this model) means {kernels.fused:.1f} fused kernels a layer, not one.")


LABELS = {"fusion": "unfused over fused", "fusion_ahead": "the same, unfused kernels launched ahead",
          "orchestration": "launched by the host over by hardware"}


def _decoding(tables: dict[str, pd.DataFrame]) -> str:
    rows = [[r.what, f"{1e3 * r.token_s:.2f}", f"{1 / r.token_s:.0f}"] for r in tables["decoding"].itertuples()]
    return "## One token of an expert on SN40L\n\n" + markdown(["", "ms", "tokens/s"], rows, 1)


def _placing(tables: dict[str, pd.DataFrame]) -> str:
    places = [[r.what, f"{r.bytes / 1e9:.2f}"] for r in tables["sharing"].itertuples()]
    kinds = ("embedding", "results", "cache", "weights")
    rows = [[f"{r.room / 1e9:.1f} GB", *(f"{getattr(r, kind) / 1e9:.2f}" for kind in kinds),
             f"{100 * r.moved_down / r.moved:.0f}%"] for r in tables["spilled"].itertuples()]
    return ("## What lies where: an expert on one socket, 4,096 tokens in, 20 out, unfused\n\n"
            + markdown(["places", "GB"], places, 1) + "\n\nThe paper says that weights stay in HBM and results of "
            "operators go to DDR if there is too little of it. What moves least goes first; that gives (GB that go "
            "down):\n\n"
            + markdown(["HBM for the expert", "embedding table", "results", "cache", "weights", "bytes moved from DDR"],
                       rows, 1))
