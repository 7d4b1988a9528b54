"""The Parquet form of a routing trace (docs/reference/trace.md): write, read, stream.

One row per token. ``experts`` and ``probs`` are fixed-size lists of L*M values, so that any tool that
reads Parquet gets one list per token. The sizes and the origin are JSON under the schema's key ``moesim``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from moesim.trace_checks import INTEGER_COLUMNS, STRUCTURAL, UNKNOWN, VERSION, TraceError, checked_experts

KEY = b"moesim"
LISTS = ("experts", "probs")
ROW_GROUP = 1 << 16  # token rows; about 60 MB of ids for 58 layers x 8
_BATCH = 1 << 14  # token rows decoded at a time


def schema(n_layers: int, n_ranked: int, probs: bool, meta: dict[str, Any]) -> pa.Schema:
    """Return the Arrow schema of a trace of that size."""
    n = n_layers * n_ranked
    fields = [pa.field(name, pa.from_numpy_dtype(dtype), nullable=False) for name, dtype in INTEGER_COLUMNS.items()]
    fields.append(pa.field("domain", pa.dictionary(pa.int32(), pa.string()), nullable=False))
    # "not null" elements spare the reader a definition level per id: half the time.
    fields.append(pa.field("experts", pa.list_(pa.field("element", pa.uint16(), nullable=False), n), nullable=False))
    if probs:
        element = pa.field("element", pa.float16(), nullable=False)
        fields.append(pa.field("probs", pa.list_(element, n), nullable=False))
    return pa.schema(fields, metadata={KEY: json.dumps(meta)})


class TraceWriter:
    """Write a trace part by part, so that it may be larger than memory. Use it in a ``with`` statement."""

    def __init__(self, path: str | Path, meta: dict[str, Any], probs: bool) -> None:
        missing = [key for key in STRUCTURAL if key not in meta]
        if missing:
            raise TraceError(f"{path}: meta lacks {', '.join(missing)}; take it from a RoutingTrace")
        self._schema = schema(meta["n_layers"], meta["n_ranked"], probs, meta)
        self._path = Path(path)
        if not self._path.parent.is_dir():
            raise TraceError(f"{path}: the folder {self._path.parent} does not exist; create it first")
        self._partial = self._path.with_name(self._path.name + ".partial")
        # Dictionaries suit ids (at most E values) and every reader knows them; probabilities hardly repeat.
        dictionaries = [*INTEGER_COLUMNS, "domain", "experts.list.element"]
        try:
            self._file = pq.ParquetWriter(self._partial, self._schema, compression="zstd", use_dictionary=dictionaries)
        except OSError as error:
            raise TraceError(f"{path}: cannot be written ({error.strerror or error}); choose another folder") from None

    def __enter__(self) -> TraceWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._file.close()
        if error is None:
            self._partial.replace(self._path)
        else:  # half a trace must not pass for one
            self._partial.unlink()

    def write(self, tokens: pd.DataFrame, experts: np.ndarray, probs: np.ndarray | None) -> None:
        """Append the rows of *tokens* with their *experts* [T, L, M] and, if the file has them, *probs*.

        Each call begins a new row group: give it tens of thousands of rows at a time.
        """
        domain = tokens["domain"].cat
        codes = pa.array(domain.codes.to_numpy(), pa.int32())
        columns: list[pa.Array] = [pa.array(tokens[name].to_numpy()) for name in INTEGER_COLUMNS]
        columns.append(pa.DictionaryArray.from_arrays(codes, pa.array(list(domain.categories), pa.string())))
        columns.append(_lists(experts, self._schema.field("experts").type))
        if probs is not None:
            columns.append(_lists(probs, self._schema.field("probs").type))
        self._file.write_table(pa.Table.from_arrays(columns, schema=self._schema), row_group_size=ROW_GROUP)


def _lists(values: np.ndarray, kind: pa.DataType) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), type=kind)


def is_trace_file(path: str | Path) -> bool:
    """Say whether *path* looks like Parquet by its name."""
    return Path(path).suffix == ".parquet"


def _open(path: str | Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path, pre_buffer=False)  # stream pages, do not load whole column chunks
    except (pa.ArrowInvalid, OSError) as error:
        raise TraceError(f"{path}: not a readable Parquet file ({str(error).splitlines()[0]})") from None


def read_meta(path: str | Path) -> dict[str, Any]:
    """Return the facts about the trace in the file *path*. Raises ``TraceError`` if the form is wrong."""
    return _checked_form(path, _open(path))


def _checked_form(path: str | Path, file: pq.ParquetFile) -> dict[str, Any]:
    """Return the facts of the file, whose columns are those of a trace. Raises ``TraceError`` otherwise."""
    try:
        meta = _meta(file.schema_arrow.metadata or {})
        _check_columns(file.schema_arrow, meta)
        if not file.metadata.num_rows:
            raise TraceError("the file has no rows; a trace needs at least one token")
    except TraceError as error:
        raise TraceError(f"{path}: {error}") from None
    return meta


def _meta(metadata: dict[bytes, bytes]) -> dict[str, Any]:
    if KEY not in metadata:
        raise TraceError("the schema has no metadata key 'moesim', so this is not a routing trace; "
                         "traces are written by RoutingTrace.write or `moesim convert`")
    try:
        meta = json.loads(metadata[KEY])
    except ValueError:
        raise TraceError("the metadata under 'moesim' is not JSON") from None
    missing = [key for key in STRUCTURAL if key not in meta]
    if missing:
        raise TraceError(f"the metadata under 'moesim' lacks {', '.join(missing)}")
    for key in STRUCTURAL:
        if not isinstance(meta[key], int) or meta[key] < 1:
            raise TraceError(f"the metadata under 'moesim' has {key} = {meta[key]!r}, not a positive integer")
    if meta["version"] != VERSION:
        raise TraceError(f"version {meta['version']} of the trace form; this moesim reads {VERSION}")
    return meta


def _check_columns(found: pa.Schema, meta: dict[str, Any]) -> None:
    wanted = schema(meta["n_layers"], meta["n_ranked"], "probs" in found.names, {})
    for name in found.names:
        if name not in wanted.names:
            raise TraceError(f"unknown column {name!r}; a trace has {', '.join(wanted.names)}: drop it")
    for field in wanted:
        if field.name not in found.names:
            raise TraceError(f"column {field.name!r} is missing")
        if not _same_type(found.field(field.name).type, field.type):
            raise TraceError(f"column {field.name!r} is {found.field(field.name).type}, must be "
                             f"{_plain(field.type)}; cast it, or write the file with RoutingTrace.write")


def _plain(kind: pa.DataType) -> str:
    if pa.types.is_fixed_size_list(kind):
        return f"fixed_size_list<{kind.value_type}>[{kind.list_size}] (n_layers * n_ranked)"
    return str(kind)


def _same_type(found: pa.DataType, wanted: pa.DataType) -> bool:
    if pa.types.is_dictionary(wanted):
        return pa.types.is_dictionary(found) and found.value_type in (pa.string(), pa.large_string())
    if pa.types.is_fixed_size_list(wanted):
        return (pa.types.is_fixed_size_list(found) and found.list_size == wanted.list_size
                and found.value_type == wanted.value_type)
    return found == wanted


def read_column(path: str | Path, name: str) -> np.ndarray:
    """Return one of the integer columns, [T]."""
    return _open(path).read(columns=[name]).column(0).to_numpy()


def scan(path: str | Path, columns: Sequence[str] = ()) -> Iterator[tuple[dict[str, Any], np.ndarray]]:
    """Yield, batch by batch, the token *columns* and the checked experts uint16 [batch, L, M].

    Nothing but the named columns is decoded; ``probs`` among them comes as float16 [batch, L, M], ``domain``
    as a list of names. Ids are checked as on construction of a trace; rows in messages count from the batch.
    """
    file = _open(path)
    meta = _checked_form(path, file)
    for start, batch in _batches(path, file, [*columns, "experts"]):
        values = {name: _values(batch.column(name), meta) for name in columns}
        experts = _values(batch.column("experts"), meta)
        try:
            yield values, checked_experts(experts, meta["n_experts"], meta["top_k"])
        except TraceError as error:
            raise TraceError(f"{path}, counting from row {start}: {error}") from None


def _batches(path: str | Path, file: pq.ParquetFile, columns: list[str]) -> Iterator[tuple[int, pa.RecordBatch]]:
    start = 0
    # One thread: a single column has nothing to decode in parallel, and hand-over halves the speed (measured).
    for batch in file.iter_batches(batch_size=_BATCH, columns=columns, use_threads=False):
        for name in columns:
            column = batch.column(name)
            empty = column.null_count or (name in LISTS and column.flatten().null_count)
            if empty and name != "domain":
                raise TraceError(f"{path}: column {name!r} has empty cells near row {start}; every token needs one")
        yield start, batch
        start += batch.num_rows


def _values(column: pa.Array, meta: dict[str, Any]) -> Any:
    if pa.types.is_fixed_size_list(column.type):
        # flatten, unlike values, respects the slice of the batch; both leave the ids where Arrow has them
        return column.flatten().to_numpy().reshape(len(column), meta["n_layers"], meta["n_ranked"])
    if pa.types.is_dictionary(column.type):
        return [UNKNOWN if name is None else name for name in column.to_pylist()]
    return column.to_numpy()


def read_arrays(path: str | Path) -> tuple[pd.DataFrame, np.ndarray, np.ndarray | None, dict[str, Any]]:
    """Return tokens, experts [T, L, M], probs or None, and meta of the file *path*, not yet checked by value.

    The arrays are filled batch by batch, so the peak is their own size plus one batch.
    """
    file = _open(path)
    meta = _checked_form(path, file)
    n_tokens = file.metadata.num_rows
    columns = file.schema_arrow.names
    tokens = file.read(columns=[*INTEGER_COLUMNS, "domain"]).to_pandas()
    shape = (n_tokens, meta["n_layers"], meta["n_ranked"])
    experts = np.empty(shape, dtype=np.uint16)
    probs = np.empty(shape, dtype=np.float16) if "probs" in columns else None
    for start, batch in _batches(path, file, [name for name in LISTS if name in columns]):
        stop = start + batch.num_rows
        experts[start:stop] = _values(batch.column("experts"), meta)
        if probs is not None:
            probs[start:stop] = _values(batch.column("probs"), meta)
    return tokens, experts, probs, meta
