"""Answers of vLLM and SGLang with ``routed_experts`` (JSON, JSON lines), or such arrays saved as npy or npz.

>>> import base64, tempfile, pathlib
>>> path = pathlib.Path(tempfile.mkdtemp()) / "answers.jsonl"
>>> blob = base64.b64encode(np.array([0, 1, 3, 2, 1, 0], "<i4").tobytes()).decode()  # 3 tokens, 1 layer, top 2
>>> _ = path.write_text(json.dumps({"meta_info": {"prompt_tokens": 2, "completion_tokens": 2, "routed_experts": blob}}))
>>> trace = RoutedExperts(n_experts=4, n_layers=1, top_k=2).read(path)
>>> trace.experts.tolist(), trace.tokens["phase"].tolist()
([[[0, 1]], [[3, 2]], [[1, 0]]], [0, 0, 1])
"""

from __future__ import annotations

import base64
import binascii
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from moesim.formats import _arrays
from moesim.registry import part
from moesim.trace import DECODE, PREFILL, RoutingTrace, TraceError


class _Request(NamedTuple):
    """One request: the experts of its tokens [T, L, K]; how many of them are of the prompt."""

    experts: np.ndarray
    prompt: int


@part
class RoutedExperts:
    """``n_experts`` per layer must be given; ``layers`` names the rows that have experts (left out: all).

    SGLang sends base64 of int32 without a shape, over all hidden layers: give ``n_layers`` (num_hidden_layers) and
    ``top_k``, and ``layers`` if some are dense. Saved arrays [tokens, layers, top_k] are a request each and do not say
    where the prompt ends: give ``prompt_tokens``. Choices stay in the engine's order, whose gate may not sort them.
    Sources: vllm-project/vllm, docs/training/routed_experts_replay.md (v0.21: nested lists ``prompt_routed_experts``
    and, per choice, ``routed_experts``); vllm-project/router pull request 184 (later: per choice base64 of an npy
    file, [tokens - 1, layers, top_k]); sgl-project/sglang, test/registered/rl/test_return_routed_experts.py
    (``meta_info`` or ``sglext``, int32, prompt + completion - 1 rows).
    """

    n_experts: int | None = None
    n_layers: int | None = None
    top_k: int | None = None
    layers: tuple[int, ...] | None = None
    prompt_tokens: int | None = None

    def matches(self, path: Path) -> bool:
        """Say whether *path* is JSON by its name, or an ``.npy`` file of three axes."""
        path = Path(path)
        return path.suffix in (".json", ".jsonl") or (path.suffix == ".npy" and _arrays.dimensions(path) == 3)

    def read(self, path: Path) -> RoutingTrace:
        """Return the trace; a request per answer or array. Raises ``TraceError``."""
        path = Path(path)
        found = self._saved(path) if path.suffix in (".npy", ".npz") else self._answers(path)
        if self.n_experts is None:
            raise TraceError(f"{path}: does not say how many experts a layer has; give it: "
                             "{name: routed_experts, n_experts: ...}")
        shapes = {request.experts.shape[1:] for request in found}
        if len(shapes) != 1:
            raise TraceError(f"{path}: its requests have {sorted(shapes)} layers and choices; give files of one model")
        experts = np.concatenate([request.experts for request in found])
        if self.layers is not None and not set(self.layers) <= set(range(experts.shape[1])):
            raise TraceError(f"{path}: has layers 0 to {experts.shape[1] - 1}, layers names {list(self.layers)[:6]}")
        layers = list(range(experts.shape[1]) if self.layers is None else self.layers)
        lengths = [len(request.experts) for request in found]
        phases = [np.where(np.arange(len(r.experts)) < r.prompt, PREFILL, DECODE) for r in found]
        try:
            return RoutingTrace.from_arrays(
                experts[:, layers], self.n_experts, experts.shape[2], request=np.repeat(np.arange(len(found)), lengths),
                phase=np.concatenate(phases), moe_layer_indices=layers, origin="routed_experts of an engine")
        except TraceError as error:
            raise TraceError(f"{path}: {error}; if layers without experts are among them, name the others: "
                             "{name: routed_experts, layers: [...]}; if cached prompts are, record without prefix "
                             "caching") from None

    def _saved(self, path: Path) -> list[_Request]:
        if self.prompt_tokens is None:
            raise TraceError(f"{path}: does not say where the prompts end; give it (0: all tokens were decoded): "
                             "{name: routed_experts, prompt_tokens: ...}")
        arrays = _arrays.load(path)
        for name, array in arrays.items():
            _check(array, f"{path}: array {name}".rstrip())
        return [_Request(array, self.prompt_tokens) for array in arrays.values()]

    def _answers(self, path: Path) -> list[_Request]:
        found = []
        for place, answer in _objects(path):
            if not isinstance(answer, dict):
                raise TraceError(f"{place}: is {type(answer).__name__}, no answer; give answers with routed_experts")
            try:
                found.append(self._request(answer))
            except ValueError as error:
                raise TraceError(f"{place}: {error}") from None
        if not found:
            raise TraceError(f"{path}: holds no answers")
        return found

    def _request(self, answer: dict[str, Any]) -> _Request:
        """Return the request of one answer. Raises ``ValueError``."""
        usage, blob = _fields(answer)
        prompt, output = usage.get("prompt_tokens"), usage.get("completion_tokens")
        experts = self._array(blob)
        if answer.get("prompt_routed_experts") is not None:
            first = self._array(answer["prompt_routed_experts"])
            if first.shape[1:] != experts.shape[1:] or prompt not in (None, len(first)):
                raise ValueError(f"prompt_routed_experts has shape {list(first.shape)}, which does not fit the "
                                 f"choice's {list(experts.shape)} and prompt_tokens = {prompt}; record it again")
            return _Request(np.concatenate([first, experts]), len(first))
        if type(prompt) is not int or type(output) is not int:
            raise ValueError("says no prompt_tokens and completion_tokens; keep meta_info or usage")
        if len(experts) != prompt + output - 1:
            raise ValueError(f"has {len(experts)} rows for {prompt} prompt and {output} output tokens, which need "
                             f"{prompt + output - 1} (the last is never routed); ask for all rows (start 0)")
        return _Request(experts, prompt)

    def _array(self, value: Any) -> np.ndarray:
        """Return nested lists, base64 of an npy file, or base64 of int32 as an array [T, L, K]."""
        if isinstance(value, list):
            try:
                return _check(np.array(value), "routed_experts")
            except ValueError as error:
                raise ValueError(f"routed_experts is no array [tokens][layers][choices] ({error})") from None
        if not isinstance(value, str):
            raise ValueError("has no routed_experts; start the engine with --enable-return-routed-experts and, for "
                             "SGLang, ask for them in the request")
        try:
            raw = base64.b64decode(value, validate=True)
        except (binascii.Error, ValueError) as error:
            raise ValueError(f"routed_experts is not base64, or cut short ({error}); record it again") from None
        if raw.startswith(b"\x93NUMPY"):
            return _check(_arrays.decode(raw)[""], "routed_experts")
        if self.n_layers is None or self.top_k is None:
            raise ValueError("routed_experts is int32 without a shape; give it: "
                             "{name: routed_experts, n_layers: ..., top_k: ...}")
        width = 4 * self.n_layers * self.top_k
        if width <= 0 or not raw or len(raw) % width:
            raise ValueError(f"routed_experts has {len(raw)} bytes, no whole tokens of {self.n_layers} layers x "
                             f"{self.top_k} int32; correct n_layers or top_k")
        return np.frombuffer(raw, "<i4").reshape(-1, self.n_layers, self.top_k)


