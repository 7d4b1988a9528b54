"""Tokens per second of systems that offload experts, from hits, bytes and rates: arithmetic, no machine.

A token takes ``rest_s``, and ``miss_s`` for each expert that it uses and that is not near: a copy, or a computation on
the host. What is published, what is assumed and what is solved for stands beside each number.
"""

from __future__ import annotations

import dataclasses

import pandas as pd
import setting

from moesim.memory import events_of, replay
from moesim.memory.dma import Copy, Engine, run

PCIE3, PCIE4 = 15.75e9, 31.5e9  # bytes/s of 16 lanes, PCI Express base specifications 3.0 and 4.0, after 128b/130b

# Mixtral-offloading (arXiv 2312.17238), tokens/s of Mixtral-8x7B on a T4, experts of 2 to 3 bits, four of eight
# experts of a layer near: all of it, no prefetching, no cache either, naive offloading of layers
T4 = {"full": 2.092, "cache": 1.567, "neither": 1.168, "naive": 0.661}
SEEN_AHEAD = 0.84  # one layer ahead, next gate on this layer's input, Mixtral: DAOP (arXiv 2501.10375)
SCALES_BITS = 0.5  # scale and zero of every 64 weights, 16 bits each: assumed
# MoE-Infinity (arXiv 2401.14361), its repository's table: seconds per token on an A5000, 24 GB, PCIe 4.0
A5000 = {("MoE-Infinity", "mixtral-8x7b"): 0.735, ("DeepSpeed", "mixtral-8x7b"): 2.486,
         ("Accelerate", "mixtral-8x7b"): 6.633, ("MoE-Infinity", "deepseek-v2-lite"): 0.155}
A5000_EXPERTS = 0.75 * 24e9  # the same repository's example: 75 % of the memory
ATTAINED = 0.8 * PCIE4  # assumed
# Fiddler (arXiv 2402.07033): GPU -> experts of 256 that are near, times Mixtral-offloading's speed; one expert's copy
FIDDLER = {"Quadro RTX 6000": (56, 8.2), "L4": (52, 10.1)}
FIDDLER_COPY_S, FIDDLER_TOKENS_PER_S = 50e-3, 3.0  # "about", "over"
HOST_S = {"Fiddler": 3e-3, "llama.cpp": 5e-3}  # one expert of Mixtral, fp16, one token: HOBBIT (arXiv 2411.01433)
# KTransformers (SOSP 2025): DeepSeek-V3, A100 and two Xeon 8452Y; bytes/s of a socket's own and of the other's memory
KT_TOKENS_PER_S, KT_LOCAL, KT_REMOTE, KT_NUMA = 5.87, 220e9, 125e9, 1.63
KT_BUSY = {"cpu": (0.74, 1.00), "gpu": (0.28, 0.37)}  # before and with deferral of experts to the next layer


@dataclasses.dataclass(frozen=True)
class Offloaded:
    """Say what a token costs: *uses* of experts, of which *missing* are not near, *miss_s* each, and *rest_s*."""

    uses: int
    missing: float
    miss_s: float
    rest_s: float = 0.0

    @property
    def token_s(self) -> float:
        """Return the seconds of a token."""
        return self.rest_s + self.uses * self.missing * self.miss_s

    def with_missing(self, missing: float) -> Offloaded:
        """Return the same with another share of misses."""
        return dataclasses.replace(self, missing=missing)


def uses(name: str) -> int:
    """Return how many experts a token of a model uses, over all layers."""
    model = setting.model(name)
    return model.n_moe_layers * model.top_k


def copy_s(size: float, rate: float) -> float:
    """Return the seconds that a copy engine of *rate* bytes/s needs for *size* bytes."""
    return float(run([Copy(size, ("link",))], {"link": Engine(rate)}).copies["finish_s"].iloc[0])


def mixtral_offloading(hits: float) -> Offloaded:
    """Return a token on the T4 without a prefetcher: from what the cache saved, if it hits the share *hits*."""
    each = (1 / T4["neither"] - 1 / T4["cache"]) / (uses("mixtral-8x7b") * hits)
    return Offloaded(uses("mixtral-8x7b"), 1 - hits, each, 1 / T4["neither"] - uses("mixtral-8x7b") * each)


