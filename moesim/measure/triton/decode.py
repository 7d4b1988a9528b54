"""Decode attention in Triton: one query per sequence, uneven lengths, columns of a sequence split over programs.

A program takes the query heads of one key head of one sequence, over one part of its columns, with an online softmax
(FlashDecoding: partial results and their log-sums are combined by a second kernel). Parts that begin behind the end of
a short sequence return at once and weigh nothing. B sequences, Q and G heads, D width, S room in the cache.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moesim.measure.triton import ceil_div, jit, need, tl

BLOCK = 64        # columns of one step
GROUP_ROWS = 16   # rows of a tile: the fewest that a tensor core's instruction takes
PART = 512        # columns of a part, at least
MOST_PARTS = 64   # parts of the longest sequence, at most


@jit
def _part(q, keys, values, lengths, sums, tops, out, key_heads, room, columns, scale,
          GROUP: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr, STEP: tl.constexpr):  # type: ignore[no-untyped-def]
    """Write the attention of one sequence and key head over one part, its largest score and its sum of weights."""
    sequence, head, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    length = tl.load(lengths + sequence)
    begin = part * columns
    row, width = tl.arange(0, ROWS), tl.arange(0, WIDTH)
    slot = ((sequence * key_heads + head) * tl.num_programs(2) + part) * GROUP + row
    if begin >= length:
        tl.store(sums + slot, tl.zeros((ROWS,), dtype=tl.float32), mask=row < GROUP)
        tl.store(tops + slot, tl.full((ROWS,), float("-inf"), dtype=tl.float32), mask=row < GROUP)
        nothing = tl.zeros((ROWS, WIDTH), dtype=tl.float32)
        tl.store(out + slot[:, None].to(tl.int64) * WIDTH + width[None, :], nothing, mask=row[:, None] < GROUP)
        return
    query = ((sequence * key_heads + head) * GROUP + row[:, None]).to(tl.int64) * WIDTH + width[None, :]
    a = tl.load(q + query, mask=row[:, None] < GROUP, other=0.0)
    base = (sequence.to(tl.int64) * key_heads + head) * room * WIDTH
    top = tl.full((ROWS,), float("-inf"), dtype=tl.float32)
    total = tl.zeros((ROWS,), dtype=tl.float32)
    mixed = tl.zeros((ROWS, WIDTH), dtype=tl.float32)
    for start in range(begin, tl.minimum(begin + columns, length), STEP):
        column = start + tl.arange(0, STEP)
        there = column < length
        where = base + column[:, None].to(tl.int64) * WIDTH + width[None, :]
        k = tl.load(keys + where, mask=there[:, None], other=0.0)
        v = tl.load(values + where, mask=there[:, None], other=0.0)
        score = tl.dot(a, tl.trans(k), input_precision="ieee") * scale
        score = tl.where(there[None, :], score, float("-inf"))
        new = tl.maximum(top, tl.max(score, 1))
        weight = tl.exp(score - new[:, None])
        fade = tl.exp(top - new)
        total = total * fade + tl.sum(weight, 1)
        mixed = mixed * fade[:, None] + tl.dot(weight.to(v.dtype), v, input_precision="ieee")
        top = new
    tl.store(sums + slot, total, mask=row < GROUP)
    tl.store(tops + slot, top, mask=row < GROUP)
    tl.store(out + slot[:, None].to(tl.int64) * WIDTH + width[None, :], mixed, mask=row[:, None] < GROUP)


@jit
def _combine(sums, tops, parts, out, n_parts, GROUP: tl.constexpr, WIDTH: tl.constexpr):  # type: ignore[no-untyped-def]
    """Write the attention of one query head from its parts."""
    pair, row = tl.program_id(0), tl.program_id(1)
    width = tl.arange(0, WIDTH)
    top = tl.full((1,), float("-inf"), dtype=tl.float32)
    for part in range(0, n_parts):
        top = tl.maximum(top, tl.load(tops + (pair * n_parts + part) * GROUP + row))
    total = tl.zeros((1,), dtype=tl.float32)
    mixed = tl.zeros((WIDTH,), dtype=tl.float32)
    for part in range(0, n_parts):
        slot = (pair * n_parts + part) * GROUP + row
        fade = tl.exp(tl.load(tops + slot) - top)
        weight = tl.load(sums + slot)
        total += weight * fade
        mixed += tl.load(parts + slot.to(tl.int64) * WIDTH + width) * fade
    where = (pair * GROUP + row).to(tl.int64) * WIDTH + width
    tl.store(out + where, (mixed / total).to(out.dtype.element_ty))


def decode_split(q: Tensor, keys: Tensor, values: Tensor, lengths: Tensor, longest: int) -> Tensor:
    """Return attention [B, Q, D] of queries *q* over the first *lengths* int32 [B] columns of caches [B, G, S, D].

    *longest* is the largest length, known on the host so that nothing waits for the device; every length is at least
    1. D is a power of two of at least 16. Raises ``ValueError`` for other widths and tensors that are not contiguous,
    ``ModuleNotFoundError`` without Triton.
    """
    need()
    (batch, heads, width), key_heads, room = q.shape, keys.shape[1], keys.shape[2]
    if width < 16 or width & (width - 1):
        raise ValueError(f"heads are {width} wide; this kernel takes powers of two from 16 on")
    q = q.contiguous()
    if not (keys.is_contiguous() and values.is_contiguous()):
        raise ValueError("the cache is not contiguous; call .contiguous() on it first")
    group = heads // key_heads
    columns = ceil_div(max(PART, ceil_div(longest, MOST_PARTS)), BLOCK) * BLOCK
    n_parts = ceil_div(longest, columns)
    sums = torch.empty(batch * key_heads * n_parts * group, dtype=torch.float32, device=q.device)
    tops, parts = torch.empty_like(sums), sums.new_empty(len(sums), width)
    rows = max(GROUP_ROWS, 1 << (group - 1).bit_length())
    _part[(batch, key_heads, n_parts)](q, keys, values, lengths, sums, tops, parts, key_heads, room, columns,
                                       width**-0.5, GROUP=group, ROWS=rows, WIDTH=width, STEP=BLOCK)
    out = torch.empty_like(q)
    _combine[(batch * key_heads, group)](sums, tops, parts, out, n_parts, GROUP=group, WIDTH=width)
    return out
