"""Send text through a public model by name and return the trace: what `moesim capture` runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from moesim.capture.recorder import record
from moesim.trace import RoutingTrace


@dataclass(frozen=True)
class Plan:
    """How to run the prompts: cut to *prompt_tokens*, then *new_tokens* sampled after each, *rows* side by side."""

    prompt_tokens: int = 256
    new_tokens: int = 64
    rows: int = 8
    ranked: int | None = None
    seed: int = 0


def capture_text(
    name: str, prompts: Sequence[str], domain: str | Sequence[str] | None = None, plan: Plan | None = None,
    revision: str | None = None, **meta: Any,
) -> RoutingTrace:
    """Load the Hugging Face model *name* (a hub name or a folder), run *prompts* through it, return its trace.

    *domain* is one label, or one per prompt. Facts in *meta* (origin, licence) are kept in the trace. Raises
    ValueError for a model without known gates or an empty prompt, ModuleNotFoundError without transformers.
    """
    try:
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("capturing a public model needs pip install 'moesim[transformers]'",
                                  name="transformers") from error
    tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(name, revision=revision, dtype="auto").eval()
    found = getattr(model.config, "_commit_hash", None) or revision
    return run_prompts(model, tokenizer, prompts, domain, plan or Plan(), {"model": name, "revision": found} | meta)


def run_prompts(
    model: Any, tokenizer: Any, prompts: Sequence[str], domain: str | Sequence[str] | None, plan: Plan,
    meta: dict[str, Any],
) -> RoutingTrace:
    """Run *prompts* through a loaded *model* in batches: prefill, then sampling at temperature 1 until a stop token."""
    ids = [tokenizer(prompt)["input_ids"][: plan.prompt_tokens] for prompt in prompts]
    empty = [index for index, row in enumerate(ids) if not row]
    if empty or not ids:
        where = f"prompt {empty[0]} has no tokens" if empty else "there are no prompts"
        raise ValueError(f"{where}; give at least one prompt, and text in each")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token  # many public tokenizers have none; padding is masked anyway
    torch.manual_seed(plan.seed)
    with record(model, plan.ranked) as recorder:
        for first in range(0, len(ids), plan.rows):
            batch = tokenizer.pad({"input_ids": ids[first : first + plan.rows]}, return_tensors="pt").to(model.device)
            model.generate(**batch, max_new_tokens=plan.new_tokens, do_sample=True, top_k=0, use_cache=True,
                           pad_token_id=tokenizer.pad_token_id)
    return recorder.trace(domain=domain, **meta)
