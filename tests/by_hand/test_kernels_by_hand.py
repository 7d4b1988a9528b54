"""Every operator on a tiny processor, worked on paper: 1 TFLOP/s, 100 GB/s, 4 multiprocessors, 2-byte values.

The tile model's constants here: half of both peaks reachable (each multiprocessor 125 GFLOP/s, memory 50 GB/s), loads
of one multiprocessor at twice its even share (50 GB/s), launch 1 us, no prologue, splits so slow that nobody wants one.
"""

from __future__ import annotations

import numpy as np
import pytest

from moesim.kernels.model import KernelModel
from moesim.kernels.models.roofline import Roofline
from moesim.kernels.models.tile import Tile
from moesim.kernels.rates import Rates
from moesim.kernels.tiles.attention import DecodeTiles, PrefillTiles
from moesim.kernels.tiles.matrix import ExpertTiles, GemmTiles, StreamTiles

RATES = Rates(flop_per_s=1e12, bandwidth=100e9, multiprocessors=4, weight_bytes=2, value_bytes=2)
HALF = {"compute": 0.5, "stream": 0.5}
TILE = KernelModel(RATES, Tile(
    gemm=GemmTiles(launch="1 us", load=2.0, prologue=0.0, split="1 s", reduce=1.0, **HALF),
    moe=ExpertTiles(launch="1 us", load=2.0, prologue=0.0, elementwise=0.5, unaligned=0.5, remote=0.5, unpack=0.5,
                    **HALF),
    prefill=PrefillTiles(launch="1 us", softmax=0.0, prologue=0.0, wave=1.0, write=0.5, split_below=0.8, **HALF),
    decode=DecodeTiles(launch="1 us", alone=0.25, load=2.0, prologue=0.0, split="1 us", sequence="0 s", **HALF),
    elementwise=StreamTiles(launch="1 us", stream=0.5), gate=StreamTiles(launch="1 us", stream=0.5)))
ROOF = KernelModel(RATES, Roofline())


def both(tiles_us: float, memory_us: float) -> float:
    """Tiles and memory overlap: fourth-power mean."""
    return (tiles_us**4 + memory_us**4) ** 0.25


def us(kernels: KernelModel, op: str, **shapes: object) -> float:
    return float(kernels.time_s(op, **shapes)) * 1e6


def test_gemm() -> None:
    # 64 x 256 with k = 1000. Tiles of 64 x 64: four, one per multiprocessor; a step is 2 * 64 * 64 FLOP at 125 GFLOP/s
    # = 65.536 ns (its loads, 256 B at 50 GB/s = 5.12 ns, hide). 1000 steps: 65.536 us. Other shapes are no faster.
    # Memory: (64 * 1256 + 256 * 1000) * 2 B = 672,768 B at 50 GB/s = 13.45536 us.
    assert us(TILE, "gemm", m=64, n=256, k=1000) == pytest.approx(1 + both(65.536, 13.45536))
    # One row more needs a second row of tiles: two waves. Memory: 675,280 B.
    assert us(TILE, "gemm", m=65, n=256, k=1000) == pytest.approx(1 + both(131.072, 13.5056))
    # One row of a large matrix: 16 tiles of 64 x 64 over 4 multiprocessors, 4 * 1024 * 65.536 ns = 268.4 us.
    # Memory: (1024 + 1024 + 1024 * 1024) * 2 B = 2,101,248 B: 42.02496 us.
    assert us(TILE, "gemm", m=1, n=1024, k=1024) == pytest.approx(1 + both(268.435456, 42.02496))
    # Roofline: 32.768 MFLOP at 1 TFLOP/s against 672,768 B at 100 GB/s.
    assert us(ROOF, "gemm", m=64, n=256, k=1000) == pytest.approx(32.768)
    assert us(ROOF, "gemm", m=1, n=1024, k=1024) == pytest.approx(21.01248)


def test_experts() -> None:
    # Three experts, 17, 0 and 5 tokens; hidden 64, inter 32, gated: 64 -> 2 * 32 -> 64.
    shape = {"hidden": 64, "inter": 32}
    # Blocks of 16 rows: 2 + 1 = 3; of 32 or more: 1 + 1 = 2. Columns: 64 / 64 = 1. All fit in one wave.
    # A step of 16 x 64 is 2048 FLOP: 16.384 ns (loads 160 B: 3.2 ns). Up: 64 steps = 1.048576 us; down: 32 = 0.524288.
    # Memory, up: weights 2 active * 64 * 64 + values 22 * (64 + 64), times 2 B = 22,016 B: 0.44032 us;
    # down: 2 * 64 * 32 + 22 * 96 = 6208 values: 12,416 B: 0.24832 us.
    products = both(1.048576, 0.44032) + both(0.524288, 0.24832)
    # Activation reads 64, writes 32, the sum reads 64 values per row: 22 * 160 * 2 B at 50 GB/s = 0.1408 us.
    assert us(TILE, "moe", tokens_per_expert=[17, 0, 5], **shape) == pytest.approx(1 + products + 0.1408)
    # The same 22 tokens on one expert: 2 blocks of 16 or 1 of 32, one wave either way; one expert's weights.
    one = both(1.048576, 0.27648) + both(0.524288, 0.1664)
    assert us(TILE, "moe", tokens_per_expert=[22, 0, 0], **shape) == pytest.approx(1 + one + 0.1408)
    # Plain experts: 64 -> 32 -> 64. Up: half the columns still take one tile; its memory is that of the down product.
    plain = both(1.048576, 0.24832) + both(0.524288, 0.24832)
    assert us(TILE, "moe", tokens_per_expert=[17, 0, 5], matrices=2, **shape) == pytest.approx(
        1 + plain + 22 * 128 * 2 / 50e3)
    # Half-byte weights: up reads 2 * 64 * 64 / 2 B + 5632 B = 9728 B, down 2048 + 4224 = 6272 B; unpacking takes twice
    # as long.
    narrow = 2 * (both(1.048576, 0.19456) + both(0.524288, 0.12544))
    assert us(TILE, "moe", tokens_per_expert=[17, 0, 5], weight_bytes=0.5, **shape) == pytest.approx(
        1 + narrow + 0.1408)
    # Roofline: 2 * 22 * 64 * 32 * 3 FLOP = 0.27 us; bytes 64 * (2 * 3 * 32 * 2 + 2 * 22 * 2) = 30,208 B = 0.30208 us.
    assert us(ROOF, "moe", tokens_per_expert=[17, 0, 5], **shape) == pytest.approx(0.30208)


