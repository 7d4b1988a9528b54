"""Where the gates of known models are, and how to read what a gate returns: one row of FAMILIES per model family.

Letters: N tokens, E experts, K = top_k, M ranked candidates. A gate is known by its class name; the layouts of
transformers 5 return (logits, weights, ids), earlier ones return (ids, weights), (scores, ids) or bare logits.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn


class Choice(NamedTuple):
    """What one gate said: ids [N, K] and, as far as it returns them, weights [N, K] and logits [N, E]."""

    experts: Tensor
    weights: Tensor | None = None
    logits: Tensor | None = None
    dropped: Tensor | None = None  # bool [N]: chosen, but over the expert's capacity


@dataclass(frozen=True)
class Site:
    """One gate of a model: its dotted name, the layer in that name, and its sizes.

    `module` is hooked; `holder` keeps the settings: the gate itself, or the block around a bare `nn.Linear`.
    """

    name: str
    layer: int
    module: nn.Module
    holder: nn.Module
    family: Family
    top_k: int
    n_experts: int

    @property
    def plain(self) -> bool:
        """Tell whether the K highest scores are the choice, so that runners-up can be ranked by score."""
        return self.family.plain(self.holder)

    @property
    def renormalised(self) -> bool:
        """Tell whether the model rescales the K weights to sum to 1."""
        return self.family.renormalised(self.holder)


@dataclass(frozen=True)
class Family:
    """How one family of models chooses experts.

    gates         class names of its gate modules
    blocks        class names of MoE blocks that hold a bare `nn.Linear` as `gate` (transformers 4)
    score         how logits become probabilities, each expert on its own (sigmoid) or together (softmax)
    """

    name: str
    gates: tuple[str, ...]
    blocks: tuple[str, ...] = ()
    score: str = "softmax"
    renormalised: Callable[[Any], bool] = lambda gate: bool(getattr(gate, "norm_topk_prob", False))
    plain: Callable[[Any], bool] = lambda gate: True
    read: Callable[[Site, Any], Choice] | None = None  # None: `read_choice`

    def choice(self, site: Site, output: Any) -> Choice:
        """Return what the gate at *site* chose, from what its forward returned."""
        return (self.read or read_choice)(site, output)


def read_choice(site: Site, output: Any) -> Choice:
    """Read the usual layouts: (logits, weights, ids); (ids, weights, ...); (scores [N, E], ids); logits."""
    if isinstance(output, Tensor):
        logits = output.flatten(0, -2)
        return Choice(logits.float().softmax(-1).topk(site.top_k, dim=-1).indices, None, logits)
    kinds = [isinstance(value, Tensor) and (value.is_floating_point(), value.shape[-1]) for value in output]
    k, e = site.top_k, site.n_experts
    if kinds == [(True, e), (True, k), (False, k)]:
        return Choice(output[2].flatten(0, -2), output[1].flatten(0, -2), output[0].flatten(0, -2))
    if kinds[:2] == [(False, k), (True, k)]:
        return Choice(output[0].flatten(0, -2), output[1].flatten(0, -2))
    if kinds == [(True, e), (False, k)]:
        ids = output[1].flatten(0, -2)
        return Choice(ids, output[0].flatten(0, -2).gather(1, ids))
    raise ValueError(
        f"{site.name}: {type(site.module).__name__} returned {describe(output)}, none of the layouts known for "
        f"{site.family.name} with {e} experts and top_k {k}; add its layout to moesim/capture/gates.py"
    )


def read_switch(site: Site, output: Any) -> Choice:
    """Read Switch: a one-hot mask [.., E] in which tokens over an expert's capacity have no expert at all."""
    one_hot, weights, logits = (value.flatten(0, -2) for value in output)
    dropped = one_hot.sum(-1) == 0
    # A dropped token still chose: the mask lost it, the logits have it.
    ids = one_hot.argmax(-1).where(~dropped, logits.argmax(-1))
    return Choice(ids[:, None], weights, logits, dropped)


def _grouped(gate: Any) -> bool:
    return getattr(gate, "topk_method", "") == "group_limited_greedy" or getattr(gate, "num_group", 1) not in (None, 1)


def _always(gate: Any) -> bool:
    return True


def _never(gate: Any) -> bool:
    return False


# The rule of choice of each family, read in transformers 5.23 (models/*/modeling_*.py) and 4.57 for the older names.
FAMILIES = (
    Family("moesim reference", ("ReferenceGate",), renormalised=lambda gate: gate.top_k > 1),
    Family("Mixtral", ("MixtralTopKRouter",), ("MixtralSparseMoeBlock",), renormalised=_always),
    Family("Qwen2-MoE", ("Qwen2MoeTopKRouter",), ("Qwen2MoeSparseMoeBlock",)),
    Family("Qwen3-MoE", ("Qwen3MoeTopKRouter",), ("Qwen3MoeSparseMoeBlock",)),
    Family("OLMoE", ("OlmoeTopKRouter",), ("OlmoeSparseMoeBlock",)),
    Family("DeepSeek-V2", ("DeepseekV2TopkRouter", "DeepseekV2MoEGate"), plain=lambda gate: not _grouped(gate)),
    # V3 chooses by sigmoid + a learned bias inside the best groups, and weighs by the sigmoid alone
    Family("DeepSeek-V3", ("DeepseekV3TopkRouter",), score="sigmoid", plain=_never),
    # GPT-OSS takes the softmax over the chosen logits: a softmax over all, renormalised
    Family("GPT-OSS", ("GptOssTopKRouter",), renormalised=_always),
    Family("Switch", ("SwitchTransformersTop1Router",), renormalised=_never, read=read_switch),
)


