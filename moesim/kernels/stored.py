"""Tables that belong to a kernel model and are too long for its YAML file: a Parquet file, read when first used."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic_core import core_schema

from moesim.config import find_file, library_roots


class Stored:
    """A table in the Parquet file ``path`` (found like all files: working folder, library), or in memory."""

    def __init__(self, path: str = "", table: pd.DataFrame | None = None):
        self.path = path
        self._table = table
        self._made: dict[Any, Any] = {}

    def __bool__(self) -> bool:
        return bool(self.path) or self._table is not None

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Stored):
            return NotImplemented
        if self is other or bool(self) != bool(other) or not self:
            return bool(self) == bool(other)
        return self._file() == other._file() if self.path and other.path else self.table.equals(other.table)

    def __hash__(self) -> int:
        return hash(bool(self))

    def __repr__(self) -> str:
        return f"Stored({self.path!r})"

    @property
    def table(self) -> pd.DataFrame:
        """The rows. Raises ``ValueError`` if there is no such file, or it is not Parquet."""
        if self._table is None:
            file = self._file()
            try:
                self._table = pd.read_parquet(file)
            except (OSError, ValueError) as error:
                raise ValueError(f"{file}: is not a Parquet file ({error}); calibrate again") from None
        return self._table

    def _file(self) -> Path:
        return find_file(self.path, Path.cwd())

    def once(self, key: Any, make: Callable[[pd.DataFrame], Any]) -> Any:
        """Return what *make* makes of the table; made once for each *key*."""
        if key not in self._made:
            self._made[key] = make(self.table)
        return self._made[key]

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> core_schema.CoreSchema:
        return core_schema.no_info_plain_validator_function(
            cls._read, serialization=core_schema.plain_serializer_function_ser_schema(lambda value: value.name()))

    @classmethod
    def _read(cls, value: Any) -> Stored:
        if isinstance(value, Stored):
            return value
        if not isinstance(value, str):
            raise ValueError(f"{value!r} is not the name of a Parquet file")
        if value:
            find_file(value, Path.cwd())
        return cls(value)

    def name(self) -> str:
        """Return the path as another machine with the same library finds it. Raises ``ValueError`` in memory."""
        if not self.path and self._table is not None:
            raise ValueError("the model's table is in memory only; write it with kernels.save")
        path = Path(self.path)
        root = next((root for root in library_roots() if path.is_relative_to(root)), None)
        return path.relative_to(root).as_posix() if root and self.path else self.path
