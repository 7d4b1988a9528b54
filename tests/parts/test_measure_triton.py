"""Our Triton kernels against plain PyTorch, in Triton's interpreter on the CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

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
    tile = experts.Tiles(16, 64, 32) if kind == "zipf" else None
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


COMPILE = """
import warnings
warnings.simplefilter("ignore")  # Triton's own
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from moesim.measure.triton import decode, experts

POINTERS = {"copies": "*i32", "expert": "*i32", "used": "*i32", "lengths": "*i32", "sums": "*fp32", "tops": "*fp32",
            "parts": "*fp32"}
POINTERS |= dict.fromkeys(("x", "up", "act", "down", "share", "q", "keys", "values", "rows"), "*bf16")

def shared(kernel, out, warps=4, stages=3, **constants):
    types = POINTERS | {"out": out, "scale": "fp32"}
    names = {n: "constexpr" if n in constants else types.get(n, "i32") for n in kernel.arg_names}
    wide = {(i,): [["tt.divisibility", 16]] for i, n in enumerate(kernel.arg_names)
            if names[n].startswith("*") or n in ("hidden", "inter")}
    options = {"num_warps": warps, "num_stages": stages}
    return compile(ASTSource(kernel, names, constants, wide), target=GPUTarget("cuda", 90, 32), options=options
                   ).metadata.shared

sizes = []
for copies in (4, 32, 100, 1000):
    t = experts.tiles_for(copies)
    how = {"ROWS": t.rows, "INNER": t.inner, "warps": t.warps, "stages": t.stages}
    sizes.append(shared(experts._gate_up, "*bf16", COLUMNS=max(t.columns // 2, 32), **how))
    sizes.append(shared(experts._down, "*bf16", COLUMNS=t.columns, **how))
sizes.append(shared(experts._sum, "*bf16", COLUMNS=256))
for width in (64, 128):
    sizes.append(shared(decode._part, "*fp32", GROUP=8, ROWS=16, WIDTH=width, STEP=64))
    sizes.append(shared(decode._combine, "*bf16", GROUP=8, WIDTH=width))
print(max(sizes))
"""


@pytest.mark.slow
def test_kernels_compile_for_hopper_and_fit_its_shared_memory(tmp_path: Path) -> None:
    """Triton compiles for a GPU that is not there; a block may use 227 KB of shared memory (H100 and H200)."""
    variables = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    variables["TRITON_CACHE_DIR"] = str(tmp_path)
    (tmp_path / "compile_kernels.py").write_text(COMPILE)
    found = subprocess.run([sys.executable, str(tmp_path / "compile_kernels.py")], capture_output=True, text=True,
                           env=variables, check=False)
    assert found.returncode == 0, found.stderr
    assert 0 < int(found.stdout) <= 227 * 1024