def test_decode_attention() -> None:
    # 2 sequences, 300 tokens of context, 4 query heads on 2 key/value heads of width 64: 4 tiles of 3 blocks of 128.
    # A block loads 128 * 128 values = 32,768 B at 50 GB/s = 0.65536 us; its arithmetic, 64 rows:
    # 2 * 128 * 64 * 128 FLOP at 125 GFLOP/s = 16.777216 us: tiles take 3 * 16.777216. Memory: 2 * 300 * 256 * 2 B at
    # 50 GB/s = 6.144 us (one head of one sequence alone, at 25 GB/s: 3.072 us). More than one block: 1 us.
    shape = {"heads_q": 4, "heads_kv": 2, "head_dim": 64}
    assert us(TILE, "attention_decode", batch=2, kv_len=300, **shape) == pytest.approx(2 + both(3 * 16.777216, 6.144))
    # One sequence: 2 tiles for 4 multiprocessors, split in two parts of 2 and 1 blocks.
    assert us(TILE, "attention_decode", batch=1, kv_len=300, **shape) == pytest.approx(2 + both(2 * 16.777216, 3.072))
    # Roofline: 2 * 4 * 128 * 2 * 300 FLOP = 0.6144 us; (2 * 300 * 256 + 2 * 4 * 128) * 2 B = 309,248 B: 3.09248 us.
    assert us(ROOF, "attention_decode", batch=2, kv_len=300, **shape) == pytest.approx(3.09248)


def test_prefill_attention() -> None:
    # One sequence of 256 tokens, 2 heads of width 64: 2 tiles of 128 rows per head, seeing 128 and 256 columns: 192 on
    # average. 4 tiles on 4 multiprocessors: one wave, whose longest tile has 256 columns of 2 * 128 * 128 FLOP at
    # 125 GFLOP/s = 0.262144 us each: 67.108864 us. Memory: 256 * 4 * 128 * 2 B = 262,144 B at 50 GB/s = 5.24288 us.
    # Cache write: read and written, 2 * 256 * 2 * 128 * 2 B at 50 GB/s = 5.24288 us.
    shape = {"batch": 1, "heads_q": 2, "heads_kv": 2, "head_dim": 64}
    assert us(TILE, "attention_prefill", q_len=256, kv_len=256, **shape) == pytest.approx(
        1 + both(67.108864, 5.24288) + 5.24288)
    # 384 tokens: 6 tiles, mean 256, two waves (the second counted full, wave = 1): 1.5 * 256 + 0.5 * 384 = 576 columns.
    assert us(TILE, "attention_prefill", q_len=384, kv_len=384, **shape) == pytest.approx(
        1 + both(576 * 0.262144, 7.86432) + 7.86432)
    # Roofline: 2 * 2 * 128 * 256 * (256 - 127.5) FLOP = 16.842752 us.
    assert us(ROOF, "attention_prefill", q_len=256, kv_len=256, **shape) == pytest.approx(16.842752)


def test_elementwise_and_gate() -> None:
    assert us(TILE, "elementwise", bytes=1e6) == pytest.approx(1 + 20)
    assert us(ROOF, "elementwise", bytes=1e6) == pytest.approx(10)
    # The gate is a product of 64 x 256 with k = 1000, and a kernel that reads 64 * 256 logits and writes 2 values for
    # each of top_k = 4: 64 * 264 * 2 B at 50 GB/s = 0.67584 us.
    product = 1 + both(65.536, 13.45536)
    assert us(TILE, "gate", tokens=64, hidden=1000, experts=256, top_k=4) == pytest.approx(product + 1 + 0.67584)


def test_nothing_to_do_takes_no_time() -> None:
    idle = TILE.time_s("moe", tokens_per_expert=np.array([[0, 0], [0, 1]]), hidden=64, inter=32)
    assert idle[0] == 0 and idle[1] > 1e-6
    assert TILE.time_s("attention_decode", batch=0, kv_len=0, heads_q=4, heads_kv=2, head_dim=64) == 0
    assert TILE.time_s("gemm", m=[0, 1], n=64, k=64)[0] == 0
