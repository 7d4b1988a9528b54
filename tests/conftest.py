"""Fixtures that several kinds of tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

# The default suite tries the same examples every time; `HYPOTHESIS_PROFILE=search pytest` looks for new ones.
# No deadline: the first example compiles the loops.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.register_profile("search", print_blob=True, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))

REPO = Path(__file__).resolve().parent.parent


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
