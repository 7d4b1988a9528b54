"""Read what a forward pass of a language model was given: tokens, padding, cache."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

import numpy as np
from torch import Tensor, nn


def arguments(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a call of *module* by name, however they were passed."""
    given = dict(inspect.signature(module.forward).bind_partial(*args, **kwargs).arguments)
    return given | given.pop("kwargs", {})


def token_ids(given: dict[str, Any]) -> np.ndarray:
    """Return the pass's token ids [B, S]; -1 where the module was given embeddings. Raises ValueError if neither."""
    ids, embeds = given.get("input_ids"), given.get("inputs_embeds")
    if ids is not None:
        return ids.detach().cpu().numpy()
    if embeds is None:
        raise ValueError(f"the recorded module was called with {sorted(given)}, neither input_ids nor inputs_embeds; "
                         "record the module that takes the tokens, e.g. the language model itself")
    return np.full(embeds.shape[:2], -1)


def past_length(cache: Any) -> int:
    """Return how many positions *cache* holds: a cache object, the tuples of transformers 4, or None."""
    if cache is None:
        return 0
    if hasattr(cache, "get_seq_length"):
        return int(cache.get_seq_length())
    return int(cache[0][0].shape[-2]) if cache else 0


def real_tokens(mask: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Return bool [B, S]: which of the pass's positions are text, not padding. Raises ValueError for other masks."""
    if mask is None:
        return np.ones(shape, dtype=bool)
    if not isinstance(mask, Tensor) or mask.dim() != 2 or mask.shape[0] != shape[0] or mask.shape[1] < shape[1]:
        found = list(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
        raise ValueError(f"attention_mask is {found}, not [rows, positions] for tokens {list(shape)}; padding cannot "
                         "be told from it: pass a two-dimensional mask and the default (dynamic) cache")
    return mask[:, -shape[1]:].detach().cpu().numpy().astype(bool)


def stop_tokens(model: nn.Module, stop_ids: Iterable[int] | None) -> tuple[frozenset[int], frozenset[int]]:
    """Return the tokens that finish a row (*stop_ids*, or those the model generates with) and those that fill it."""
    settings = getattr(model, "generation_config", None)
    if stop_ids is None:
        found = getattr(settings, "eos_token_id", None)
        stop_ids = [] if found is None else [found] if isinstance(found, int) else found
    stop = frozenset(int(token) for token in stop_ids)
    pad = getattr(settings, "pad_token_id", None)
    return stop, stop if pad is None else stop | {int(pad)}


def newly_done(ids: np.ndarray, done: np.ndarray, real: np.ndarray, stop: frozenset[int],
               fill: frozenset[int]) -> np.ndarray:
    """Return bool [B]: the rows that are finished once the tokens *ids* [B] of a decode pass are fed.

    generate() keeps feeding finished rows while others run, which a serving engine would not do. Raises
    ValueError if a finished row (*done*) goes on with a token that is no filler.
    """
    alive = done & real & ~np.isin(ids, list(fill))
    if alive.any():
        row = int(np.flatnonzero(alive)[0])
        raise ValueError(f"row {row} goes on with token {ids[row]} after a stop token (stop_ids are {sorted(stop)}); "
                         "record with stop_ids=[] if generation does not stop there, or mask finished rows")
    return done | np.isin(ids, list(stop))
