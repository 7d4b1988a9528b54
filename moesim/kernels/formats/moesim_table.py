"""Tables of moesim itself, CSV or Parquet, as ``moesim measure`` writes them.

>>> import tempfile, pathlib
>>> path = pathlib.Path(tempfile.mkdtemp()) / "mine.csv"
>>> _ = path.write_text("op,dtype,time_s,tokens_per_expert,hidden,inter,cold\\nmoe,bf16,4.1e-05,4;0;2,64,32,true\\n")
>>> row = MoesimTable().read(path).iloc[0]
>>> print(row.tokens_per_expert, row.hidden, row.cold)
[4.0, 0.0, 2.0] 64 True
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from moesim.kernels.measurements import DEFAULTS, LOADS
from moesim.registry import part

_TEXT = ["op", "dtype", *(name for name, default in DEFAULTS.items() if isinstance(default, str))]
_FLAGS = {"true": True, "false": False, "1": True, "0": False, "": False}


@part
class MoesimTable:
    """Read the columns of ``moesim.kernels.measurements``. In CSV a list is ``4;0;2``, a flag true or false."""

    def matches(self, path: Path) -> bool:
        """Say whether *path* is a CSV or Parquet file with columns op and time_s."""
        path = Path(path)
        if not path.is_file() or path.suffix not in (".csv", ".parquet"):
            return False
        if path.suffix == ".parquet":
            return {"op", "time_s"} & set(pq.read_schema(path).names) != set()
        with path.open(encoding="utf-8-sig", errors="replace") as file:
            return bool({"op", "time_s"} & {name.strip() for name in file.readline().split(",")})

    def read(self, path: str | Path) -> pd.DataFrame:
        """Return the rows as they stand. Raises ``ValueError`` for what cannot be read."""
        path = Path(path)
        try:
            if path.suffix == ".parquet":
                return pd.read_parquet(path)
            table = pd.read_csv(path, encoding="utf-8-sig", dtype=dict.fromkeys(_TEXT, str), skipinitialspace=True)
        except (OSError, ValueError, pa.ArrowException) as error:
            raise ValueError(f"{path}: is not a table ({error}); give CSV or Parquet") from None
        for name in (name for name, default in DEFAULTS.items() if isinstance(default, bool) and name in table):
            table[name] = [self._flag(cell, f"{path}: row {i}: {name}") for i, cell in enumerate(table[name], 1)]
        if LOADS in table:
            table[LOADS] = pd.Series([self._loads(cell, f"{path}: row {i}: {LOADS}")
                                      for i, cell in enumerate(table[LOADS], 1)], dtype=object)
        return table

    @staticmethod
    def _flag(cell: Any, place: str) -> bool:
        text = "" if pd.isna(cell) else str(cell).strip().lower().removesuffix(".0")
        if text not in _FLAGS:
            raise ValueError(f"{place} is {cell!r}; write true or false")
        return _FLAGS[text]

    @staticmethod
    def _loads(cell: Any, place: str) -> list[float] | None:
        if pd.isna(cell):
            return None
        try:
            return [float(text) for text in str(cell).split(";")]
        except ValueError:
            raise ValueError(f"{place} is {cell!r}; write the tokens of each expert as 4;0;2") from None
