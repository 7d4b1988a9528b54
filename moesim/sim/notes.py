"""What a reader of a result has to be careful with: the warnings in its metadata, all collected here."""

from __future__ import annotations

import pandas as pd

from moesim import metrics
from moesim.network import Network, validity
from moesim.registry import name_of
from moesim.scenario import Scenario
from moesim.sim.inputs import Inputs
from moesim.sim.operators import Pricing


def notes(inputs: Inputs, steps: pd.DataFrame, links: pd.DataFrame, operators: Pricing, network: Network
          ) -> list[str]:
    """Return the warnings of a run: routing, overlap, online placement, network, *operators* outside what was measured.
    """
    traced = inputs.routing is not None and not inputs.scenario.traced.balanced
    return [*_routing(inputs), *(_repetition(steps) if traced else ()), *_sharing(inputs), *_online(inputs),
            *_jitter(inputs), *_cached(inputs, steps), *_rerouted(inputs, steps), *_network(inputs, links, network),
            *operators.extrapolated()]


def _routing(inputs: Inputs) -> list[str]:
    if inputs.routing is None:
        return []
    scenario, trace, found = inputs.scenario, inputs.trace, []
    if scenario.traced.balanced:
        return ["the routing is balanced (trace.balanced): every step's tokens are spread evenly over the experts of a "
                "layer, as no gate spreads them; what imbalance costs and placement gains is not in this result"]
    if trace.meta.get("synthetic"):
        found.append("the routing is synthetic")
    if scenario.traced.scaled:
        found.append(f"the routing of {trace.meta.get('model')} on the sizes of {scenario.model.name} (a what-if)")
    if getattr(scenario.scheduler, "knows_experts", False):
        found.append("the scheduler knows the experts of every token before its step runs (pre-gating); gates inside "
                     "a model tell them only as each layer runs")
    if scenario.traced.any_phase:
        found.append("trace rows of one phase may stand for those of the other (trace.any_phase)")
    return found


def _repetition(steps: pd.DataFrame) -> list[str]:
    """Return a warning if tokens that decode together often have the same routing, because the trace is short."""
    tokens, rows = steps["decode_tokens"].mean(), steps["decode_rows"].mean()
    if rows >= 0.9 * tokens:
        return []
    return [f"the trace is short for this load: of {tokens:.0f} tokens decoded in a step (mean) only {rows:.0f} have "
            f"rows of their own, so fewer experts are in use at a time; use a trace of more requests"]


def _sharing(inputs: Inputs) -> list[str]:
    found = []
    if inputs.scenario.parallelism.pp > 1:
        found.append("parallelism.pp: what a stage sends to the next shares no links with collectives of stages, and "
                     "those of one stage none with another's; two sends between the same stages follow one another")
    if inputs.scenario.overlap != "none":
        found.append("overlap: kernels compute at full speed while others communicate; the multiprocessors, memory "
                     "bandwidth and power that communication kernels take from them are not modelled")
    if inputs.scenario.background is not None:
        found.append("background: its flows come whatever the network does; senders do not slow down or wait for it, "
                     "and link tables count the bytes of the job alone")
    return found


def _online(inputs: Inputs) -> list[str]:
    online = inputs.scenario.online
    if online is None:
        return []
    return [f"placement.online: the solver is taken to need {online.solve_time:g} s (placement.online.solve_time) of a "
            f"processor that has nothing else to do, and the buffer for a layer's incoming experts no memory"]


def _jitter(inputs: Inputs) -> list[str]:
    jitter = inputs.scenario.engine.jitter
    if not jitter:
        return []
    return [f"engine.jitter: the times of each step are multiplied by a random number of mean 1, standard deviation "
            f"{jitter:g} (lognormal, from the scenario's seed)"]


def _answers(name: str, steps: pd.DataFrame) -> list[str]:
    """Return what the part *name* of kind ``miss`` did to the answers of the model."""
    shares = metrics.expert_cache(steps)
    did = {"skipped": "were not computed", "deferred": "were added one layer later",
           "low_precision": "were computed with low-bit weights"}
    return [f"cache.miss: {name}: {shares[f'{what}_share']:.1%} of the tokens' choices {how}: answers are not the "
            f"model's, and a trace does not know what its gates would have chosen after that"
            for what, how in did.items() if shares.get(f"{what}_share", 0.0) > 0]


def _cached(inputs: Inputs, steps: pd.DataFrame) -> list[str]:
    scenario = inputs.scenario
    cache, machine = scenario.cache, scenario.hardware
    if cache is None:
        return []
    found = ["cache: copies of what a layer misses are taken to begin together, and its experts to wait for the last; "
             "the host's work to start copies is not modelled"]
    if name_of(cache.prefetcher) != "none":
        found.append("cache.prefetcher: a byte that comes while a device works holds its kernels up for as long as its "
                     "memory needs to take it, as if all kernels were bound by that memory (an upper bound)")
    if name_of(cache.prefetcher) in ("next_layer_gate", "oracle", "rpp"):
        found.append(f"cache.prefetcher: {name_of(cache.prefetcher)} expects what really comes, with errors drawn as "
                     "asked for; what such a predictor computes costs nothing here")
    name = name_of(cache.miss)
    if "host" in cache.miss.needs:
        found.append(f"cache.miss: {name}: the host computes at its roofline, one layer of a node at a time; energy, "
                     f"mbu and read_bytes count its work as the devices'")
        if cache.miss.fetches:
            found.append(f"cache.miss: {name}: the host's processor and copies each have all bandwidth of its memory")
    if cache.below is not None:
        found.append("cache.below: an expert that several devices fetch at once comes up once, but each of them waits "
                     "as if lower links carried it for each; writing it to a tier on its way takes no bandwidth there")
    found += _answers(name, steps)
    if cache.overflow == "stream" and cache.miss.fetches:
        found.append("cache.overflow: stream: the workspace for experts that pass through takes no memory here")
    if scenario.island_size < machine.devices_per_node:
        found.append("cache: islands of a node are taken to have its host memory, and a link that the node shares, to "
                     "themselves")
    return found


def _rerouted(inputs: Inputs, steps: pd.DataFrame) -> list[str]:
    if inputs.scenario.cache is None or not inputs.scenario.cache.rerouted:
        return []
    found = metrics.expert_cache(steps)
    return [f"cache.reroute: {found['swapped_share']:.1%} of the tokens' choices are not those of their gates, which "
            f"gives up {found['given_up_share']:.1%} of the gate probability: another model, whose quality is not in "
            f"this result"]


def of_pools(scenario: Scenario) -> list[str]:
    """Return the warnings of a run whose pools of devices have something in common."""
    if scenario.disaggregation is None or scenario.cache is None or scenario.hardware.nodes > 1:
        return []
    return ["cache: the devices that prefill and those that decode are in one node, and each are taken to have its "
            "host memory, and links that the node shares, to themselves"]


def _network(inputs: Inputs, links: pd.DataFrame, network: Network) -> list[str]:
    """Return a note for each regime of the network that the model is not valid for (``network.validity``)."""
    scale_out = inputs.scenario.hardware.scale_out
    if scale_out is None or network.nodes == 1:
        return []
    senders = validity.senders(network, inputs.scenario.all_to_all)
    return validity.notes(scale_out.transport, links.assign(load_bytes=links["bytes"]), senders)
