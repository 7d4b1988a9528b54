"""Tables of measurements: what is read, and that what is wrong is named with its row and the reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from moesim import registry
from moesim.kernels import fit, measurements
from moesim.kernels.measurements import MeasurementError, checked, read
from moesim.kernels.rates import Rates

H200 = Rates(flop_per_s=989.4e12, bandwidth=4.8e12, multiprocessors=132, weight_bytes=2.0, value_bytes=2.0)


def gemm(**columns: Any) -> pd.DataFrame:
    """Two rows of a product; *columns* replace or add."""
    return pd.DataFrame({"op": "gemm", "dtype": "bf16", "m": [1.0, 64.0], "n": 4096.0, "k": 4096.0,
                         "time_s": [12e-6, 14e-6]} | columns)


def test_shapes_come_back_as_arrays() -> None:
    experts = pd.DataFrame({"op": "moe", "dtype": "bf16", "hidden": 64.0, "inter": 32.0, "time_s": [1e-5, 2e-5],
                            "tokens_per_expert": [[1, 2], [3, 0, 4]]})
    both = checked(pd.concat([gemm(), experts], ignore_index=True))
    assert both.ops() == ["gemm", "moe"]
    assert both.of("moe").shapes["tokens_per_expert"].tolist() == [[1, 2, 0], [3, 0, 4]]
    assert both.of("gemm").shapes["m"].tolist() == [1, 64] and both.of("gemm").seconds.tolist() == [12e-6, 14e-6]
    assert measurements.describe(both.of("moe"), 1) == "moe (7 tokens, hidden 64, inter 32)"


def test_optional_shapes_that_some_rows_have() -> None:
    experts = pd.DataFrame({"op": "moe", "dtype": "bf16", "hidden": 64.0, "inter": 32.0, "time_s": [1e-5, 2e-5],
                            "tokens_per_expert": [[1, 2], [3, 0, 4]], "rows": [9.0, None], "matrices": [None, 2.0]})
    shapes = checked(experts).of("moe").shapes
    assert shapes["rows"].tolist() == [9, 7] and shapes["matrices"].tolist() == [3, 2]
    decode = pd.DataFrame({"op": "attention_decode", "dtype": "bf16", "batch": [1.0, 2.0], "kv_len": 8.0,
                           "heads_q": 4.0, "heads_kv": 2.0, "head_dim": 16.0,
                           "kv_values": [20.0, None], "time_s": 1e-5})
    assert checked(decode).of("attention_decode").shapes["kv_values"].tolist() == [20, 64]


@pytest.mark.parametrize(("table", "message"), [
    (gemm().drop(columns="time_s"), "t.csv: has no column time_s; add what is missing"),
    (gemm().drop(columns="k"), "t.csv: row 1: gemm has no k; add the column"),
    (gemm(tim_s=1.0), "unknown column 'tim_s'; did you mean 'time_s'?"),
    (gemm(time_s=[12e-6, np.nan]), "t.csv: row 2: time_s nan must be finite and above 0"),
    (gemm(time_s=[12e-6, -1.0]), "row 2: time_s -1 must be finite and above 0"),
    (gemm(time_s=["fast", 1e-5]), "row 1: time_s 'fast' must be finite"),
    (gemm(op=["gemm", "gem"]), "row 2: op 'gem' is unknown; did you mean 'gemm'?"),
    (gemm(dtype="bf61"), "row 1: dtype 'bf61' is unknown; did you mean 'bf16'?"),
    (gemm(k=[4096.0, np.nan]), "row 2: gemm has k nan; give a number >= 0"),
    (gemm(m=64.0), "row 2: gemm repeats row 1: the same shape, impl"),
    (gemm(split="train"), "row 1: split 'train' is none of fit, test, reserve"),
    (gemm(status="bad"), "row 1: status 'bad' is none of ok, oom, error"),
    (gemm(cold="no"), "row 1: cold is 'no'; give true or false"),
    (gemm(time_p10_s="x"), "row 1: time_p10_s is 'x'; give a number"),
    (gemm(time_p10_s=2.0, time_p90_s=1.0), "row 1: time_p10_s 2 is above time_p90_s"),
    (gemm().iloc[:0], "has no rows"),
    (gemm(op="moe", hidden=1.0, inter=1.0, tokens_per_expert=[[1, -1], [2, 2]]), "give a list of numbers >= 0"),
])
def test_what_is_wrong_is_named(table: pd.DataFrame, message: str) -> None:
    with pytest.raises(MeasurementError) as error:
        checked(table, "t.csv")
    assert message in str(error.value)


def test_many_mistakes_are_counted() -> None:
    with pytest.raises(MeasurementError) as error:
        checked(pd.DataFrame({"op": "gemm", "dtype": "bf16", "m": range(8), "n": 1, "k": 1, "time_s": -1.0}))
    assert str(error.value).count("\n") == 5 and "and 3 more rows" in str(error.value)


def test_rows_that_failed_are_kept_and_not_used() -> None:
    table = checked(gemm(time_s=[12e-6, np.nan], status=["ok", "oom"]))
    assert len(table.table) == 2 and len(table.of("gemm")) == 1


def test_a_point_measured_again_is_a_sentinel() -> None:
    assert len(checked(gemm(m=64.0, sentinel=True)).of("gemm")) == 2


@pytest.mark.parametrize(("columns", "message"), [
    # 4096 x 4096 weights of 2 bytes are 34 MB: 7 us at 4.8 TB/s. Given as if microseconds were seconds / 1e9.
    ({"time_s": [1.2e-9, 1.4e-9], "cold": True}, r"row 1: gemm \(m 1, n 4096, k 4096\): 1.2e-09 s imply 5\S+ times the "
                                                 r"peak of 4.8e\+12 bytes/s; give time_s in seconds"),
    ({"m": [1.0, 32768.0], "time_s": [12e-6, 1e-4]}, r"row 2: gemm .*: 0.0001 s imply 11.1 times .* FLOP/s"),
    ({"n": 65536.0, "k": 65536.0, "time_s": 1e-4}, "row 1: .* bytes/s"),  # 8 GB: in no cache
])
def test_times_in_another_unit_beat_the_peak(columns: dict[str, Any], message: str) -> None:
    table = checked(gemm(**columns))
    with pytest.raises(MeasurementError, match=message):
        table.check_peaks(H200)
    with pytest.raises(MeasurementError, match=message):
        fit(table, "h200")


def test_warm_rows_may_beat_the_memory() -> None:
    checked(gemm(time_s=[4e-6, 5e-6])).check_peaks(H200)
    with pytest.raises(MeasurementError):
        checked(gemm(time_s=[4e-6, 5e-6], cold=True)).check_peaks(H200)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_own_tables(tmp_path: Path, suffix: str) -> None:
    table = gemm(cold=[True, False], impl="cublas", sentinel=False, x_power_w=300.0)
    path = tmp_path / f"mine{suffix}"
    table.to_csv(path, index=False) if suffix == ".csv" else table.to_parquet(path)
    found = read(path)
    assert found.table["cold"].tolist() == [True, False] and found.table["impl"].tolist() == ["cublas"] * 2
    assert found.of("gemm").shapes["n"].tolist() == [4096, 4096] and found.table["x_power_w"].tolist() == [300.0] * 2


def test_own_csv_says_where_it_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    for cell, column, message in (("maybe", "cold", "row 1: cold is 'maybe'; write true or false"),
                                  ("4;x", "tokens_per_expert", "row 1: tokens_per_expert is '4;x'; write the tokens")):
        path.write_text(f"op,dtype,time_s,{column}\ngemm,bf16,1e-5,{cell}\n")
        with pytest.raises(ValueError, match=message):
            read(path)
    path.write_text("what,is,this\n1,2,3\n")
    with pytest.raises(MeasurementError, match="no format knows it; name one: aiconfigurator"):
        read(path)
    with pytest.raises(MeasurementError, match="no such file"):
        read(tmp_path / "nothing.csv")


def aiconfigurator(path: Path, op: str, rows: list[dict[str, Any]]) -> Path:
    common = {"framework": "VLLM", "version": "0.24.0", "device": "NVIDIA H200", "op_name": op, "kernel_source": "k"}
    pd.DataFrame([common | row for row in rows]).to_parquet(path)
    return path


def test_aiconfigurator_attention(tmp_path: Path) -> None:
    row = {"batch_size": 4, "isl": 1, "num_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "step": 99,
           "attn_dtype": "bfloat16", "window_size": 0, "latency": 0.02}
    rows = [row, row | {"window_size": 128}, row | {"attn_dtype": "int7", "step": 5}]  # windows, unknown types: out
    points = read(aiconfigurator(tmp_path / "g.parquet", "generation_attention", rows)).of("attention_decode")
    assert len(points) == 1 and points.seconds[0] == pytest.approx(20e-6)
    assert {n: v[0] for n, v in points.shapes.items()} == {
        "batch": 4, "kv_len": 100, "heads_q": 32, "heads_kv": 8, "head_dim": 128}


def test_aiconfigurator_experts(tmp_path: Path) -> None:
    row = {"moe_dtype": "bfloat16", "num_tokens": 64, "hidden_size": 2048, "inter_size": 768, "topk": 8,
           "num_experts": 128, "moe_tp_size": 2, "moe_ep_size": 4, "distribution": "balanced", "latency": 0.1}
    skewed = row | {"distribution": "power_law_1.2", "moe_tp_size": 1}
    wrong = row | {"num_experts": 512, "num_tokens": 48}  # known to be wrong in the published table
    points = read(aiconfigurator(tmp_path / "m.parquet", "moe", [row, skewed, wrong])).of("moe")
    assert len(points) == 2 and points.shapes["tokens_per_expert"].shape == (2, 32)
    assert points.shapes["inter"].tolist() == [384, 768] and points.shapes["rows"].tolist() == [512, 512]
    even, uneven = points.shapes["tokens_per_expert"]
    assert even.tolist() == [4] * 32 and uneven.sum() > 128 and uneven.max() > 8  # the most loaded of four ranks


def test_aiconfigurator_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="operator mla; moesim reads gemm, moe"):
        read(aiconfigurator(tmp_path / "a.parquet", "mla", [{"latency": 1.0}]))
    with pytest.raises(ValueError, match="has no column gemm_dtype, m, n, k"):
        read(aiconfigurator(tmp_path / "b.parquet", "gemm", [{"latency": 1.0}]))


def test_llmservingsim(tmp_path: Path) -> None:
    folder = tmp_path / "perf" / "GPU" / "org" / "model" / "bf16" / "tp2"
    folder.mkdir(parents=True)
    (tmp_path / "model_configs" / "org").mkdir(parents=True)
    (tmp_path / "model_configs" / "org" / "model.json").write_text(json.dumps({
        "hidden_size": 64, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 16, "intermediate_size": 96,
        "vocab_size": 1000}))
    (folder / "dense.csv").write_text("layer,tokens,time_us\nqkv_proj,3,5.0\ngate_up_proj,3,6\nlayernorm,3,2\n"
                                      "odd,3,1\n")
    (folder / "per_sequence.csv").write_text("layer,sequences,time_us\nlm_head,2,9\nsampler,2,4\n")
    (folder / "attention.csv").write_text("prefill_chunk,kv_prefill,n_decode,kv_decode,time_us\n16,32,0,0,7\n"
                                          "0,0,4,100,8\n16,0,4,100,9\n")
    found = read(folder)
    shapes = found.of("gemm").shapes
    assert sorted(zip(*(shapes[n].tolist() for n in "mnk"), strict=True)) == [  # n: (8 + 2 * 4) * 16 / 2, 2 * 96 / 2
        (2, 500, 64), (3, 96, 64), (3, 128, 64)]
    assert found.of("elementwise").shapes["bytes"].tolist() == [3 * 4 * 64 * 2]
    prefill, decode = (found.of(f"attention_{part}").shapes for part in ("prefill", "decode"))
    assert (prefill["q_len"].tolist(), prefill["kv_len"].tolist(), prefill["heads_kv"].tolist()) == ([16], [48], [2])
    assert (decode["batch"].tolist(), decode["kv_len"].tolist(), decode["heads_q"].tolist()) == ([4], [100], [4])
    (tmp_path / "model_configs" / "org" / "model.json").unlink()
    with pytest.raises(ValueError, match="does not say the model's widths, .* give {name: llmservingsim, config:"):
        read(folder)


def test_vidur_attention(tmp_path: Path) -> None:
    path = tmp_path / "attention.csv"
    path.write_text(
        "time_stats.attn_prefill.median,time_stats.attn_decode.median,n_embd,n_q_head,n_kv_head,"
        "num_tensor_parallel_workers,batch_size,prefill_chunk_size,kv_cache_size,is_prefill\n"
        "0.5,,4096,32,8,2,1,128,64,True\n,0.25,4096,32,8,2,3,0,95,False\n")
    found = read(path, {"name": "vidur", "device": "A100"})
    prefill, decode = found.of("attention_prefill"), found.of("attention_decode")
    assert prefill.seconds.tolist() == [0.5e-3] and decode.seconds.tolist() == [0.25e-3]
    assert (prefill.shapes["q_len"][0], prefill.shapes["kv_len"][0], prefill.shapes["heads_q"][0]) == (128, 192, 16)
    assert (decode.shapes["batch"][0], decode.shapes["kv_len"][0], decode.shapes["head_dim"][0]) == (3, 96, 128)
    assert set(found.table["device"]) == {"A100"} and set(found.table["dtype"]) == {"fp16"}


def test_vidur_products(tmp_path: Path) -> None:
    path = tmp_path / "mlp.csv"
    path.write_text(
        "time_stats.attn_pre_proj.median,time_stats.mlp_act.median,time_stats.add.median,n_head,n_kv_head,n_embd,"
        "n_expanded_embd,vocab_size,use_gated_mlp,num_tokens,num_tensor_parallel_workers\n"
        "1.9,0.3,0.05,32,32,4096,11008,32768,True,64,1\n1.8,0.3,0.05,32,32,4096,11008,32768,True,64,1\n")
    found = read(path)
    assert found.of("gemm").shapes["n"].tolist() == [3 * 4096] * 2  # measured twice: sentinels
    assert found.table["sentinel"].all()
    assert set(found.of("elementwise").shapes["bytes"]) == {64 * 3 * 4096 * 2, 64 * 3 * 11008 * 2}


def test_every_format_says_no_to_other_files(tmp_path: Path) -> None:
    other = tmp_path / "x.txt"
    other.write_text("hello")
    for name in registry.names("measurement_format"):
        part = registry.make("measurement_format", name)
        assert not part.matches(other) and not part.matches(tmp_path / "missing.csv")
