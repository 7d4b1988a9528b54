"""Read what ``torch.save`` wrote, without torch and without running anything that the file says.

Such a file is a zip archive: ``data.pkl``, a pickle of the object in which tensors are calls of
``torch._utils._rebuild_tensor_v2`` on storages named by persistent ids, and one entry of raw bytes per storage
(``_save`` and ``persistent_load`` of torch/serialization.py). A pickle may name any function of any package; here only
the names in ``_STORAGES``, that one function and ``OrderedDict`` mean something, and they mean numpy arrays and dicts.
"""

from __future__ import annotations

import io
import pickle
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

_STORAGES = {"BoolStorage": np.bool_, "ByteStorage": np.uint8, "CharStorage": np.int8, "ShortStorage": np.int16,
             "IntStorage": np.int32, "LongStorage": np.int64, "HalfStorage": np.float16, "FloatStorage": np.float32,
             "DoubleStorage": np.float64}
_MOST = 1 << 32  # elements: no count or trace file has more, but strides of 0 can claim any number


class TorchFileError(ValueError):
    """A file that is no ``torch.save`` archive, is damaged, or holds what is not read."""


def load(path: str | Path) -> Any:
    """Return the object in the file *path*: numbers, text, lists, tuples, dicts, and tensors as numpy arrays.

    Raises ``TorchFileError`` with the file and the remedy. Nothing in the file is executed.
    """
    path = Path(path)
    try:
        if not path.is_file():
            raise TorchFileError("no such file; correct the path")
        if not zipfile.is_zipfile(path):
            raise TorchFileError("not a zip archive of torch.save (or one cut short, or of torch before 1.6); save it "
                                 "again with torch.save")
        with zipfile.ZipFile(path) as archive:
            return _load(archive)
    except TorchFileError as error:
        raise TorchFileError(f"{path}: {error}") from None
    except Exception as error:  # a damaged pickle raises whatever its bytes happen to lead to
        raise TorchFileError(f"{path}: damaged ({type(error).__name__}: {error}); copy or record it again") from None


def _load(archive: zipfile.ZipFile) -> Any:
    entries = {name.partition("/")[2]: name for name in archive.namelist()}
    if "data.pkl" not in entries:
        raise TorchFileError(f"holds no data.pkl but {', '.join(archive.namelist()[:5])}; give a file of torch.save")
    packed = [info.filename for info in archive.infolist() if info.compress_type != zipfile.ZIP_STORED]
    if packed:  # torch never compresses; what unpacks to more than the file could fill the memory
        raise TorchFileError(f"its entry {packed[0]} is compressed, which torch.save never does; save it again")
    order = archive.read(entries["byteorder"]).decode() if "byteorder" in entries else "little"
    if order != sys.byteorder:
        raise TorchFileError(f"written on a {order}-endian machine; save it again on a {sys.byteorder}-endian one")

    def storage(kind: Any, key: Any, count: Any) -> np.ndarray:
        return np.frombuffer(archive.read(entries[f"data/{key}"]), dtype=kind, count=count)

    return _Unpickler(io.BytesIO(archive.read(entries["data.pkl"])), storage).load()


class _Unpickler(pickle._Unpickler):
    """An unpickler whose every name is one of ours.

    The one in Python, not in C: that one makes tables as long as a number in the file says, gigabytes for a few bytes.
    """

    def __init__(self, file: io.BytesIO, storage: Callable[[Any, Any, Any], np.ndarray]) -> None:
        super().__init__(file)
        self._storage = storage

    def find_class(self, module: str, name: str) -> Any:
        """Return our stand-in for ``module.name``; a new one each time, so that a file can spoil only its own."""
        if module == "torch" and name in _STORAGES:
            return name  # not the dtype: a pickle can give any object a new state, and dtypes are shared by all arrays
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda *arguments: _tensor(*arguments)
        if (module, name) == ("collections", "OrderedDict"):
            return lambda *arguments: dict(*arguments)
        raise TorchFileError(f"asks for {module}.{name}, which is refused: only tensors of whole, half, single and "
                             "double numbers, lists and dicts are read; save those alone")

    def persistent_load(self, pid: Any) -> np.ndarray:
        """Return the elements of a storage, a flat array."""
        tag, kind, key, _location, count = pid
        known = isinstance(kind, str) and kind in _STORAGES
        if tag != "storage" or not known or not isinstance(key, str) or type(count) is not int:
            raise TorchFileError(f"names a storage in a way that torch does not: {pid!r:.80}; save it again")
        return self._storage(_STORAGES[kind], key, count)


def _tensor(storage: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_rest: Any) -> np.ndarray:
    """Return the tensor on *storage*, a copy; *offset* and *stride* count elements, as in torch."""
    numbers = [offset, *size, *stride]
    if not isinstance(storage, np.ndarray) or any(type(n) is not int or n < 0 for n in numbers):
        raise TorchFileError(f"a tensor of size {size!r:.60} and stride {stride!r:.60} is no tensor; save it again")
    count = 1
    for n in size:
        count *= n
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if count and (last >= len(storage) or count > _MOST):
        raise TorchFileError(f"a tensor of size {list(size)} and stride {list(stride)} does not fit its storage of "
                             f"{len(storage)} elements; copy or record the file again")
    if not count:
        return np.zeros(size, storage.dtype)
    steps = tuple(step * storage.itemsize for step in stride)
    return np.lib.stride_tricks.as_strided(storage[offset:], size, steps, writeable=False).copy()
