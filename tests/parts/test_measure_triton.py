"""Our Triton kernels against plain PyTorch, in Triton's interpreter on the CPU."""

from __future__ import annotations

import os

import numpy as np
import pytest

torch = pytest.importorskip("torch")
if "TRITON_INTERPRET" not in os.environ:  # read when a kernel is defined, so before the modules are imported
    os.environ["TRITON_INTERPRET"] = "1"
pytest.importorskip("triton", reason="Triton is not installed; its kernels cannot be interpreted")

from moesim.measure import layers, routing  # noqa: E402
from moesim.measure.triton import decode, experts  # noqa: E402


def close(found: torch.Tensor, wanted: torch.Tensor, dtype: torch.dtype) -> None:
    tolerance = {torch.float32: 1e-5, torch.float16: 2e-3}[dtype]
    torch.testing.assert_close(found.float(), wanted.float(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("kind", routing.KINDS)
@pytest.mark.parametrize(("tokens", "n_experts", "top_k", "hidden", "inter"), [
    (1, 4, 2, 64, 32),      # fewer copies than experts
    (13, 8, 3, 96, 40),     # no size is a multiple of a tile
    (40, 3, 1, 64, 64),     # several blocks of an expert
])
def test_fused_experts(kind: str, tokens: int, n_experts: int, top_k: int, hidden: int, inter: int) -> None:
    random = torch.Generator().manual_seed(0)
    ids = torch.from_numpy(routing.choose(kind, tokens, n_experts, top_k, np.random.default_rng(1)))
    x = torch.randn(tokens, hidden, generator=random)
    share = torch.rand(tokens, top_k, generator=random)
    up = torch.randn(n_experts, 2 * inter, hidden, generator=random) * hidden**-0.5
    down = torch.randn(n_experts, hidden, inter, generator=random) * inter**-0.5
    wanted = layers.experts_loop(x, share, ids, up, down)
    for tile in (experts.Tiles(16, 64, 32), None):
        close(experts.experts_fused(x, share, ids, up, down, tile), wanted, torch.float32)


def test_fused_experts_in_half_precision() -> None:
    random = torch.Generator().manual_seed(0)
    ids = torch.tensor([[0, 2], [2, 1], [2, 0]])
    given = [torch.randn(*shape, generator=random).mul(scale).half() for shape, scale in (
        ((3, 64), 1.0), ((3, 2), 0.5), ((3, 64, 64), 0.125), ((3, 64, 32), 0.17))]
    x, share, up, down = given
    wanted = layers.experts_loop(x.float(), share.float(), ids, up.float(), down.float())
    close(experts.experts_fused(x, share, ids, up, down), wanted, torch.float16)


def test_align_puts_one_expert_in_a_block() -> None:
    # experts of four tokens, two each: expert 0 has copies 0, 3, 4; expert 2 has 1, 5, 6, 7; expert 3 has 2
    aligned = experts.align(torch.tensor([[0, 2], [3, 0], [0, 2], [2, 2]]), experts=4, rows=2)
    assert aligned.copies[: int(aligned.used)].tolist() == [0, 3, 4, 8, 1, 5, 6, 7, 2, 8]  # 8: padding
    assert aligned.expert[: int(aligned.used) // 2].tolist() == [0, 0, 2, 2, 3]
    assert len(aligned.copies) >= int(aligned.used)


@pytest.mark.parametrize(("heads", "key_heads", "lengths"), [
    (4, 4, [5]),                    # one block
    (8, 2, [70, 70, 70]),           # grouped, over a block's end
    (4, 1, [1, 130, 64, 33]),       # uneven
    (32, 1, [17, 3]),               # more heads in a group than rows of the smallest tile
])
@pytest.mark.parametrize("part", [64, 512])
def test_split_decode(heads: int, key_heads: int, lengths: list[int], part: int,
                      monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "PART", part)  # 64: sequences of several parts
    random = torch.Generator().manual_seed(0)
    room = max(lengths) + 3
    q = torch.randn(len(lengths), heads, 32, generator=random)
    keys, values = torch.randn(2, len(lengths), key_heads, room, 32, generator=random)
    found = decode.decode_split(q, keys, values, torch.tensor(lengths, dtype=torch.int32), max(lengths))
    close(found, layers.decode_sdpa(q, keys, values, lengths), torch.float32)


def test_kernels_refuse_what_they_cannot_take() -> None:
    q, cache = torch.zeros(1, 2, 24), torch.zeros(1, 1, 4, 24)
    with pytest.raises(ValueError, match="24 wide; this kernel takes powers of two"):
        decode.decode_split(q, cache, cache, torch.ones(1, dtype=torch.int32), 1)
    q, cache = torch.zeros(1, 2, 32), torch.zeros(1, 1, 32, 4).mT
    with pytest.raises(ValueError, match="cache is not contiguous"):
        decode.decode_split(q, cache, cache, torch.ones(1, dtype=torch.int32), 1)
    up = torch.zeros(2, 16, 8).mT
    with pytest.raises(ValueError, match="up is not contiguous"):
        experts.experts_fused(torch.zeros(1, 16), torch.ones(1, 1), torch.zeros(1, 1, dtype=torch.int64), up, up)
