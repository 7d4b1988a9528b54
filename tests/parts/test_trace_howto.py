"""What docs/howto/get-routing-traces.md shows runs, and its formats exist."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from moesim import registry


def test_the_page_runs(repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                       capsys: pytest.CaptureFixture) -> None:
    page = (repo / "docs/howto/get-routing-traces.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    for block in re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL):
        exec(compile(block, "get-routing-traces.md", "exec"), {})
    out = capsys.readouterr().out
    assert str(np.array([[1, 2, 1, 2], [2, 0, 3, 1]])) in out
    assert "True {'load_max_over_mean':" in out
    for kind, name in (("format", "esft_text"), ("format", "npz"), ("transform", "shuffle_within_layer")):
        assert name in page and name in registry.names(kind)
