"""Every file that ships loads, and says where its numbers come from."""

from __future__ import annotations

from pathlib import Path

import pytest

from moesim import config, scenario
from moesim.hardware import Device, HardwareSpec
from moesim.model import ModelSpec

ROOT = Path(__file__).resolve().parent.parent
SPECS = [*((ModelSpec, f) for f in sorted((ROOT / "workloads/models").glob("*.yaml"))),
         *((HardwareSpec, f) for f in sorted((ROOT / "hw_configs/machines").glob("*.yaml"))),
         *((Device, f) for f in sorted((ROOT / "hw_configs/devices").glob("*.yaml")))]
SCENARIOS = sorted(ROOT.glob("studies/*/scenario*.yaml"))


@pytest.mark.parametrize(("cls", "file"), SPECS, ids=lambda v: v.stem if isinstance(v, Path) else "")
def test_spec_loads_and_names_its_source(cls: type[config.Spec], file: Path) -> None:
    spec = config.load(cls, file)
    assert len(spec.source) > 10  # type: ignore[attr-defined]
    assert "#" in file.read_text(), "numbers have source comments"
    assert config.build(cls, config.Document(spec.dump())) == spec


@pytest.mark.parametrize("file", SCENARIOS, ids=lambda f: f.parent.name)
def test_scenario_loads(file: Path) -> None:
    loaded = scenario.load(file)
    assert scenario.override(loaded, ()) == loaded


def test_there_is_something_to_load() -> None:
    names = {f.stem for _, f in SPECS}
    assert {"mixtral-8x7b", "qwen3-30b-a3b", "deepseek-v2-lite", "deepseek-v3", "olmoe-1b-7b", "gpt-oss-20b",
            "gpt-oss-120b", "a100-1x8", "h100-1x8", "h200-1x8", "h200-2x8", "h200-8x8"} <= names
    assert SCENARIOS


def test_examples_leave_nothing_in_the_root() -> None:
    assert not [file.name for file in ROOT.iterdir() if file.suffix in (".parquet", ".csv", ".npz", ".png")]
