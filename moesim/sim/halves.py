"""Two-batch overlap: a step's batch in two halves, of which one computes while the other communicates.

As DeepSeek-V3 (arXiv 2412.19437, section 3.4) and SGLang's two-batch overlap do it: whole requests are dealt, so that
both halves have nearly as many tokens on every device.
"""

from __future__ import annotations

import numpy as np

from moesim.sim.cost import Batch

LEAST = 0.25  # assumed: share of the tokens below which the smaller half hides nothing worth a second pass over weights


def halves(batch: Batch) -> list[Batch]:
    """Return the two halves of *batch*, or *batch* alone if whole requests cannot be dealt evenly enough."""
    prompt, decode = _dealt(batch)
    tokens = np.array([batch.prefill_tokens[prompt == h].sum() + (decode == h).sum() for h in (0, 1)])
    if tokens.min() < LEAST * tokens.sum() or tokens.min() == 0:
        return [batch]
    return [_part(batch, prompt == h, decode == h) for h in (0, 1)]


def _dealt(batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    """Return the half, 0 or 1, of every prompt and of every decoding request.

    Decoding requests take turns, group after group. Then prompts, the longest of a group first, go where the group has
    fewer tokens; if that is even, where there are fewer in all.
    """
    n_groups = int(max(batch.prefill_group.max(initial=-1), batch.decode_group.max(initial=-1))) + 1
    decode = np.empty(len(batch.decode), np.int64)
    decode[np.argsort(batch.decode_group, kind="stable")] = np.arange(len(decode)) % 2
    tokens = np.zeros((n_groups, 2), np.int64)
    np.add.at(tokens, (batch.decode_group, decode), 1)
    total = tokens.sum(axis=0)
    prompt = np.empty(len(batch.prefill), np.int64)
    for i in np.lexsort((-batch.prefill_tokens, batch.prefill_group)):
        here = tokens[batch.prefill_group[i]]
        half = int((here[1], total[1]) < (here[0], total[0]))
        prompt[i] = half
        here[half] += batch.prefill_tokens[i]
        total[half] += batch.prefill_tokens[i]
    return prompt, decode


def _part(batch: Batch, prompt: np.ndarray, decode: np.ndarray) -> Batch:
    return Batch(batch.prefill[prompt], batch.prefill_tokens[prompt], batch.prefill_past[prompt],
                 batch.prefill_sampled[prompt], batch.prefill_group[prompt],
                 batch.prefill_rows[np.repeat(prompt, batch.prefill_tokens)],
                 batch.decode[decode], batch.decode_kv[decode], batch.decode_group[decode], batch.decode_rows[decode],
                 batch.pad_group[:0], batch.pad_rows[:0])
