"""The Parquet form of a trace: what is in the file, what comes back, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moesim import trace_file
from moesim.trace import RoutingTrace, TraceError, read_trace
from moesim.trace_stats import step_counts


def small(**more: object) -> RoutingTrace:
    experts = [[[0, 1], [2, 0]], [[0, 2], [1, 0]], [[1, 0], [2, 1]]]
    arrays: dict = {"request": [4, 4, 5], "phase": [0, 1, 0], "domain": ["b", "b", "a"], "model": "hand",
                    "licence": "MIT", "moe_layer_indices": [1, 2]}
    return RoutingTrace.from_arrays(experts, 3, 1, **(arrays | more))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    small(probs=np.full((3, 2, 2), 0.5)).write(tmp_path / "t.parquet")
    return tmp_path / "t.parquet"


def test_the_file_has_exactly_the_agreed_schema(file: Path) -> None:
    schema = pq.read_schema(file)
    assert {name: str(schema.field(name).type) for name in schema.names} == {
        "request": "int32", "step": "int32", "position": "int32", "phase": "uint8", "token_id": "int32",
        "domain": "dictionary<values=string, indices=int32, ordered=0>",
        "experts": "fixed_size_list<element: uint16 not null>[4]",
        "probs": "fixed_size_list<element: halffloat not null>[4]"}
    assert json.loads(schema.metadata[b"moesim"]) == {
        "version": 1, "model": "hand", "revision": None, "moe_layer_indices": [1, 2], "renormalised": None,
        "origin": None, "licence": "MIT", "synthetic": False, "n_layers": 2, "n_experts": 3, "top_k": 1, "n_ranked": 2}
    column = pq.ParquetFile(file).metadata.row_group(0).column(6)
    assert (column.path_in_schema, column.compression) == ("experts.list.element", "ZSTD")


def test_probabilities_are_left_out_where_there_are_none(tmp_path: Path) -> None:
    small().write(tmp_path / "t.parquet")
    assert "probs" not in pq.read_schema(tmp_path / "t.parquet").names
    assert read_trace(tmp_path / "t.parquet").probs is None


def test_other_programs_see_one_row_per_token(file: Path) -> None:
    table = pd.read_parquet(file)
    assert table["experts"].map(list).tolist() == [[0, 1, 2, 0], [0, 2, 1, 0], [1, 0, 2, 1]]
    assert table["domain"].tolist() == ["b", "b", "a"]


def test_many_row_groups_with_their_own_domains_are_one_trace(tmp_path: Path) -> None:
    parts = [RoutingTrace.from_arrays(np.full((3, 2, 1), i), 4, 1, request=i, phase=1, domain=f"d{3 - i}")
             for i in range(4)]
    with trace_file.TraceWriter(tmp_path / "t.parquet", parts[0].meta, probs=False) as writer:
        for part in parts:
            writer.write(part.tokens, part.experts, None)
    assert pq.ParquetFile(tmp_path / "t.parquet").num_row_groups == 4
    trace = read_trace(tmp_path / "t.parquet")
    assert trace.tokens["domain"].tolist() == ["d3"] * 3 + ["d2"] * 3 + ["d1"] * 3 + ["d0"] * 3
    assert trace.experts[:, 0, 0].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    steps, counts = step_counts(tmp_path / "t.parquet")
    assert steps.tolist() == [0, 1, 2] and (counts == 1).all() and counts.shape == (3, 2, 4)
    assert (counts.dtype, steps.dtype) == (np.int32, np.int32)


def test_scan_gives_what_is_asked_for_and_no_more(file: Path) -> None:
    (values, experts), = trace_file.scan(file, ("request", "domain", "probs"))
    assert list(values) == ["request", "domain", "probs"]
    assert values["request"].tolist() == [4, 4, 5] and values["domain"] == ["b", "b", "a"]
    assert values["probs"].shape == experts.shape == (3, 2, 2)
    assert experts.base is not None and not experts.flags.owndata, "ids are used where Arrow has them"


def test_a_writer_that_fails_leaves_no_file(tmp_path: Path) -> None:
    trace = small()
    with pytest.raises(KeyError), trace_file.TraceWriter(tmp_path / "t.parquet", trace.meta, probs=False) as writer:
        writer.write(trace.tokens, trace.experts, None)
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_a_writer_needs_the_sizes(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="meta lacks version, n_layers, n_experts, top_k, n_ranked; take it"):
        trace_file.TraceWriter(tmp_path / "t.parquet", {"model": "x"}, probs=False)


def replace(table: pa.Table, name: str, values: pa.Array) -> pa.Table:
    return table.set_column(table.schema.get_field_index(name), name, values)


def with_meta(table: pa.Table, **changes: object) -> pa.Table:
    meta = json.loads(table.schema.metadata[b"moesim"]) | changes
    return table.replace_schema_metadata({"moesim": json.dumps({k: v for k, v in meta.items() if v != "gone"})})


def lists(rows: list, kind: pa.DataType, size: int = 4) -> pa.Array:
    return pa.array(rows, pa.list_(kind, size))


IDS = [[0, 1, 2, 0], [0, 2, 1, 0], [1, 0, 2, 1]]


@pytest.mark.parametrize(("change", "message"), [
    (lambda t: t.replace_schema_metadata(None), "the schema has no metadata key 'moesim', so this is not a routing "
     "trace; traces are written by RoutingTrace.write or `moesim convert`"),
    (lambda t: t.replace_schema_metadata({"moesim": "{"}), "the metadata under 'moesim' is not JSON"),
    (lambda t: with_meta(t, n_layers="gone", top_k="gone"), "the metadata under 'moesim' lacks n_layers, top_k"),
    (lambda t: with_meta(t, n_layers="2"), "the metadata under 'moesim' has n_layers = '2', not a positive integer"),
    (lambda t: with_meta(t, version=9), "version 9 of the trace form; this moesim reads 1"),
    (lambda t: t.drop_columns(["phase"]), "column 'phase' is missing"),
    (lambda t: t.append_column("text", pa.array(["a", "b", "c"])), "unknown column 'text'; a trace has request, step, "
     "position, phase, token_id, domain, experts, probs: drop it"),
    (lambda t: replace(t, "step", pa.array([0, 0, 0], pa.int64())), "column 'step' is int64, must be int32; cast it, "
     "or write the file with RoutingTrace.write"),
    (lambda t: replace(t, "domain", pa.array(["a", "b", "b"])), "column 'domain' is string, must be "
     "dictionary<values=string, indices=int32, ordered=0>; cast it, or write the file with RoutingTrace.write"),
    (lambda t: replace(t, "experts", lists(IDS, pa.int32())), "column 'experts' is fixed_size_list<element: "
     "int32>[4], must be fixed_size_list<uint16>[4] (n_layers * n_ranked); cast it, or write the file with "
     "RoutingTrace.write"),
    (lambda t: with_meta(t, n_layers=3), "column 'experts' is fixed_size_list<element: uint16 not null>[4], must be "
     "fixed_size_list<uint16>[6] (n_layers * n_ranked); cast it, or write the file with RoutingTrace.write"),
    (lambda t: replace(t, "experts", lists([*IDS[:2], None], pa.uint16())),
     "column 'experts' has empty cells near row 0; every token needs one"),
    (lambda t: replace(t, "experts", lists([*IDS[:2], [1, None, 2, 1]], pa.uint16())),
     "column 'experts' has empty cells near row 0; every token needs one"),
    (lambda t: replace(t, "step", pa.array([0, None, 0], pa.int32())),
     "column 'step' has dtype float64; it must hold integers without gaps"),
    (lambda t: replace(t, "experts", lists([*IDS[:2], [1, 0, 2, 7]], pa.uint16())),
     "token row 2, layer 1: expert 7 is out of range, ids go from 0 to 2 (n_experts = 3); ranked: [2, 7]; count "
     "experts from 0 and leave shared experts out, or raise n_experts"),
    (lambda t: t.slice(0, 0), "the file has no rows; a trace needs at least one token"),
])
def test_wrong_files_are_refused(file: Path, change, message: str) -> None:
    pq.write_table(change(pq.read_table(file)), file)
    with pytest.raises(TraceError) as error:
        read_trace(file)
    assert str(error.value) == f"{file}: {message}"


def test_streaming_refuses_bad_ids_and_says_where(file: Path) -> None:
    pq.write_table(replace(pq.read_table(file), "experts", lists([*IDS[:2], [1, 0, 2, 2]], pa.uint16())), file)
    with pytest.raises(TraceError, match="counting from row 0: token row 2, layer 1: expert 2 is chosen twice"):
        step_counts(file)


def test_an_empty_domain_is_unknown(file: Path) -> None:
    domain = pa.array(["a", None, "b"]).dictionary_encode()
    pq.write_table(replace(pq.read_table(file), "domain", domain), file)
    assert read_trace(file).tokens["domain"].tolist() == ["a", "unknown", "b"]
    assert next(trace_file.scan(file, ("domain",)))[0]["domain"] == ["a", "unknown", "b"]


def test_plain_nullable_lists_of_other_writers_are_read(file: Path) -> None:
    pq.write_table(replace(pq.read_table(file), "experts", lists(IDS, pa.uint16())), file, compression="snappy")
    assert read_trace(file).experts.reshape(3, 4).tolist() == IDS


def test_a_file_that_is_not_parquet_is_told(tmp_path: Path) -> None:
    (tmp_path / "t.parquet").write_bytes(b"not parquet at all")
    with pytest.raises(TraceError, match="t.parquet: not a readable Parquet file"):
        read_trace(tmp_path / "t.parquet")