def find_gates(model: nn.Module) -> list[Site]:
    """Return the gates of *model* by layer. Raises ValueError if there are none or two claim one layer."""
    sites: dict[int, Site] = {}
    for name, module in model.named_modules():
        found = _site(name, module)
        if found is None:
            continue
        if found.layer in sites:
            raise ValueError(
                f"two gates claim layer {found.layer}: {sites[found.layer].name} and {found.name}; a trace follows "
                "one stack of layers: record that one, e.g. record(model.encoder) or record(model.decoder)"
            )
        sites[found.layer] = found
    if not sites:
        known = "; ".join(f"{f.name}: {', '.join(f.gates + f.blocks)}" for f in FAMILIES)
        raise ValueError(
            f"{type(model).__name__} has no gate that moesim knows; looked for modules of class {known}. "
            "If the model is a Mixture of Experts, add its family to FAMILIES in moesim/capture/gates.py"
        )
    return [sites[layer] for layer in sorted(sites)]


def _site(name: str, module: nn.Module) -> Site | None:
    classes = {cls.__name__ for cls in type(module).__mro__}
    for family in FAMILIES:
        if classes.intersection(family.gates):
            return _describe_site(name, module, module, family)
        gate = getattr(module, "gate", None)
        if classes.intersection(family.blocks) and isinstance(gate, nn.Linear):
            return _describe_site(f"{name}.gate", gate, module, family)
    return None


def _describe_site(name: str, module: nn.Module, holder: nn.Module, family: Family) -> Site:
    """Read layer and sizes."""
    layer = re.search(r"(?:^|\.)(\d+)(?:\.|$)", name)
    if layer is None:
        raise ValueError(f"{name or type(module).__name__}: no layer number in this name; record the whole model")
    top_k = 1 if family.name == "Switch" else getattr(holder, "top_k", None)
    weight = getattr(module, "classifier", module).weight
    if not isinstance(top_k, int) or not isinstance(weight, Tensor):
        raise ValueError(f"{name}: {type(holder).__name__} has no integer `top_k` or no weight; an unknown layout")
    return Site(name, int(layer.group(1)), module, holder, family, top_k, int(weight.shape[0]))


def rank(site: Site, choice: Choice, n_ranked: int) -> tuple[Tensor, Tensor]:
    """Return ids and probabilities [N, M]: the gate's own K ids by descending score, then the best of the rest.

    Probabilities are the gate's scores before it renormalises or scales the chosen ones; where a gate returns
    no logits they are the weights it returned, divided by its constant scale.
    """
    if choice.logits is None:
        if n_ranked > site.top_k or choice.weights is None:
            raise ValueError(f"{site.name}: returns no logits, so {n_ranked} candidates cannot be ranked; "
                             f"record with ranked={site.top_k}")
        scale = float(getattr(site.holder, "routed_scaling_factor", None) or 1.0)
        weights, order = (choice.weights.float() / scale).sort(dim=-1, descending=True, stable=True)
        return choice.experts.gather(1, order), weights
    logits = choice.logits.float()
    scores = logits.sigmoid() if site.family.score == "sigmoid" else logits.softmax(-1)
    own, order = scores.gather(1, choice.experts).sort(dim=-1, descending=True, stable=True)
    ids = choice.experts.gather(1, order)
    if n_ranked == site.top_k:
        return ids, own
    rest = scores.scatter(1, ids, -1.0).topk(n_ranked - site.top_k, dim=-1)
    return torch.cat((ids, rest.indices), 1), torch.cat((own, rest.values), 1)


def describe(output: Any) -> str:
    """Name the types and shapes in *output*, for a message."""
    values = output if isinstance(output, (tuple, list)) else [output]
    return "(" + ", ".join(f"{v.dtype}{list(v.shape)}" if isinstance(v, Tensor) else str(type(v)) for v in values) + ")"


def checked_ranked(sites: list[Site], ranked: int | None) -> int:
    """Return the number of candidates to keep. Raises ValueError if the gates cannot give so many."""
    top_ks = sorted({site.top_k for site in sites})
    if len(top_ks) > 1:
        raise ValueError(f"the gates choose different numbers of experts, {top_ks}; a trace holds one top_k")
    top_k, most = top_ks[0], min(site.n_experts for site in sites)
    if ranked is None:
        return top_k
    if not top_k <= ranked <= most:
        raise ValueError(f"ranked={ranked}; choose from top_k = {top_k} to the {most} experts of a layer")
    if ranked > top_k and not all(site.plain for site in sites):
        raise ValueError(f"ranked={ranked}: {sites[0].family.name} gates choose with a bias or by groups, so the best "
                         f"of the rest may score above the chosen; record with ranked={top_k}")
    return ranked


def check_capacity(site: Site, dropped: Tensor | None, real: np.ndarray) -> None:
    """Raise ValueError if an expert turned real tokens away."""
    lost = 0 if dropped is None else int((dropped.cpu().numpy() & real).sum())
    if lost:
        raise ValueError(f"{site.name}: {lost} tokens got no expert because it was full, and a trace needs one for "
                         "each; raise expert_capacity in the model's configuration or send shorter sequences")
