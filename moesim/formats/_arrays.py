"""What readers of NumPy files share."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np

from moesim.trace import TraceError


def load(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of the ``.npz``, or the one (named "") of the ``.npy`` file *path*; no pickles."""
    try:
        return decode(Path(path).read_bytes())
    except OSError as error:
        raise TraceError(f"{path}: cannot be read ({error.strerror or error})") from None
    except ValueError as error:
        raise TraceError(f"{path}: {error}") from None


def decode(content: bytes) -> dict[str, np.ndarray]:
    """Return the arrays in the bytes of such a file. Raises ``ValueError``."""
    try:
        found = np.load(io.BytesIO(content), allow_pickle=False)
        return {name: found[name] for name in found.files} if hasattr(found, "files") else {"": found}
    except (ValueError, EOFError, OSError, KeyError, zipfile.BadZipFile) as error:
        raise ValueError(f"not a NumPy file, or cut short ({error}); write it again with numpy.save") from None


def dimensions(path: Path) -> int:
    """Return the axes of the array in the ``.npy`` file *path*, 0 if it is none."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError):
        return 0
    return array.ndim if isinstance(array, np.ndarray) else 0