def _objects(path: Path) -> list[tuple[str, Any]]:
    """Return the answers in a JSON file (one, or a list) or JSON lines, each with its place."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TraceError(f"{path}: cannot be read as text ({error})") from None
    try:
        if path.suffix == ".jsonl":
            lines = [(number, line) for number, line in enumerate(text.splitlines(), start=1) if line.strip()]
            return [(f"{path}:{number}", json.loads(line)) for number, line in lines]
        whole = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise TraceError(f"{path}: not JSON, or cut short ({error}); record it again") from None
    answers = whole if isinstance(whole, list) else [whole]
    return [(f"{path}: answer {number}", answer) for number, answer in enumerate(answers)]


def _fields(answer: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    """Return the mapping with the numbers of tokens, and what is said of the experts (None: nothing)."""
    meta, extension, choices = answer.get("meta_info"), answer.get("sglext"), answer.get("choices")
    usage = answer.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    if isinstance(meta, dict):
        return meta, meta.get("routed_experts")
    if isinstance(choices, list) and len(choices) > 1:
        raise ValueError(f"has {len(choices)} choices, which share a prompt; ask for one (n = 1)")
    if isinstance(extension, dict):
        return usage, extension.get("routed_experts")
    if isinstance(choices, list) and choices and isinstance(choices[0], dict):
        return usage, choices[0].get("routed_experts")
    return usage, None


def _check(array: np.ndarray, name: str) -> np.ndarray:
    if array.ndim != 3 or array.dtype.kind not in "iu" or 0 in array.shape:
        raise TraceError(f"{name} is {array.dtype} of shape {list(array.shape)}; it must be whole numbers "
                         "[tokens, layers, choices]")
    return array
