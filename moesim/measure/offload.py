"""Experts kept on the host, and a cache of slots on the device with the least recently used one going first.

On a GPU the host's copies are pinned and come by the copy engine, on a stream of its own if they are fetched ahead. On
a CPU both are the same memory: a fetch is a memcpy, so that the arithmetic of the cache is the same, and no link is.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor

from moesim.measure import layers
from moesim.measure.stack import Stack, Step

Host = list[tuple[Tensor, Tensor]]  # of every layer: up [E, 2 I, H] and down [E, H, I]


class ExpertCache:
    """Slots for *slots* experts of a *stack*, whose weights are on the *host* (``to_host``).

    ``hits``, ``misses``, ``moved_bytes`` count from the last ``reset``. Raises ``ValueError`` for fewer slots than
    experts in a layer: one layer of a large batch needs them all at once.
    """

    def __init__(self, stack: Stack, host: Host, slots: int):
        experts, device = stack.model.n_experts, stack.target.kind
        if slots < experts:
            raise ValueError(f"{slots} slots for layers of {experts} experts; a layer may need all of them at once")
        self._host = host
        up, down = host[0]
        self._up = torch.empty(slots, *up.shape[1:], dtype=up.dtype, device=device)
        self._down = torch.empty(slots, *down.shape[1:], dtype=down.dtype, device=device)
        self._slot: OrderedDict[tuple[int, int], int] = OrderedDict()  # (layer, expert), least recently used first
        self._free = list(range(slots))
        self._bytes = float((up[0].numel() + down[0].numel()) * up.element_size())
        self._stream = torch.cuda.Stream() if device == "cuda" else None
        self.reset()

    def reset(self) -> None:
        """Count from here."""
        self.hits = self.misses = 0
        self.moved_bytes = 0.0

    def need(self, layer: int, experts: list[int]) -> list[int]:
        """Return the slots of *experts* of *layer*, all of them filled; count hits and misses."""
        hits = sum((layer, e) in self._slot for e in experts)
        self.hits, self.misses = self.hits + hits, self.misses + len(experts) - hits
        if self._stream is not None:
            torch.cuda.current_stream().wait_stream(self._stream)  # what was fetched ahead may be under way
        slots = self._fetch(layer, experts)
        return slots

    def ahead(self, layer: int, experts: list[int]) -> None:
        """Begin to fetch *experts* of *layer*, on a stream of its own where there is one."""
        if self._stream is None:
            self._fetch(layer, experts)
            return
        self._stream.wait_stream(torch.cuda.current_stream())  # a slot may still be read by kernels that were started
        with torch.cuda.stream(self._stream):
            self._fetch(layer, experts)

    def _fetch(self, layer: int, experts: list[int]) -> list[int]:
        for expert in experts:  # touch what is there first, or it might go out for what is not
            if (layer, expert) in self._slot:
                self._slot.move_to_end((layer, expert))
        return [self._place(layer, expert) for expert in experts]

    def _place(self, layer: int, expert: int) -> int:
        if (layer, expert) in self._slot:
            return self._slot[layer, expert]
        slot = self._free.pop() if self._free else self._slot.popitem(last=False)[1]
        self._slot[layer, expert] = slot
        up, down = self._host[layer]
        self._up[slot].copy_(up[expert], non_blocking=True)
        self._down[slot].copy_(down[expert], non_blocking=True)
        self.moved_bytes += self._bytes
        return slot

    def run(self, layer: int, hidden: Tensor, share: Tensor, ids: Tensor) -> Tensor:
        """Return the weighted sum [T, H] of the experts that *ids* [T, K] name, fetched if they have to be."""
        rows, order, counts = layers.permute(hidden, ids, len(self._host[layer][0]))
        tokens = {expert: count for expert, count in enumerate(counts.tolist()) if count}
        slots = self.need(layer, list(tokens))
        parts, at = [], 0
        for slot, count in zip(slots, tokens.values(), strict=True):
            first, second = torch.nn.functional.linear(rows[at : at + count], self._up[slot]).chunk(2, -1)
            parts.append(torch.nn.functional.linear(torch.nn.functional.silu(first) * second, self._down[slot]))
            at += count
        return layers.unpermute(torch.cat(parts), share, order)


class OffloadedStack:
    """A stack whose experts come from an ``ExpertCache`` with room for the share *resident* of them.

    ``prefetch``: while a layer computes its experts, those that the next layer's gate would choose for the same hidden
    states are fetched (the usual guess: hidden states change little from layer to layer).
    """

    def __init__(self, stack: Stack, host: Host, resident: float, prefetch: bool):
        slots = round(resident * stack.model.n_experts * stack.model.layers)
        self._stack, self._prefetch = stack, prefetch
        self.cache = ExpertCache(stack, host, slots)

    def runner(self, step: Step, cache: Any) -> Any:
        """Return the function that runs *step*, as ``Stack.runner``."""
        return self._stack.runner(step, cache, self._experts)

    def _experts(self, layer: int, normed: Tensor, share: Tensor, ids: Tensor) -> Tensor:
        if self._prefetch and layer + 1 < len(self._stack.layers):
            following = self._stack.layers[layer + 1]
            _, guess = layers.gate(normed, following["gate"], self._stack.model.top_k, following["bias"])
            slots = self.cache.run(layer, normed, share, ids)
            self.cache.ahead(layer + 1, guess.unique().tolist())
            return slots
        return self.cache.run(layer, normed, share, ids)


def to_host(stack: Stack) -> Host:
    """Move the expert weights of *stack* to the host, layer by layer: the device keeps none of them."""
    found = []
    for weights in stack.layers:
        found.append((_on_host(weights["up"]), _on_host(weights["down"])))
        weights["up"] = weights["down"] = torch.empty(0)
    return found


def _on_host(weights: Tensor) -> Tensor:
    """Return a copy in pinned host memory; on a CPU the weights themselves."""
    if weights.device.type == "cpu":
        return weights
    return torch.empty(weights.shape, dtype=weights.dtype, pin_memory=True).copy_(weights)
