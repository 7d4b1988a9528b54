"""Tables that commands read: CSV files row by row, matrices of bytes; each mistake with its file and line."""

from __future__ import annotations

import csv
import io
import re
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

Lines = Sequence[int]
WHOLE = ("src", "dst", "spine", "port")  # columns of whole numbers


@contextmanager
def placed(path: Path | None, word: str, lines: Lines) -> Iterator[None]:
    """Give what is wrong with "*word* 3", or with the columns, its place in the file *path*."""
    try:
        yield
    except ValueError as error:
        row = re.match(rf"{word} (\d+)\b", str(error))
        if path is not None and row:
            raise ValueError(f"{path}:{lines[int(row[1])]}: {error}") from None
        if path is not None and str(error).startswith(f"{word}s have "):
            raise ValueError(f"{path}:1: {error}") from None
        raise


def read_table(path: Path, numbers: Sequence[str]) -> tuple[pd.DataFrame, Lines]:
    """Return the rows of a CSV file, columns in *numbers* as numbers, and the line of each. Raises ``ValueError``."""
    (_, header), *records = _records(path)
    twice = [name for name in header if header.count(name) > 1]
    if twice:
        raise ValueError(f"{path}:1: column {twice[0]!r} is given twice; keep one")
    if not records:
        raise ValueError(f"{path}:1: no row follows the names of the columns; give at least one")
    for line, cells in records:
        if len(cells) != len(header):
            raise ValueError(f"{path}:{line}: {len(cells)} values in {len(header)} columns ({', '.join(header)}); "
                             f"give one for each")
    lines = [line for line, _ in records]
    table = pd.DataFrame([cells for _, cells in records], columns=header)
    for name in set(numbers) & set(header):
        table[name] = [_number(cell, f"{path}:{line}: {name}") for cell, line in zip(table[name], lines, strict=True)]
        if name in WHOLE and (table[name] % 1 == 0).all():
            table[name] = table[name].astype(np.int64)
    return table, lines


def _number(cell: str, place: str) -> float:
    try:
        return float(cell)
    except ValueError:
        raise ValueError(f"{place} is {cell!r}; give a plain number (bytes, seconds)") from None


def _records(path: Path) -> list[tuple[int, list[str]]]:
    """Return (line, cells) for each line of a CSV file that is not blank. Raises ``ValueError``."""
    try:
        reader = csv.reader(io.StringIO(path.read_text(encoding="utf-8-sig"), newline=""))
        found = [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader if any(map(str.strip, cells))]
    except UnicodeDecodeError:
        raise ValueError(f"{path}: is not UTF-8 text; give a CSV file") from None
    except csv.Error as error:
        raise ValueError(f"{path}:{reader.line_num}: {error}; give a CSV file") from None
    if not found:
        raise ValueError(f"{path}: is empty; give a CSV file")
    return found


def matrix(path: Path, n: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Return what the file *path* says that *n* devices send: bytes [n, n], and to nodes if it tells; ``ValueError``.

    A .csv file has a row of numbers per device, no header; .npy an array; .npz copies and perhaps node_copies.
    """
    if path.suffix == ".csv":
        rows = [[_number(cell, f"{path}:{line}: value {i + 1}") for i, cell in enumerate(cells)]
                for line, cells in _records(path)]
        same = all(len(row) == len(rows[0]) for row in rows)
        read: dict[str, Any] = {"copies": np.array(rows) if same else np.zeros(0)}
    elif path.suffix in (".npy", ".npz"):
        read = _arrays(path)
    else:
        raise ValueError(f"{path}: unknown kind of file; give .csv, .npy or .npz")
    copies = _matrix(path, read["copies"], (n, n))
    visits = read.get("node_copies")
    return copies, None if visits is None else np.asarray(visits, np.float64)


def _arrays(path: Path) -> dict[str, Any]:
    try:
        if path.suffix == ".npy":
            return {"copies": np.load(path, allow_pickle=False)}
        with np.load(path, allow_pickle=False) as found:
            arrays = dict(found)
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: is not an array file of numpy ({error}); write it with numpy.save") from None
    if not {"copies"} <= set(arrays) <= {"copies", "node_copies"}:
        raise ValueError(f"{path}: holds {', '.join(arrays) or 'nothing'}; give copies [devices, devices] and perhaps "
                         f"node_copies [devices, nodes]")
    return arrays


def _matrix(path: Path, given: Any, shape: tuple[int, int]) -> np.ndarray:
    """Return *given* as bytes [shape]. Raises ``ValueError``."""
    values = np.asarray(given)
    if values.shape != shape or values.dtype.kind not in "iuf":
        raise ValueError(f"{path}: is {values.dtype} {values.shape}; give bytes from each of {shape[0]} devices (row) "
                         f"to each (column)")
    wrong = ~(np.isfinite(values) & (values >= 0))
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        raise ValueError(f"{path}: row {row}, column {column} is {values[row, column]}; give bytes >= 0")
    return values.astype(np.float64)