def mixtral_hits(capacity: int = 4) -> float:
    """Return what LRU hits with room for *capacity* of the eight experts of a layer."""
    return replay(events_of(setting.mixtral()), "lru", capacity).hit_ratio


def moe_infinity(name: str, rate: float = ATTAINED) -> Offloaded:
    """Return a token on the A5000 if what is near is used as often as what is not, and copies are all that takes time.

    Weights in 16 bits are assumed; the table does not say.
    """
    model = setting.model(name)
    near = min(A5000_EXPERTS / (model.n_moe_layers * model.n_experts * model.expert_bytes), 1.0)
    return Offloaded(uses(name), 1 - near, copy_s(model.expert_bytes, rate))


def layerwise_s(rate: float) -> float:
    """Return the least seconds of a token of Mixtral on the A5000 if all experts that are not near are copied."""
    model = setting.model("mixtral-8x7b")
    return copy_s(model.n_moe_layers * model.n_experts * model.expert_bytes - A5000_EXPERTS, rate)


def fiddler(gpu: str) -> tuple[Offloaded, Offloaded]:
    """Return a token whose misses are copied, and one whose misses the host computes, by the published speed-up."""
    near, gain = FIDDLER[gpu]
    copied = Offloaded(uses("mixtral-8x7b"), 1 - near / 256, FIDDLER_COPY_S)
    return copied, dataclasses.replace(copied, miss_s=FIDDLER_COPY_S / gain)


def lines() -> pd.DataFrame:
    """Return tokens/s by the share of expert uses that miss, for every way to serve a miss (Mixtral, one request)."""
    t4, size = mixtral_offloading(mixtral_hits()), setting.model("mixtral-8x7b").expert_bytes
    each = {"copy, 2-3 bits, T4": t4, "copy, 16 bits, 50 ms (Fiddler's machines)": fiddler("L4")[0],
            "copy, 16 bits, PCIe 4.0 at 80 %": Offloaded(t4.uses, 1.0, copy_s(size, ATTAINED)),
            "host, RTX 6000's, from the speed-up": fiddler("Quadro RTX 6000")[1],
            "host, 3 ms (HOBBIT's machine)": Offloaded(t4.uses, 1.0, HOST_S["Fiddler"])}
    return pd.DataFrame([{"miss": name, "missing": missing, "tokens_per_s": 1 / cost.with_missing(missing).token_s}
                         for name, cost in each.items() for missing in [i / 50 for i in range(1, 51)]])


def points() -> pd.DataFrame:
    """Return published tokens/s at the share of misses that is assumed or replayed for them."""
    hits = mixtral_hits()
    rows = [("Mixtral-offloading, no cache", 1.0, T4["neither"]), ("LRU, 4 of 8", 1 - hits, T4["cache"]),
            ("and prefetching", (1 - hits) * (1 - SEEN_AHEAD), T4["full"]),
            ("MoE-Infinity", moe_infinity("mixtral-8x7b").missing, 1 / A5000["MoE-Infinity", "mixtral-8x7b"]),
            ("Fiddler: over 3", 1 - FIDDLER["Quadro RTX 6000"][0] / 256, FIDDLER_TOKENS_PER_S)]
    return pd.DataFrame(rows, columns=["system", "missing", "tokens_per_s"])


def sensitivity() -> pd.DataFrame:
    """Return Mixtral-offloading's tokens/s with prefetching by what its cache hits: replayed, and from 40 to 60 %."""
    chosen = mixtral_hits()
    rows = []
    for hits in (0.4, chosen, 0.6):
        cost = mixtral_offloading(hits)
        found = cost.with_missing(cost.missing * (1 - SEEN_AHEAD))
        rows.append({"hits": hits, "chosen": hits == chosen, "tokens_per_s": 1 / found.token_s})
    return pd.DataFrame(rows)
