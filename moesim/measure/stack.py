"""A stack of Mixture-of-Experts layers in plain PyTorch, run as an inference engine runs it: the thing to predict.

One step takes whole prompts, decoding sequences, or both: norm, projections, attention, norm, gate and experts in every
layer; then a last norm and the output head on the last token of each sequence. Sizes come from a ``ModelSpec``, so that
the simulator prices what runs here. Weights and caches are random.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from moesim.attention import GroupedQuery
from moesim.measure import engines, layers, routing
from moesim.measure.shapes import Heads
from moesim.measure.target import Target
from moesim.model import ModelSpec

KIT = {"cpu": ("expert_loop", "rope_cache_sdpa"), "cuda": ("triton_fused", "rope_cache_triton")}  # experts, decode


Cache = list[list[tuple[Tensor, Tensor]]]                    # of every layer, of every prompt and of decoding
Experts = Callable[[int, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Step:
    """What one step runs: lengths of whole prompts, and of decoding sequences with their new token.

    ``chunk``: of the prompts, only the last so many positions are new (0: all are).
    """

    prompts: tuple[int, ...] = ()
    contexts: tuple[int, ...] = ()
    chunk: int = 0

    @property
    def new(self) -> tuple[int, ...]:
        """New positions of each prompt."""
        return tuple(min(self.chunk or p, p) for p in self.prompts)

    @property
    def tokens(self) -> int:
        """Tokens that go through the layers."""
        return sum(self.new) + len(self.contexts)


class Stack:
    """The layers of *model*, with random weights, on *target*.

    Raises ``ValueError`` for a model that this stack cannot run: latent attention, windows, layers without experts.
    """

    def __init__(self, model: ModelSpec, target: Target, seed: int = 0):
        self.heads = _checked(model)
        self.model, self.target = model, target
        self._random = torch.Generator(target.kind).manual_seed(seed)
        h, e, inter = model.hidden, model.n_experts, model.expert_gemms()[1].k
        self.layers = [{
            "qkv": self._normal(self.heads.all_widths, h),
            "out": self._normal(h, self.heads.queries * self.heads.width),
            "gate": self._normal(e, h), "up": self._normal(e, 2 * inter, h), "down": self._normal(e, h, inter),
        } for _ in range(model.layers)]
        self._norm = torch.ones(h, dtype=target.torch_dtype, device=target.kind)
        self.head = self._normal(model.vocabulary, h)
        self._experts, self.capture = engines.experts(KIT[target.kind][0])
        self.skew(0.0)

    def _normal(self, *shape: int) -> Tensor:
        """Return weights that keep the size of what they multiply: variance 1 / inputs."""
        empty = torch.empty(shape, dtype=self.target.torch_dtype, device=self.target.kind)
        return empty.normal_(0.0, shape[-1] ** -0.5, generator=self._random)

    def skew(self, exponent: float) -> None:
        """Make the r-th expert of every layer r ** -*exponent* as popular, by a bias of the gate's logits."""
        rng = np.random.default_rng(0)
        for weights in self.layers:
            bias = -exponent * np.log(1 + rng.permutation(self.model.n_experts))
            weights["bias"] = torch.tensor(bias, dtype=self.target.torch_dtype, device=self.target.kind)

    def follow(self, shares: np.ndarray) -> None:
        """Make experts about as popular as *shares* [layers, experts] of a trace says, by a bias of the gate's logits.

        Layers beyond the trace's begin with its first again. With another number of experts, popularities are read off
        the trace's sorted ones at even steps.
        """
        rng, wanted = np.random.default_rng(0), self.model.n_experts
        for layer, weights in enumerate(self.layers):
            known = np.sort(np.maximum(shares[layer % len(shares)], 1e-6))
            at = (np.arange(wanted) + 0.5) / wanted * len(known) - 0.5
            bias = rng.permutation(np.log(np.interp(at, np.arange(len(known)), known)))
            weights["bias"] = torch.tensor(bias, dtype=self.target.torch_dtype, device=self.target.kind)

    def hidden(self, step: Step) -> Tensor:
        """Return new random hidden states for the tokens of *step*, prompts first: [T, H]."""
        shape = (step.tokens, self.model.hidden)
        empty = torch.empty(shape, dtype=self.target.torch_dtype, device=self.target.kind)
        return empty.normal_(0.0, 1.0, generator=self._random)

    def cache(self, step: Step) -> Cache:
        """Return the cached keys and values of *step*: for every layer one pair per prompt, then that of decoding."""
        sizes = [(1, p) for p in step.prompts] + ([(len(step.contexts), max(step.contexts))] if step.contexts else [])
        shapes = [(b, self.heads.keys, s, self.heads.width) for b, s in sizes]
        return [[(self._normal(*shape), self._normal(*shape)) for shape in shapes] for _ in self.layers]

    def runner(self, step: Step, cache: Cache, experts: Experts | None = None) -> Callable[..., Tensor]:
        """Return the function that runs *step*: hidden states [T, H] to logits [sequences, vocabulary].

        If it is given a list too, it appends the experts [T, K] of every layer. *experts* (default: those of the
        stack) is a function of the layer's number, hidden states, shares and chosen experts.
        """
        experts = experts or self._resident
        device, width, dtype = self.target.kind, self.heads.width, self.target.torch_dtype
        attends = [self._prompt(p, n) for p, n in zip(step.prompts, step.new, strict=True)]
        sizes = [*step.new]
        if step.contexts:
            last = torch.tensor(step.contexts, device=device) - 1
            angles = layers.rotation(last, width, dtype)
            decode = engines.decode(KIT[device][1], step.contexts, device)
            attends.append(lambda qkv, pair: decode(qkv, pair, self.heads, angles))
            sizes.append(len(step.contexts))
        ends = np.cumsum(step.new, dtype=np.int64) - 1
        sampled = torch.tensor([*ends, *range(sum(step.new), step.tokens)], dtype=torch.int64, device=device)

        def run(hidden: Tensor, routed: list[Tensor] | None = None) -> Tensor:
            residual, block = hidden, torch.zeros_like(hidden)
            for layer, (weights, pairs) in enumerate(zip(self.layers, cache, strict=True)):
                residual, normed = layers.add_norm(residual, block, self._norm)
                parts = F.linear(normed, weights["qkv"]).split(sizes)
                mixed = [attend(part, pair) for attend, part, pair in zip(attends, parts, pairs, strict=True)]
                block = F.linear(mixed[0] if len(mixed) == 1 else torch.cat(mixed), weights["out"])
                residual, normed = layers.add_norm(residual, block, self._norm)
                share, ids = layers.gate(normed, weights["gate"], self.model.top_k, weights["bias"])
                if routed is not None:
                    routed.append(ids)
                block = experts(layer, normed, share, ids)
            _, normed = layers.add_norm(residual, block, self._norm)
            return F.linear(normed[sampled], self.head)

        return run

    def _resident(self, layer: int, normed: Tensor, share: Tensor, ids: Tensor) -> Tensor:
        return self._experts(normed, share, ids, self.layers[layer]["up"], self.layers[layer]["down"])

    def _prompt(self, length: int, new: int) -> Callable[[Tensor, tuple[Tensor, Tensor]], Tensor]:
        positions = torch.arange(length - new, length, device=self.target.kind)
        angles = layers.rotation(positions, self.heads.width, self.target.torch_dtype)
        return lambda qkv, pair: layers.attend_prefill(qkv, pair, self.heads, length - new, angles)

    def routed(self, step: Step, cache: Cache, hidden: Tensor) -> np.ndarray:
        """Return the experts that the tokens of *step* choose: int64 [T, layers, K]."""
        found: list[Tensor] = []
        self.runner(step, cache)(hidden, found)
        return np.stack([ids.cpu().numpy() for ids in found], axis=1)

    def loads(self, ids: np.ndarray) -> list[list[int]]:
        """Return the tokens of each expert of every layer, from the experts [T, layers, K] of a step."""
        return [routing.counts(ids[:, layer], self.model.n_experts).tolist() for layer in range(ids.shape[1])]


def _checked(model: ModelSpec) -> Heads:
    attention = model.attention
    facts = [fact for wrong, fact in (
        (not isinstance(attention, GroupedQuery), "latent attention"),
        (isinstance(attention, GroupedQuery) and attention.window is not None, "attention windows"),
        (model.n_moe_layers != model.layers, "layers without experts"),
        (len(set(model.experts_per_layer.tolist())) > 1, "layers of different sizes"),
        (bool(model.shared_gemms()), "shared experts"), (not model.gated_ffn, "experts without a gate matrix"),
        (model.moe is not None and (model.moe.bias or model.moe.gate_bias), "biases")) if wrong]
    if facts or not isinstance(attention, GroupedQuery):
        raise ValueError(f"model {model.name}: a layer stack cannot run {', '.join(facts)}; take another model")
    return Heads(attention.heads, attention.kv_heads, attention.head_dim)
