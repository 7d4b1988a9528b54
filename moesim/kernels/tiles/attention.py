"""Prefill and decode attention (FlashAttention style) as tiles of queries and blocks of key/value columns.

Query heads that share a key/value head are packed into one tile, so a tile's rows are positions x heads.
"""

from __future__ import annotations

import numpy as np

from moesim.kernels.ops import Shapes
from moesim.kernels.rates import Rates
from moesim.kernels.tiles import overlapped
from moesim.registry import part
from moesim.units import Seconds

BLOCK = 128.0        # key/value columns per block, and rows per query tile (FlashAttention-3, head_dim <= 128)
DECODE_ROWS = 64.0   # rows of a decode tile: the smallest matrix instruction of Hopper (wgmma) takes 64


@part
class PrefillTiles:
    """Constants of causal prefill. Defaults: FlashAttention-3 in vLLM 0.24, bf16, H200.

    ``launch``: attention and cache-write kernels. ``compute``: reachable share of the peak. ``softmax``: what softmax
    costs per score, in widths of a head. ``prologue``: columns that starting a tile costs. ``wave``: how much of a
    last, partly filled wave is lost. ``stream``, ``write``: shares of the memory bandwidth of attention and of the
    cache write. ``split_below``: columns are split if tiles fill less than this share of the multiprocessors.
    """

    launch: Seconds = 8.97e-6
    compute: float = 1.0
    softmax: float = 59.5
    prologue: float = 398.0
    wave: float = 0.275
    stream: float = 0.537
    write: float = 0.289
    split_below: float = 0.8

    def time_s(self, rates: Rates, s: Shapes) -> np.ndarray:
        """Return seconds of ``attention_prefill``."""
        kv, widths, sms = s["kv_len"], s["head_dim"] + s["head_dim_v"], rates.multiprocessors
        group = s["heads_q"] / s["heads_kv"]
        per_sequence = np.ceil(s["q_len"] * group / BLOCK)
        tiles = s["batch"] * s["heads_kv"] * per_sequence
        # A tile covers BLOCK / group positions and sees all columns up to its last one; the last tile may be cut short.
        mean = kv - s["q_len"] + (per_sequence - 1) * BLOCK / group / 2 + s["q_len"] / per_sequence
        blocks = np.ceil(kv / BLOCK)
        parts = np.where(tiles < self.split_below * sms, np.clip(np.floor(sms / tiles), 1, blocks), 1)
        longest = np.minimum(kv, BLOCK * np.ceil(blocks / parts))
        waves = tiles * parts / sms
        idle = self.wave * (np.ceil(waves) - waves)  # of the last wave, which may be one of long tiles
        columns = waves * (mean / parts + self.prologue) + idle * (longest + self.prologue)
        columns = np.maximum(columns, longest + self.prologue)
        arithmetic = columns * 2 * BLOCK * (widths + 2 * self.softmax) / (rates.flop_per_s_each * self.compute)
        per_sequence_bytes = (s["q_len"] * s["heads_q"] + kv * s["heads_kv"]) * widths * rates.value_bytes
        memory = s["batch"] * per_sequence_bytes / (rates.bandwidth * self.stream)
        cached = 2 * s["batch"] * s["q_len"] * s["heads_kv"] * widths * rates.value_bytes  # read and written
        return self.launch + overlapped(arithmetic, memory) + cached / (rates.bandwidth * self.write)


@part
class DecodeTiles:
    """Constants of decode. Defaults: FlashAttention-3 in vLLM 0.24, bf16, H200.

    ``launch``: attention and cache-write kernels. ``stream``: reachable share of the memory bandwidth; ``alone``: the
    share that one head of one sequence reaches. ``load``: what one multiprocessor loads, in even shares of the memory
    bandwidth. ``compute``: reachable share of the peak. ``prologue``: blocks that starting a tile costs. ``split``:
    seconds that combining partial results costs, once there is more than one block. ``sequence``: per sequence.
    """

    launch: Seconds = 8.6e-6
    stream: float = 0.9
    alone: float = 0.298
    load: float = 1.59
    compute: float = 0.5
    prologue: float = 1.82
    split: Seconds = 2.88e-6
    sequence: Seconds = 2.15e-8

    def time_s(self, rates: Rates, s: Shapes) -> np.ndarray:
        """Return seconds of ``attention_decode``."""
        sms = rates.multiprocessors
        cached = s["kv_len"] * s["kv_values"] * rates.value_bytes                 # bytes of one sequence
        tiles = s["batch"] * s["heads_kv"] * np.ceil(s["heads_q"] / s["heads_kv"] / DECODE_ROWS)
        blocks = np.ceil(s["kv_len"] / BLOCK)
        parts = np.clip(np.floor(sms / tiles), 1, blocks)
        rounds = np.maximum(tiles * parts / sms, 1) * (np.ceil(blocks / parts) + self.prologue)
        load = BLOCK * s["kv_values"] / s["heads_kv"] * rates.value_bytes / (rates.bandwidth_each * self.load)
        arithmetic = (2 * BLOCK * DECODE_ROWS * (s["head_dim"] + s["head_dim_v"])
                      / (rates.flop_per_s_each * self.compute))
        memory = cached * np.maximum(s["batch"] / self.stream, 1 / (s["heads_kv"] * self.alone)) / rates.bandwidth
        fixed = self.launch + self.split * (blocks > 1) + self.sequence * s["batch"]
        return fixed + overlapped(rounds * np.maximum(load, arithmetic), memory)
