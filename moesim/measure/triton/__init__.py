"""Our Triton kernels. Triton may be absent: then modules import, and calling a kernel says what to install.

With ``TRITON_INTERPRET=1`` in the environment before the first import, kernels run on CPU tensors (tests do that).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

try:
    import triton as _triton
    import triton.language as tl
except ModuleNotFoundError:
    _triton = tl = None


def jit(function: Callable[..., Any]) -> Any:
    """Compile *function* with Triton, or leave it as it is where there is no Triton."""
    return _triton.jit(function) if _triton is not None else function


def available() -> bool:
    """Tell whether Triton is installed."""
    return _triton is not None


def need() -> None:
    """Raise ``ModuleNotFoundError`` if Triton is not installed."""
    if not available():
        raise ModuleNotFoundError("Triton is not installed; pip install triton (a CUDA PyTorch brings it along)")


def ceil_div(a: int, b: int) -> int:
    """Return the smallest whole number that is at least *a* / *b*."""
    return -(-a // b)


__all__ = ["available", "ceil_div", "jit", "need", "tl"]
