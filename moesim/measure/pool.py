"""Buffers without waiting for them: views into one block of random-normal numbers, apart from each other.

Values are normal because a GPU draws less power, and clocks higher, on zeros and constants than on what a model holds.

>>> import torch
>>> pool = Pool("cpu", torch.float32)
>>> _, (first, second) = pool.sets([(2, 3), (4,)], count=2)
>>> [tuple(t.shape) for t in first], first[0].data_ptr() == second[0].data_ptr()
([(2, 3), (4,)], False)
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

Shapes = Sequence[tuple[int, ...]]

ALIGN = 256     # bytes at which every buffer begins, as allocators of both kinds of device have it
SCALE = 0.05    # standard deviation: products of a few thousand terms stay near 1, as in a trained model
DRAWN = 1 << 22  # values that are drawn; a block longer than that repeats them
MOST = 512      # copies of a buffer: enough for 256 MB of the smallest products worth a ring


class Pool:
    """Random numbers on one device, in one dtype; grows to what is asked for, and never gives the same bytes twice."""

    def __init__(self, device: str, dtype: torch.dtype, seed: int = 0):
        self._device, self._dtype = device, dtype
        random = torch.Generator(device).manual_seed(seed)
        self._drawn = torch.empty(DRAWN, dtype=dtype, device=device).normal_(0.0, SCALE, generator=random)
        self._block = torch.empty(0, dtype=dtype, device=device)

    def sets(self, shapes: Shapes, count: int, shared: Shapes = ()) -> tuple[list[Tensor], list[list[Tensor]]]:
        """Return tensors of the *shared* shapes, and *count* sets of *shapes*; no two tensors share memory."""
        wanted = [*shared, *(shape for _ in range(count) for shape in shapes)]
        self._grow(sum(map(self._step, wanted)))
        tensors, at = [], 0
        for shape in wanted:
            tensors.append(self._block[at : at + prod(shape)].view(shape))
            at += self._step(shape)
        once, again, width = tensors[: len(shared)], tensors[len(shared) :], len(shapes)
        return once, [again[i * width : (i + 1) * width] for i in range(count)]

    def ring(self, shapes: Shapes, ring_bytes: float, shared: Shapes = ()) -> tuple[list[Tensor], list[list[Tensor]]]:
        """Return the same with as many sets as fill *ring_bytes*, at least one and at most ``MOST``."""
        size = sum(prod(shape) for shape in shapes) * self._dtype.itemsize
        return self.sets(shapes, int(min(max(-(-ring_bytes // max(size, 1)), 1), MOST)), shared)

    def clear(self) -> None:
        """Give the memory back; what was handed out keeps its own."""
        self._block = torch.empty(0, dtype=self._dtype, device=self._device)

    def _step(self, shape: tuple[int, ...]) -> int:
        """Return the values from the beginning of a tensor of *shape* to that of the next."""
        return -(-prod(shape) * self._dtype.itemsize // ALIGN) * ALIGN // self._dtype.itemsize

    def _grow(self, values: int) -> None:
        """Make the block hold *values*: the same draws again and again, which is as random to a kernel."""
        have = self._block.numel()
        if values <= have:
            return
        self._block = torch.empty(0, dtype=self._dtype, device=self._device)  # frees the old one first
        block = torch.empty(max(values, min(2 * have, DRAWN)), dtype=self._dtype, device=self._device)
        first = self._drawn[: block.numel()]
        for at in range(0, block.numel(), first.numel()):
            size = min(first.numel(), block.numel() - at)
            block[at : at + size] = first[:size]
        self._block = block
