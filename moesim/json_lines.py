"""Files with a JSON object in every line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read(path: Path) -> list[dict[str, Any]]:
    """Return the objects of *path*. Raises ``ValueError`` with file, line and remedy."""
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}:{number}: not JSON ({error}); write one request per line") from None
        if not isinstance(row, dict):
            raise ValueError(f"{path}:{number}: not an object; write one request per line")
        rows.append(row)
    return rows
