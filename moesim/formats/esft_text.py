"""Folders of ``expert_weights_<layer>.txt``, as the ESFT repository publishes them: one line per sequence.

A line is the ids of all its tokens, an empty cell, and their weights; a gate of this model does not sort its
choices, so they are sorted here.

>>> import tempfile, pathlib
>>> folder = pathlib.Path(tempfile.mkdtemp())
>>> _ = (folder / "expert_weights_1.txt").write_text("3\\t0\\t1\\t2\\t\\t0.1\\t0.7\\t0.3\\t0.2\\n")
>>> EsftText(n_experts=4, top_k=2).read(folder).experts.tolist()
[[[0, 3]], [[1, 2]]]
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from moesim.registry import part
from moesim.trace import RoutingTrace, TraceError

_NAME = re.compile(r"expert_weights_(\d+)\.txt")


@part
class EsftText:
    """Read one domain of deepseek-ai/ESFT ``results/expert_scores`` (MIT); prefill, request = line.

    The files do not say how many experts there are and how many were used: the defaults are those of the model
    they were recorded from (DeepSeek-V2-Lite: 64 routed experts, top 6).
    """

    n_experts: int = 64
    top_k: int = 6

    def matches(self, path: Path) -> bool:
        """Say whether *path* is a folder with files of that name."""
        return bool(_files(Path(path)))

    def read(self, path: Path) -> RoutingTrace:
        """Return the trace; the domain is the folder's name. Raises ``TraceError`` if layers do not agree."""
        files = _files(Path(path))
        if not files:
            raise TraceError(f"{path}: not a folder with files expert_weights_<layer>.txt")
        layers = [self._layer(file) for file in files.values()]
        lengths = layers[0][2]
        for file, layer in zip(files.values(), layers, strict=True):
            if layer[2] != lengths:
                raise TraceError(f"{file}: has sequences of {layer[2][:5]}... tokens, the first layer's file of "
                                 f"{lengths[:5]}...; every file holds the same tokens")
        experts, probs = (np.stack([layer[i] for layer in layers], axis=1) for i in (0, 1))
        try:
            return RoutingTrace.from_arrays(
                experts, self.n_experts, self.top_k, request=np.repeat(np.arange(len(lengths)), lengths), probs=probs,
                domain=Path(path).name, model="deepseek-ai/ESFT-vanilla-lite", renormalised=False,
                moe_layer_indices=list(files), origin="deepseek-ai/ESFT results/expert_scores", licence="MIT")
        except TraceError as error:
            raise TraceError(f"{path}: {error}") from None

    def _layer(self, file: Path) -> tuple[np.ndarray, np.ndarray, list[int]]:
        """Return ids and probabilities [T, K] by descending probability, and the tokens of each sequence."""
        ids: list[np.ndarray] = []
        weights: list[np.ndarray] = []
        for number, line in enumerate(file.read_text(encoding="ascii", errors="replace").splitlines(), start=1):
            try:
                left, right = (half.split("\t") for half in line.split("\t\t"))
                ids.append(np.array(left, dtype=np.int64).reshape(-1, self.top_k))
                weights.append(np.array(right, dtype=np.float64).reshape(ids[-1].shape))
            except ValueError as error:
                raise TraceError(f"{file}:{number}: not ids, an empty cell and as many weights, a multiple of top_k = "
                                 f"{self.top_k} ({error})") from None
        if not ids:
            raise TraceError(f"{file}: is empty")
        chosen, probs = np.concatenate(ids), np.concatenate(weights)
        order = np.argsort(-probs, axis=1, kind="stable")
        lengths = [len(sequence) for sequence in ids]
        return np.take_along_axis(chosen, order, axis=1), np.take_along_axis(probs, order, axis=1), lengths


def _files(folder: Path) -> dict[int, Path]:
    """Return the files of *folder* by layer, ascending."""
    if not folder.is_dir():
        return {}
    found = {int(match[1]): file for file in folder.iterdir() if (match := _NAME.fullmatch(file.name))}
    return dict(sorted(found.items()))
