"""A fused expert layer in Triton: align, gate and up product with SiLU, down product, weighted sum.

The plan is that of the kernels of serving engines: token copies are sorted by expert and padded so that a block of
``rows`` copies has one expert; each program multiplies one block with one tile of its expert's columns. Nothing waits
for the device, so that a CUDA graph can record it: the number of blocks is the most there can be, and programs behind
the last block return at once. T tokens, K = top_k, C = T * K copies, H hidden, I expert width, E experts.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from moesim.measure.triton import ceil_div, jit, need, tl


class Tiles(NamedTuple):
    """Rows, columns and inner steps of a tile, and how Triton runs it."""

    rows: int
    columns: int
    inner: int = 64
    warps: int = 4
    stages: int = 3


class Aligned(NamedTuple):
    """Copies in blocks of one expert.

    ``copies`` int32 [blocks * rows]: number of the copy (token * K + choice), C where a row is padding. ``expert``
    int32 [blocks]: whose block it is. ``used`` int32 [1]: rows before the end of the last block.
    """

    copies: Tensor
    expert: Tensor
    used: Tensor


def tiles_for(copies_per_expert: float) -> Tiles:
    """Return the tile for the mean copies of an expert: rows 16 to 128, columns 64 to 256 (heuristic, not tuned)."""
    if copies_per_expert <= 16:
        return Tiles(16, 64, 128, 4, 4)
    if copies_per_expert <= 48:
        return Tiles(32, 64, 128, 4, 4)
    if copies_per_expert <= 128:
        return Tiles(64, 128, 64, 4, 4)
    return Tiles(128, 256, 64, 8, 3)


def align(ids: Tensor, experts: int, rows: int) -> Aligned:
    """Return the copies of *ids* [T, K] sorted by expert, the copies of each padded to a multiple of *rows*."""
    flat = ids.flatten()
    order = flat.argsort(stable=True)
    counts = torch.zeros(experts, dtype=torch.int64, device=ids.device).scatter_add_(0, flat, torch.ones_like(flat))
    padded = (counts + rows - 1) // rows * rows
    ends, padded_ends = counts.cumsum(0), padded.cumsum(0)
    blocks = ceil_div(len(flat), rows) + min(experts, len(flat))  # at most one unfilled block per expert
    copies = torch.full((blocks * rows,), len(flat), dtype=torch.int32, device=ids.device)
    owner = flat[order]
    place = torch.arange(len(flat), device=ids.device) - (ends - counts)[owner] + (padded_ends - padded)[owner]
    copies[place] = order.to(torch.int32)
    first = torch.arange(blocks, device=ids.device) * rows
    expert = torch.searchsorted(padded_ends, first, right=True).clamp(max=experts - 1).to(torch.int32)
    return Aligned(copies, expert, padded_ends[-1:].to(torch.int32))


@jit
def _gate_up(x, up, out, copies, expert, used, n_copies, top_k, hidden, inter,
             ROWS: tl.constexpr, COLUMNS: tl.constexpr, INNER: tl.constexpr):  # type: ignore[no-untyped-def]
    """Write SiLU(x gate^T) * (x value^T) of one block and one tile of columns to out [C, I]."""
    block, tile = tl.program_id(0), tl.program_id(1)
    if block * ROWS >= tl.load(used):
        return
    copy = tl.load(copies + block * ROWS + tl.arange(0, ROWS))
    real = copy < n_copies
    token = (copy // top_k).to(tl.int64)
    column = tile * COLUMNS + tl.arange(0, COLUMNS)
    weights = up + tl.load(expert + block).to(tl.int64) * 2 * inter * hidden
    gate = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    value = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    for start in range(0, hidden, INNER):
        k = start + tl.arange(0, INNER)
        a = tl.load(x + token[:, None] * hidden + k[None, :], mask=real[:, None] & (k[None, :] < hidden), other=0.0)
        inside = (column[None, :] < inter) & (k[:, None] < hidden)
        where = column[None, :].to(tl.int64) * hidden + k[:, None]
        gate = tl.dot(a, tl.load(weights + where, mask=inside, other=0.0), gate, input_precision="ieee")
        where += inter.to(tl.int64) * hidden
        value = tl.dot(a, tl.load(weights + where, mask=inside, other=0.0), value, input_precision="ieee")
    result = gate * tl.sigmoid(gate) * value
    where = copy[:, None].to(tl.int64) * inter + column[None, :]
    tl.store(out + where, result.to(out.dtype.element_ty), mask=real[:, None] & (column[None, :] < inter))


@jit
def _down(act, down, share, out, copies, expert, used, n_copies, hidden, inter,
          ROWS: tl.constexpr, COLUMNS: tl.constexpr, INNER: tl.constexpr):  # type: ignore[no-untyped-def]
    """Write share * (act down^T) of one block and one tile of columns to out [C, H]."""
    block, tile = tl.program_id(0), tl.program_id(1)
    if block * ROWS >= tl.load(used):
        return
    copy = tl.load(copies + block * ROWS + tl.arange(0, ROWS))
    real = copy < n_copies
    column = tile * COLUMNS + tl.arange(0, COLUMNS)
    weights = down + tl.load(expert + block).to(tl.int64) * hidden * inter
    total = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    row = copy[:, None].to(tl.int64)
    for start in range(0, inter, INNER):
        k = start + tl.arange(0, INNER)
        a = tl.load(act + row * inter + k[None, :], mask=real[:, None] & (k[None, :] < inter), other=0.0)
        inside = (column[None, :] < hidden) & (k[:, None] < inter)
        b = tl.load(weights + column[None, :].to(tl.int64) * inter + k[:, None], mask=inside, other=0.0)
        total = tl.dot(a, b, total, input_precision="ieee")
    scaled = total * tl.load(share + copy, mask=real, other=0.0).to(tl.float32)[:, None]
    where = row * hidden + column[None, :]
    tl.store(out + where, scaled.to(out.dtype.element_ty), mask=real[:, None] & (column[None, :] < hidden))


@jit
def _sum(rows, out, top_k, hidden, COLUMNS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Write the sum of a token's copies [T * K, H] to out [T, H]."""
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros((COLUMNS,), dtype=tl.float32)
    for choice in range(0, top_k):
        where = (token * top_k + choice) * hidden + column
        total += tl.load(rows + where, mask=column < hidden, other=0.0).to(tl.float32)
    tl.store(out + token * hidden + column, total.to(out.dtype.element_ty), mask=column < hidden)


