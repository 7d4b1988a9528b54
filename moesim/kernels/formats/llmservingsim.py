"""Profile folders of LLMServingSim: products, activated experts, attention of one model on one GPU.

A folder ``tp1`` (``tp2``, ...) holds CSV files in microseconds; the widths are in the model's configuration:

>>> import tempfile, pathlib
>>> folder = pathlib.Path(tempfile.mkdtemp())
>>> _ = (folder / "moe.csv").write_text("tokens,activated_experts,time_us\\n4,2,135.5\\n")
>>> _ = (folder / "config.json").write_text('{"hidden_size": 64, "num_attention_heads": 4, "head_dim": 16, '
...     '"moe_intermediate_size": 32, "num_experts": 4, "num_experts_per_tok": 2}')
>>> row = LlmServingSim(config=str(folder / "config.json")).read(folder).iloc[0]
>>> print(row.op, row.tokens_per_expert, row.hidden, f"{row.time_s * 1e6:.1f} us")
moe [4, 4, 0, 0] 64.0 135.5 us
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pandas as pd

from moesim.kernels.formats import _rows
from moesim.registry import part

_FILES = ("dense.csv", "per_sequence.csv", "attention.csv", "moe.csv")
_MATRICES = {"qkv_proj": "qkv_proj", "o_proj": "o_proj", "gate_up_proj": "up_proj", "down_proj": "down_proj",
             "lm_head": "lm_head"}
_MOVES = {"embedding": "embedding", "layernorm": "norm", "final_layernorm": "norm", "rotary_emb": "rope",
          "qk_norm": "qk_norm", "act_fn": "act"}


@part
class LlmServingSim:
    """Read ``profiler/perf/<gpu>/<model>/<dtype>/tp<N>`` of casys-kaist/LLMServingSim (MIT), or a copy of it.

    ``config``: the model's Hugging Face configuration (default: ``model_configs/<org>/<model>.json`` in a folder
    above). Attention of prefill alone and of decode alone is read; mixed batches, the sampler and ``skew.csv`` have no
    operator here. Experts are hit evenly, as the profiler forces them. Times are of eager kernels, caches warm.
    """

    config: str = ""

    def matches(self, path: Path) -> bool:
        """Say whether *path* is a folder with one of this tool's files."""
        return Path(path).is_dir() and any((Path(path) / name).is_file() for name in _FILES)

    def read(self, path: str | Path) -> pd.DataFrame:
        """Return the rows. Raises ``ValueError`` for missing columns or widths."""
        folder = Path(path)
        model = self._model(folder)
        tp = int(found[1]) if (found := re.fullmatch(r"tp(\d+)", folder.name)) else 1
        frames = []
        for name in _FILES:
            if (folder / name).is_file():
                read = {"moe.csv": _experts, "attention.csv": _attention}.get(name, _layers)
                frames += read(pd.read_csv(folder / name), model, tp)
        if not frames:
            raise ValueError(f"{folder}: holds none of {', '.join(_FILES)}; give a folder tp1, tp2, ...")
        rows = pd.concat(frames, ignore_index=True)
        gpu = folder.parts[-5] if len(folder.parts) >= 5 else ""
        rows = rows.assign(dtype="bf16", cold=False, device=gpu, source="LLMServingSim", status="ok")
        return rows.assign(sentinel=_rows.repeated(rows))

    def _model(self, folder: Path) -> dict[str, Any]:
        relative = Path("model_configs") / folder.parent.parent.parent.name / f"{folder.parent.parent.name}.json"
        places = [Path(self.config)] if self.config else [above / relative for above in folder.resolve().parents]
        file = next((place for place in places if place.is_file()), None)
        if file is None:
            raise ValueError(f"{folder}: the profile does not say the model's widths, and there is no {relative} "
                             "above; give {name: llmservingsim, config: config.json of the model}")
        return dict(json.loads(file.read_text(encoding="utf-8")))


def _layers(table: pd.DataFrame, model: dict[str, Any], tp: int) -> list[pd.DataFrame]:
    """Return the rows of products and elementwise kernels of dense.csv or per_sequence.csv."""
    size = "sequences" if "sequences" in table else "tokens"
    _need(table, ("layer", size, "time_us"))
    heads = model["num_attention_heads"]
    head = model.get("head_dim") or model["hidden_size"] / heads
    layer = _rows.Layer(
        hidden=model["hidden_size"], query=heads * head / tp, key=model.get("num_key_value_heads", heads) * head / tp,
        inter=model.get("intermediate_size", 0) / tp, vocab=model.get("vocab_size", 0) / tp, gated=True, value_bytes=2)
    frames = []
    for name, rows in table.groupby("layer"):
        matrix = _rows.matrix(_MATRICES.get(str(name), ""), layer)
        values = _rows.moved_values(_MOVES.get(str(name), ""), layer)
        if matrix is not None:
            frames.append(_rows.gemm(rows[size], *matrix).assign(time_s=rows["time_us"] * 1e-6, impl="vllm"))
        elif values is not None:
            frames.append(_rows.elementwise(rows[size], values, layer.value_bytes).assign(
                time_s=rows["time_us"] * 1e-6, impl=f"vllm {name}"))
    return frames


def _experts(table: pd.DataFrame, model: dict[str, Any], tp: int) -> list[pd.DataFrame]:
    _need(table, ("tokens", "activated_experts", "time_us"))
    loads = [_rows.spread(int(tokens) * model["num_experts_per_tok"], int(active), model["num_experts"])
             for tokens, active in zip(table["tokens"], table["activated_experts"], strict=True)]
    return [pd.DataFrame({"op": "moe", "tokens_per_expert": loads, "hidden": float(model["hidden_size"]),
                          "inter": model["moe_intermediate_size"] / tp, "time_s": table["time_us"] * 1e-6,
                          "impl": "vllm", "routing": "forced"})]


def _attention(table: pd.DataFrame, model: dict[str, Any], tp: int) -> list[pd.DataFrame]:
    _need(table, ("prefill_chunk", "kv_prefill", "n_decode", "kv_decode", "time_us"))
    heads = model["num_attention_heads"]
    widths = {"heads_q": heads / tp, "heads_kv": max(model.get("num_key_value_heads", heads) / tp, 1.0),
              "head_dim": float(model.get("head_dim") or model["hidden_size"] / heads), "impl": "vllm"}
    prefill, decode = table[table["n_decode"] == 0], table[table["prefill_chunk"] == 0]
    return [pd.DataFrame({"op": "attention_prefill", "batch": 1.0, "q_len": prefill["prefill_chunk"].astype(float),
                          "kv_len": (prefill["kv_prefill"] + prefill["prefill_chunk"]).astype(float),
                          "time_s": prefill["time_us"] * 1e-6}).assign(**widths),
            pd.DataFrame({"op": "attention_decode", "batch": decode["n_decode"].astype(float),
                          "kv_len": decode["kv_decode"].astype(float),
                          "time_s": decode["time_us"] * 1e-6}).assign(**widths)]


def _need(table: pd.DataFrame, columns: tuple[str, ...]) -> None:
    missing = [name for name in columns if name not in table]
    if missing:
        raise ValueError(f"the profile has no column {', '.join(missing)}; give the files as LLMServingSim wrote them")
