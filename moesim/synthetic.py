"""Synthetic routing with the statistics of real gates: skewed, correlated between layers and between tokens.

The logits of token t of request q at layer l are

    z[t, l, e] = b[l, e] + d[domain(q), l, e] + a * m[l, top1(t, l-1), e] + s * [e in S(t-1, l)] + Gumbel(0, 1)

and the K largest are chosen: b makes some experts popular, d makes domains differ, m couples a layer to the
top-1 choice of the one before, s lets a token repeat what the token before it used. b, d and m are normal with
standard deviations sigma_b, sigma_d and 1. The presets are calibrated to public traces of the two models. What it
gives is labelled: ``meta["synthetic"]`` is true.

Stored probabilities are the softmax of z with the Gumbel term: a gate chooses the largest of its own
probabilities, and the term stands for what the token's content adds to them. Without it they would be the
chance of being chosen, whose order need not be that of the choice. A gate without preferences (all parameters 0) makes
every choice of K experts as likely as any other: they are drawn as such, in any order, without probabilities.

>>> trace = SyntheticTrace(preset="gpt_oss_20b", requests=2, prompt_tokens=3, output_tokens=4, layers=2).generate()
>>> trace.n_tokens, trace.n_experts, trace.top_k, trace.meta["synthetic"]
(14, 32, 4, True)
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numba import njit
from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass

from moesim.registry import suggest
from moesim.trace import DECODE, PREFILL, RoutingTrace, TraceError

# A single-precision draw is now and then exactly 0, whose logarithm is not a logit: half the smallest step above.
_SMALLEST_DRAW = np.float32(2.0**-25)
_STRICT = ConfigDict(extra="forbid")
_AT_ONCE = 4096  # tokens whose logits are in memory together


@dataclass(frozen=True, config=_STRICT)
class GateParameters:
    """Say how skewed and how correlated the choices are.

    sigma_b   spread of the experts' popularity (logits)
    a         strength of the coupling to the top-1 expert of the layer before
    s         bonus of the experts that the request's previous token used
    sigma_d   spread of the popularity between domains
    domains   number of domains; request q belongs to domain q mod domains
    """

    sigma_b: float = Field(ge=0, allow_inf_nan=False)
    a: float = Field(ge=0, allow_inf_nan=False)
    s: float = Field(ge=0, allow_inf_nan=False)
    sigma_d: float = Field(ge=0, allow_inf_nan=False)
    domains: int = Field(default=8, ge=1)

    @property
    def prefers(self) -> bool:
        """Whether some experts are likelier than others for some tokens."""
        return any((self.sigma_b, self.a, self.s, self.sigma_d))


@dataclass(frozen=True, config=_STRICT)
class Preset:
    """Name the gate and the sizes of one real model."""

    parameters: GateParameters
    layers: int
    experts: int
    top_k: int


# Calibrated by random search to load max/mean, entropy, affinity, next top-1 hit and overlap of layers 4-13 of the
# public traces (docs/howto/get-routing-traces.md). One d per domain, not per request, keeps these statistics from
# moving with the number of requests. All five are met within 7 % at the models' own sizes (40 requests x 250
# tokens, 6 seeds); a test holds them within 10 %. Sizes: the models' config.json.
PRESETS = {
    "gpt_oss_20b": Preset(GateParameters(sigma_b=0.86, a=2.20, s=1.53, sigma_d=1.40, domains=10),
                          layers=24, experts=32, top_k=4),
    "dsv2_lite": Preset(GateParameters(sigma_b=0.78, a=2.60, s=0.48, sigma_d=1.96, domains=14),
                        layers=26, experts=64, top_k=6),
}

Lengths = int | tuple[int, ...]


@dataclass(frozen=True, config=_STRICT)
class SyntheticTrace:
    """Describe a synthetic trace: the gate (a *preset* or *parameters*), requests and their lengths, sizes, seed.

    prompt_tokens, output_tokens   tokens run in prefill and in decode, one number for all or one per request
    layers, experts, top_k         taken from the preset where left out
    ranked                         candidates that each token ranks, more than top_k: what ``cache.reroute`` looks at.
                                   The chosen ones are the same however many are ranked

    Raises ``ValueError`` if neither or both of preset and parameters are given, a size is missing or impossible,
    or lengths and requests do not agree.
    """

    preset: str | None = None
    parameters: GateParameters | None = None
    requests: int = Field(default=32, ge=1)
    prompt_tokens: Lengths = 128
    output_tokens: Lengths = 128
    layers: int | None = Field(default=None, ge=1)
    experts: int | None = Field(default=None, ge=1, le=1 << 16)
    top_k: int | None = Field(default=None, ge=1)
    ranked: int | None = Field(default=None, ge=1)
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _check(self) -> SyntheticTrace:
        self._resolved()
        lengths = self._lengths("prompt_tokens") + self._lengths("output_tokens")
        if lengths.min() < 1:
            raise TraceError(f"request {int(lengths.argmin())} has neither prompt nor output tokens")
        return self

    def generate(self) -> RoutingTrace:
        """Return the trace: all prompts in step 0, then every request decodes one token per step."""
        gate, layers, experts, top_k = self._resolved()
        prompt = self._lengths("prompt_tokens")
        lengths = prompt + self._lengths("output_tokens")
        rng = np.random.default_rng(self.seed)
        ranked = self.ranked or top_k
        chosen, probs = (_Gate(gate, (layers, experts, top_k), ranked, rng).run(lengths) if gate.prefers
                         else (_any(rng, (int(lengths.sum()), layers, ranked), experts), None))
        request = np.repeat(np.arange(self.requests), lengths)
        position = np.concatenate([np.arange(n) for n in lengths])
        return RoutingTrace.from_arrays(
            chosen, experts, top_k, request=request, position=position, probs=probs,
            phase=np.where(position < prompt[request], PREFILL, DECODE),
            domain=np.array([f"synthetic_{i}" for i in range(gate.domains)])[request % gate.domains],
            **self._meta(gate))

    def _resolved(self) -> tuple[GateParameters, int, int, int]:
        if (self.preset is None) == (self.parameters is None):
            raise TraceError("a synthetic trace needs either preset or parameters, not both and not neither; "
                             f"presets: {', '.join(PRESETS)}")
        sizes = {name: getattr(self, name) for name in ("layers", "experts", "top_k")}
        gate = self.parameters
        if self.preset is not None:
            if self.preset not in PRESETS:
                raise TraceError(f"unknown preset {self.preset!r}{suggest(self.preset, PRESETS)}")
            preset = PRESETS[self.preset]
            gate = preset.parameters
            sizes = {name: getattr(preset, name) if size is None else size for name, size in sizes.items()}
        missing = [name for name, size in sizes.items() if size is None]
        if missing or gate is None:
            raise TraceError(f"a synthetic trace with its own parameters needs {', '.join(missing)} too")
        if sizes["top_k"] > sizes["experts"]:
            raise TraceError(f"top_k is {sizes['top_k']} but there are {sizes['experts']} experts")
        if self.ranked is not None and not sizes["top_k"] <= self.ranked <= sizes["experts"]:
            raise TraceError(f"ranked is {self.ranked}; tokens use {sizes['top_k']} of {sizes['experts']} experts: "
                             f"give a number from the one to the other")
        return gate, sizes["layers"], sizes["experts"], sizes["top_k"]

    def _lengths(self, name: str) -> np.ndarray:
        lengths = getattr(self, name)
        if not isinstance(lengths, int) and len(lengths) != self.requests:
            raise TraceError(f"{name} has {len(lengths)} entries but there are {self.requests} requests")
        lengths = np.broadcast_to(lengths, self.requests)
        if lengths.min() < 0:
            raise TraceError(f"{name} of request {int(lengths.argmin())} is {lengths.min()}; a length is 0 or more")
        return lengths

    def _meta(self, gate: GateParameters) -> dict[str, Any]:
        return {"model": f"synthetic ({self.preset or 'own parameters'})", "origin": "moesim.synthetic",
                "renormalised": False, "synthetic": True,
                "generator": {"name": "gumbel_top_k" if gate.prefers else "uniform",
                              "seed": self.seed} | dataclasses.asdict(gate)}


class _Gate:
    """The drawn logits of one model; choices are made for all requests at once, position by position."""

    def __init__(self, gate: GateParameters, sizes: tuple[int, int, int], ranked: int,
                 rng: np.random.Generator) -> None:
        layers, experts, _ = sizes

        def normal(scale: float, *shape: int) -> np.ndarray:
            return np.float32(scale) * rng.standard_normal(shape, dtype=np.float32)

        self.sizes, self.ranked, self.rng = sizes, ranked, rng
        self.repeat, self.domains = np.float32(gate.s), gate.domains
        self.base = normal(gate.sigma_b, 1, layers, experts) + normal(gate.sigma_d, gate.domains, layers, experts)
        self.coupling = normal(gate.a, layers - 1, experts, experts)

    def run(self, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the ranked candidates uint16 and probabilities float16 [T, L, ranked], request after request."""
        chosen = np.empty((lengths.sum(), self.sizes[0], self.ranked), dtype=np.uint16)
        probs = np.empty(chosen.shape, dtype=np.float16)
        first = np.concatenate([[0], np.cumsum(lengths)[:-1]])
        if not self.coupling.any() and not self.repeat:  # nothing depends on the token before: all at once
            for some in np.array_split(np.arange(lengths.sum()), -(-lengths.sum() // _AT_ONCE)):
                chosen[some], probs[some] = self._token(np.repeat(np.arange(len(lengths)), lengths)[some]
                                                        % self.domains, None)
            return chosen, probs
        longest_first = np.argsort(-lengths, kind="stable")
        for position in range(lengths.max()):
            active = longest_first[:np.count_nonzero(lengths > position)]
            rows = first[active] + position
            before = chosen[rows - 1] if position else None
            chosen[rows], probs[rows] = self._token(active % self.domains, before)
        return chosen, probs

    def _token(self, domain: np.ndarray, before: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """Return what one token of each request ranks at every layer, given what the *before* ones ranked."""
        layers, experts, top_k = self.sizes
        chosen = np.empty((len(domain), layers, self.ranked), dtype=np.uint16)
        probs = np.empty(chosen.shape, dtype=np.float16)
        every = np.arange(len(domain))[:, None]
        for layer in range(layers):
            z = self.base[domain, layer]
            draw = self.rng.standard_exponential(z.shape, dtype=np.float32)
            z -= np.log(np.maximum(draw, _SMALLEST_DRAW))  # + Gumbel(0, 1)
            if layer:
                z += self.coupling[layer - 1, chosen[:, layer - 1, 0]]
            if before is not None:
                z[every, before[:, layer, :top_k]] += self.repeat
            best = np.argpartition(z, experts - self.ranked, axis=1)[:, experts - self.ranked:]
            best = best[every, np.argsort(-z[every, best], axis=1)]
            weights = np.exp(z - z.max(axis=1, keepdims=True))
            chosen[:, layer] = best
            probs[:, layer] = weights[every, best] / weights.sum(axis=1, keepdims=True)
        return chosen, probs


def _any(rng: np.random.Generator, shape: tuple[int, int, int], experts: int) -> np.ndarray:
    """Return any K of *experts*, all different and in any order, for every token and layer: uint16 *shape*, [T, L, K].

    A shuffle of all experts that stops after K (Fisher and Yates): the i-th choice is one of the places that are left,
    and the last of these moves to where it was. Only the places are kept: what lies in one is followed back.
    """
    places = np.stack([rng.integers(experts - i, size=shape[:2], dtype=np.uint16) for i in range(shape[2])], axis=-1)
    _follow_back(places.reshape(-1, shape[2]), experts, chosen := np.empty(shape, np.uint16))
    return chosen


@njit(cache=True)
def _follow_back(places, experts, chosen):  # type: ignore[no-untyped-def]
    """Fill *chosen* [T, L, K] with what lies in the *places* [T x L, K] of each token and layer."""
    flat = chosen.reshape(places.shape)
    for t in range(len(places)):
        for i in range(places.shape[1]):
            place = places[t, i]
            for j in range(i - 1, -1, -1):
                if place == places[t, j]:
                    place = experts - 1 - j
            flat[t, i] = place
