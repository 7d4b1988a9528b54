"""Generate text with the reference model: one padded batch of prompts, a cache, sampling with a seed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from moesim.capture.reference_moe import Cache, ReferenceMoE


@torch.no_grad()
def generate(
    model: ReferenceMoE, prompts: Sequence[Sequence[int]], new_tokens: Sequence[int], seed: int, pad: int = 0
) -> list[list[int]]:
    """Return, for every prompt, `new_tokens[i]` token ids sampled after it at temperature 1.

    Prompts are padded on the left with *pad*. A row that has its tokens is masked like padding while the others
    go on. The last token of a row is never fed back, so it is never routed: as in a serving engine.
    """
    if len(prompts) != len(new_tokens) or not prompts or min(map(len, prompts)) < 1 or min(new_tokens) < 1:
        raise ValueError(
            f"generate: {len(prompts)} prompts and {len(new_tokens)} output lengths; "
            "give one length >= 1 for every prompt of at least one token"
        )
    model.eval()
    random = torch.Generator(device="cpu").manual_seed(seed)
    device, cache, budget = model.embed.weight.device, Cache(), torch.tensor(new_tokens)
    ids, mask = left_padded(prompts, pad)
    outputs: list[Tensor] = []
    for step in range(int(budget.max())):
        logits = model(ids.to(device), mask.to(device), cache).logits[:, -1]
        ids = torch.multinomial(logits.float().cpu().softmax(-1), 1, generator=random)
        outputs.append(ids)
        mask = torch.cat((mask, (budget > step + 1).long()[:, None]), 1)
    sampled = torch.cat(outputs, 1).tolist()
    return [row[:count] for row, count in zip(sampled, new_tokens, strict=True)]


def left_padded(prompts: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    """Return ids and mask [B, longest prompt], the text at the right end."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[pad] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return ids, mask
