"""What of an expert lies in HBM and what goes to DDR, one socket of eight: 4,096 tokens in, 20 out, layers unfused."""

from __future__ import annotations

import pandas as pd
import setting
from fusion import CONTEXT, TP

from moesim.memory.allocation import Symbol, allocate, offsets_of, peak_bytes
from moesim.memory.execution import operators

TOKENS = 20                                     # passes: the prompt, then 19 tokens
ROOMS = (2.4e9, 2.2e9, 2.0e9, 1.8e9, 1.6e9)     # bytes of HBM for this expert, of a socket
KINDS = ("embedding", "results", "cache", "weights")
RESIDUAL = 10                                   # operators until a sum is added to the next one


def symbols() -> list[Symbol]:
    """Return weights and cache of each layer, and the results of each operator for the prompt, with their lives."""
    model, found = setting.model(), []
    prompt, one = (operators(model, TP, 1, new, CONTEXT) for new in (CONTEXT, 1))
    for layer in range(model.layers):
        weights, cache = prompt["weight_bytes"].sum(), prompt["cache_bytes"].sum()
        found += [Symbol(f"weights {layer}", weights, TOKENS * weights),
                  Symbol(f"cache {layer}", cache, (TOKENS + 1) * cache)]
        first = layer * len(prompt)
        for i, row in enumerate(prompt.itertuples()):
            if row.operator.startswith("store"):
                continue  # these results are the cache
            last = i + (RESIDUAL if row.operator == "add" else 1)
            moved = 2 * (row.out_bytes + (TOKENS - 1) * one["out_bytes"][i])
            found.append(Symbol(f"results {layer}.{i}", row.out_bytes, moved, (first + i, first + last)))
    head = model.head_gemm(TP).bytes
    rows = (CONTEXT + TOKENS - 1) * model.hidden * 2 / TP  # of the table of embeddings: those of the tokens
    return [*found, Symbol("weights head", head, TOKENS * head), Symbol("embedding", head, rows)]


def sharing() -> pd.DataFrame:
    """Return the bytes of all symbols, each at a place of its own, and of places that share what is free."""
    all_of = symbols()
    height = max(o + s.bytes for o, s in zip(offsets_of(all_of), all_of, strict=True))
    rows = [("each at a place of its own", sum(s.bytes for s in all_of)), ("shared", height),
            ("most that lives at one time", peak_bytes(all_of)),
            ("weights and cache alone", sum(s.bytes for s in all_of if not s.name.startswith("results")))]
    return pd.DataFrame(rows, columns=["what", "bytes"])


def spilled() -> pd.DataFrame:
    """Return, by room in HBM, the bytes that go to DDR, by kind, and the bytes moved there."""
    rows = []
    for room in ROOMS:
        table = allocate(symbols(), {"hbm": room, "ddr": 200e9})
        down = table[table["tier"] == "ddr"]
        kind = down["symbol"].str.split().str[0]
        rows.append((room, *(down.loc[kind == k, "bytes"].sum() for k in KINDS), down["moved_bytes"].sum(),
                     table["moved_bytes"].sum()))
    return pd.DataFrame(rows, columns=["room", *KINDS, "moved_down", "moved"])
