"""Reading and writing small files whole: errors with the file's name, and nothing half-written."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from moesim import torch_file, whole
from moesim.placement.placement import PlacementError


def save(path: str | Path, content: bytes, suffixes: tuple[str, ...]) -> None:
    """Write *content* to *path*, whose name must end in one of *suffixes*; a reader never sees half of it."""
    path = Path(path)
    if path.suffix not in suffixes:
        raise PlacementError(f"{path}: the name of this format's files ends in {' or '.join(suffixes)}; rename it")
    try:
        whole.file(path, content)
    except OSError as error:
        raise PlacementError(f"{path}: cannot be written ({error.strerror or error}); choose another file") from None


def load_bytes(path: str | Path) -> bytes:
    """Return what is in the file *path*."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise PlacementError(f"{path}: cannot be read ({error.strerror or error}); give a placement file") from None


def load_text(path: str | Path) -> str:
    """Return the text in the file *path*."""
    try:
        return load_bytes(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise PlacementError(f"{path}: not text ({error.reason}, byte {error.start}); give a placement file") from None


def load_json(path: str | Path) -> Any:
    """Return the JSON in the file *path*."""
    try:
        return json.loads(load_text(path))
    except (ValueError, RecursionError) as error:
        if isinstance(error, PlacementError):
            raise
        raise PlacementError(f"{path}: not JSON, or cut short ({error}); write it again") from None


def load_numpy(path: str | Path) -> Any:
    """Return the array in the ``.npy``, or the arrays by name in the ``.npz`` file *path*. No pickles."""
    content = load_bytes(path)
    try:
        found = np.load(io.BytesIO(content), allow_pickle=False)
        return {name: found[name] for name in found.files} if hasattr(found, "files") else found
    except (ValueError, EOFError, OSError, KeyError, zipfile.BadZipFile) as error:
        raise PlacementError(f"{path}: not a NumPy file, or cut short ({error}); write it again") from None


def load_torch(path: str | Path) -> Any:
    """Return what ``torch.save`` wrote to *path*."""
    try:
        return torch_file.load(path)
    except torch_file.TorchFileError as error:
        raise PlacementError(str(error)) from None


def has_keys(path: Path, keys: set[str]) -> bool:
    """Say whether the ``.json`` or ``.pt`` file *path* is a mapping with one of *keys*."""
    loaders = {".json": load_json, ".pt": load_torch}
    if path.suffix not in loaders:
        return False
    content = loaders[path.suffix](path)
    return isinstance(content, dict) and bool(keys & content.keys())