def experts_fused(hidden: Tensor, weights: Tensor, ids: Tensor, up: Tensor, down: Tensor,
                  tiles: Tiles | None = None) -> Tensor:
    """Return the weighted sum [T, H] of SwiGLU experts (up [E, 2 I, H], down [E, H, I]) for *ids* [T, K].

    *weights* [T, K] scale the copies. All contiguous, of one dtype; *ids* are int64. Without *tiles*, ``tiles_for``.
    Raises ``ValueError`` for tensors that are not contiguous, ``ModuleNotFoundError`` without Triton.
    """
    need()
    for name, tensor in (("hidden", hidden), ("weights", weights), ("up", up), ("down", down)):
        if not tensor.is_contiguous():
            raise ValueError(f"{name} is not contiguous; call .contiguous() on it first")
    (tokens, width), top_k, experts, inter = hidden.shape, ids.shape[1], len(up), down.shape[2]
    tile = tiles or tiles_for(tokens * top_k / experts)
    aligned = align(ids, experts, tile.rows)
    blocks, copies = len(aligned.expert), tokens * top_k
    how = {"ROWS": tile.rows, "COLUMNS": tile.columns, "INNER": tile.inner, "num_warps": tile.warps,
           "num_stages": tile.stages}
    act = hidden.new_empty(copies, inter)
    # The first kernel holds two accumulators: half the columns, for as many registers.
    half = how | {"COLUMNS": max(tile.columns // 2, 32)}
    _gate_up[(blocks, ceil_div(inter, half["COLUMNS"]))](
        hidden, up, act, *aligned, copies, top_k, width, inter, **half)
    parts = hidden.new_empty(copies, width)
    _down[(blocks, ceil_div(width, tile.columns))](
        act, down, weights, parts, *aligned, copies, width, inter, **how)
    out = torch.empty_like(hidden)
    _sum[(tokens, ceil_div(width, 256))](parts, out, top_k, width, COLUMNS=256)
    return out
