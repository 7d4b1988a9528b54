"""What docs/howto/load-a-placement-into-an-engine.md shows, runs; its table is complete."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from moesim import registry
from moesim.placement import Placement


@pytest.fixture(scope="module")
def page(repo: Path) -> str:
    return (repo / "docs/howto/load-a-placement-into-an-engine.md").read_text(encoding="utf-8")


def test_the_commands_run(page: str, run_page: Callable[[str], list[str]], tmp_path: Path) -> None:
    run_page(page.replace("--devices 8", "--devices 8 --solver lpt", 2))  # quicker: the page is about files
    own, back = (Placement.load(tmp_path / "out" / name) for name in ("placement.json", "back.json"))
    assert np.array_equal(own.replicas, back.replicas)


def test_the_table_has_every_format(page: str) -> None:
    assert re.findall(r"^\| `(\w+)` \|", page, flags=re.MULTILINE) == [
        "moesim_json", "sglang", "trtllm", "vllm", "eplb", "exflow"]
    assert set(registry.names("placement_format")) == {"moesim_json", "sglang", "trtllm", "vllm", "eplb", "exflow"}


def test_counts_of_an_engine_become_its_placement(page: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    counts = torch.randint(1, 1000, (2, 4, 256), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    counts[:, 0] = 0
    torch.save({"rank": 0, "logical_count": counts}, tmp_path / "dump.pt")
    block = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)[-1]
    names: dict = {}
    exec(compile(block, "page", "exec"), names)
    names["place_recorded"](tmp_path / "dump.pt", tmp_path / "p.json")
    rows = json.loads((tmp_path / "p.json").read_text())["physical_to_logical_map"]
    assert [len(row) for row in rows] == [288] * 4 and rows[0][:257] == [*range(256), 0]
