"""Machines, the model and every number that is taken from elsewhere: what the study is given."""

from __future__ import annotations

import dataclasses
from functools import cache

from moesim import config
from moesim.hardware import HardwareSpec
from moesim.memory.chain import Chain
from moesim.memory.composition import Node, Switch
from moesim.model import ModelSpec

PAPER = "SN40L"  # Prabhakar et al., MICRO 2024 (arXiv 2405.07518)
MACHINES = {"SN40L": "sn40l-1x8", "DGX A100": "a100-1x8", "DGX H100": "h100-1x8"}
GPUS = ("DGX A100", "DGX H100")
# Inputs of Table V, in seconds. NVIDIA NeMo's page of Llama-2-7B, 128 tokens in, 20 out, TP8, one prompt: the latencies
# that the paper itself takes.
NEMO_20 = {"DGX A100": 0.1365, "DGX H100": 0.0976}
# Expert alone, by tokens out: how much longer a GPU takes (Table V, "< 50 experts"). Inputs.
EXPERT_ONLY = {20: {"DGX A100": 2.0, "DGX H100": 1.5}, 200: {"DGX A100": 3.2, "DGX H100": 2.3}}
# What Table V says of all together: (prompts of a batch, tokens out, machine) -> how much longer a GPU takes.
TABLE_V = {(8, 20, "DGX A100"): 6.6, (8, 20, "DGX H100"): 3.7, (1, 20, "DGX A100"): 4.8, (1, 20, "DGX H100"): 2.8,
           (1, 200, "DGX A100"): 3.9, (1, 200, "DGX H100"): 2.6}
SWITCH_RATIO = {"DGX A100": 31.0, "DGX H100": 15.0}  # Table V; the text has 16 for the second
HBM_EXPERTS, HOST_EXPERTS = (45, 50), (145, 155)     # latencies of a DGX jump at about 50; it is full at 150
FOOTPRINT = 19                                       # abstract: up to 19 times fewer machines
REACH = 0.85                                         # share of HBM bandwidth of fused decoding (text)


@cache
def model() -> ModelSpec:
    """Return what every expert and the router are derived from."""
    return config.load(ModelSpec, config.find_file("workloads/models/llama-2-7b.yaml", config.Path.cwd()))


@cache
def machine(name: str) -> HardwareSpec:
    """Return one of ``MACHINES``."""
    return config.load(HardwareSpec, config.find_file(f"hw_configs/machines/{MACHINES[name]}.yaml", config.Path.cwd()))


def node(name: str, switch: Switch, peak: bool = False) -> Node:
    """Return the node with a router in HBM, the rest of which is for experts; *peak*: links as in data sheets."""
    chain = Chain.of(machine(name))
    if peak:
        tiers = [t.model_copy(update={"link": t.link and t.link.model_copy(update={"efficiency": 1.0})})
                 for t in chain.tiers]
        chain = dataclasses.replace(chain, tiers=tuple(tiers))
    store = chain.names[-1]
    return Node(chain, chain.room("hbm") - model().total_bytes, switch=switch, store=store)


@cache
def accountings(name: str) -> dict[str, Node]:
    """Return the node *name* as the paper counts switches, then with all links: data sheet, measured, overlapped.

    SN40L copies over all its links in each: that is what its "over 1 TB/s" is.
    """
    if name == "SN40L":
        return {"paper": node(name, "all_links"), "all links": node(name, "all_links"),
                "all links, measured": node(name, "all_links"), "overlapped": node(name, "overlapped")}
    return {"paper": node(name, "one_link", peak=True), "all links": node(name, "all_links", peak=True),
            "all links, measured": node(name, "all_links"), "overlapped": node(name, "overlapped")}


@dataclasses.dataclass(frozen=True)
class Stated:
    """Hold what was never published, of SN40L: seconds of the router, and of an expert's 200 tokens."""

    router_s: float
    expert_200_s: float


STATED = Stated(0.056, 0.420)  # both chosen so that Table V holds
# Ten times as many tokens take a GPU ten times as long; over the expert-only ratios of Table V. No cell is used.
DERIVED_200_S = sum(10 * NEMO_20[g] / EXPERT_ONLY[200][g] for g in GPUS) / len(GPUS)


def expert_s(name: str, tokens: int, stated: Stated = STATED) -> float:
    """Return the seconds of one expert and one prompt of *tokens* out: input, or derived from inputs alone."""
    if tokens == 20:
        own = sum(NEMO_20[g] / EXPERT_ONLY[20][g] for g in GPUS) / len(GPUS)
    else:
        own = stated.expert_200_s
    if name == "SN40L":
        return own
    return NEMO_20[name] if tokens == 20 else own * EXPERT_ONLY[200][name]


def router_s(name: str, stated: Stated = STATED) -> float:
    """Return the router's seconds: a GPU is taken to be as much slower at it as at an expert's 20 tokens."""
    return stated.router_s * expert_s(name, 20) / expert_s("SN40L", 20)
