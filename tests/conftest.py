"""Fixtures that several kinds of tests share."""

from __future__ import annotations

import gc
import importlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# The default suite tries the same examples every time; `HYPOTHESIS_PROFILE=search pytest` looks for new ones.
# No deadline: the first example compiles the loops.
settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=50)
settings.register_profile("search", print_blob=True, deadline=None, max_examples=200)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))

# Two workers on two cores: one thread each (what numpy and torch start spins). Set before numpy is imported.
for library in ("OMP", "OPENBLAS", "MKL"):
    os.environ.setdefault(f"{library}_NUM_THREADS", "1")
gc.set_threshold(50_000, 20, 50)  # thousands of tests are alive all the time: look for garbage less often
# Every process that tests start would compile all of moesim, and every worker rewrite all tests.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

REPO = Path(__file__).resolve().parent.parent


def pytest_sessionfinish() -> None:
    """Look for garbage once; pytest, which does it ten times more, then has nothing left to look through."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def repo() -> Path:
    """The root of the checkout."""
    return REPO


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Other people's measurements (see docs/howto): tests that read them are marked ``external``."""
    folder = Path(os.environ.get("MOESIM_SHARED_DATA", REPO.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no external data in {folder}; set MOESIM_SHARED_DATA")
    return folder


@pytest.fixture(scope="session")
def other_hash_seed() -> str:
    """A ``PYTHONHASHSEED`` for another process that is not this one's (random where none is set)."""
    return "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"


@pytest.fixture(scope="session")
def study_modules() -> Callable[[Path, Sequence[str]], AbstractContextManager[dict[str, Any]]]:
    """How to import modules of a study's folder, by name: other studies may have modules of the same names."""

    @contextmanager
    def imported(folder: Path, names: Sequence[str]) -> Iterator[dict[str, Any]]:
        before = {name: sys.modules.pop(name, None) for name in names}
        sys.path.insert(0, str(folder))
        yield {name: importlib.import_module(name) for name in names}
        sys.path.remove(str(folder))
        for name in names:
            sys.modules.pop(name, None)
            if before[name] is not None:
                sys.modules[name] = before[name]

    return imported
