"""Files and folders that appear complete or not at all: a reader never sees half of one.

>>> import tempfile
>>> with tempfile.TemporaryDirectory() as scratch:
...     target = Path(scratch) / "out"
...     with folder(target, {"a.txt"}, "the example") as new:
...         _ = (new / "a.txt").write_text("x")
...         seen = target.exists()
...     seen, [path.name for path in target.iterdir()]
(False, ['a.txt'])
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Set
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def folder(path: str | Path, files: Set[str], writer: str) -> Iterator[Path]:
    """Give the block a new folder; when it is done that becomes *path*, in place of what was there.

    Raises ``FileExistsError`` as ``checked`` does.
    """
    path = checked(path, files, writer).resolve()  # what a link points to, not the link
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as scratch:
        new = Path(scratch) / "new"
        new.mkdir()
        yield new
        if path.exists():
            shutil.move(path, Path(scratch) / "old")
        shutil.move(new, path)


def checked(path: str | Path, files: Set[str], writer: str) -> Path:
    """Return *path* if *writer*, whose *files* have these names, may put a folder there.

    Raises ``FileExistsError`` if it is a file, or a folder that holds anything else.
    """
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise FileExistsError(f"{path} is a file; choose a folder")
    foreign = sorted({inside.name for inside in path.iterdir()} - files) if path.exists() else []
    if foreign:
        raise FileExistsError(f"{path} holds files that {writer} did not write ({', '.join(foreign[:3])}); choose "
                              f"another folder, or move them away")
    return path


def file(path: Path, content: bytes) -> None:
    """Write *content* to *path*. Raises ``OSError`` and leaves what was there if that fails."""
    part = path.with_name(path.name + ".part")
    try:
        part.write_bytes(content)
        os.replace(part, path)
    except OSError:
        part.unlink(missing_ok=True)
        raise
