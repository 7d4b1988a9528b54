"""The study of collectives: its pieces by hand, small; the whole of it is slow."""

from __future__ import annotations

import importlib.util
import runpy
import shutil
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest

from moesim import config
from moesim.hardware import HardwareSpec
from moesim.network import Messages
from moesim.trace import RoutingTrace

STUDY = Path(__file__).resolve().parents[2] / "studies" / "02_collectives"


def piece(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"study_collectives_{name}", STUDY / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


crossover, routing, words, drawing = (piece(name) for name in ("crossover", "routing", "words", "drawing"))
MIB = 2**20


@pytest.mark.parametrize("name", ["ndm-a100-v4", "h800"])
def test_machines_load_and_say_where_numbers_come_from(name: str) -> None:
    spec = config.load(HardwareSpec, STUDY / f"{name}.yaml")
    assert len(spec.source) > 10 and spec.fabric.n_hosts == spec.n_devices


def test_times_by_hand() -> None:
    """64 GPUs, 1 MiB a GPU, us. NVLink 224.46 GB/s, ports 24 GB/s, copies 1733.15 GB/s."""
    found = crossover.times([64], [MIB]).set_index("algorithm")["time_s"] * 1e6
    port = MIB * 56 / 64 / 24e3
    inside = MIB * 7 / 8 / 224.46e3
    stage = 8.56 + 7 * 0.569 + inside + np.sqrt(20.634 * inside)
    assert found["flat"] == pytest.approx(20 + 56 * 2 + port)
    assert found["PXN"] == pytest.approx(20 + 7 * 2 + port)  # NVLink hides behind the ports
    assert found["bi-level"] == pytest.approx(stage + 20 + 7 * 2 + port)
    copy = 2 * MIB / (0.85 * 2039e3)  # read and written
    assert found["hierarchical, one copy"] == pytest.approx(found["bi-level"] + copy)
    assert found["2DH"] == pytest.approx(found["bi-level"] + 2 * copy)


def test_in_one_node_there_is_nothing_to_choose() -> None:
    found = crossover.times([8], [MIB, 256 * MIB])
    assert (found.groupby("size_bytes")["time_s"].nunique() == 1).all()


def test_parts_add_up_and_say_what_costs() -> None:
    parts, times = crossover.parts(64, [MIB], ("flat", "2DH")), crossover.times([64], [MIB], None, ("flat", "2DH"))
    total = parts.groupby("algorithm")["time_s"].sum()
    pd.testing.assert_series_equal(total, times.set_index("algorithm")["time_s"].sort_index())
    found = parts.set_index(["algorithm", "part"])["time_s"]
    assert found["flat", "messages"] == pytest.approx(56 * 2e-6) and found["flat", "copies"] == 0
    assert found["2DH", "messages"] == pytest.approx(7 * 2e-6 + 7 * 0.569e-6)
    assert found["2DH", "startup"] == pytest.approx(28.56e-6) and (parts["time_s"] >= 0).all()


def test_pairwise_is_never_before_flat() -> None:
    net, messages = crossover.network(32), crossover.even(32)
    for size in (2**16, MIB, 256 * MIB):
        assert net.exchange("pairwise", messages, size / 32).time_s >= net.exchange("flat", messages, size / 32).time_s


def test_ties_and_losses_have_no_crossover() -> None:
    assert crossover.crossover(256 * MIB, last=64) is None
    assert crossover.crossover(MIB) == 32


def test_a_limit_keeps_tokens_to_so_many_groups() -> None:
    rng = np.random.default_rng(0)
    chosen = routing.choices(500, 8, 4, rng)
    assert chosen.shape == (500, 8) and all(len(set(row)) == 8 for row in chosen.tolist())
    assert routing.visits(chosen, 8).sum(axis=1).max() == 4
    assert routing.visits(routing.choices(500, 8, 8, rng), 8).sum(axis=1).max() > 4


def test_drawn_messages_count_what_tokens_visit() -> None:
    drawn = routing.draw(100, 2, limited=False)
    assert (drawn.experts.sum(axis=1) == 800).all()
    assert (drawn.devices <= drawn.experts).all() and (drawn.nodes <= 100).all()
    assert (drawn.devices.reshape(16, 2, 8).max(axis=2) <= drawn.nodes).all()
    assert isinstance(drawn.messages("device"), Messages) and drawn.messages("expert").n_experts == 256


def test_expected_nodes_of_every_pair_counted() -> None:
    pairs = [(i, j) for i in range(8) for j in range(i)]  # 8 experts, 4 nodes of two
    assert routing.expected(4, 8, 2) == pytest.approx(np.mean([len({i // 2, j // 2}) for i, j in pairs]))


def test_together_finds_the_pairs_that_are_chosen_together() -> None:
    experts = np.array([[[0, 3]], [[3, 0]], [[1, 2]], [[2, 1]], [[0, 3]]])
    trace = RoutingTrace.from_arrays(experts, n_experts=4, top_k=2)
    found = routing.together(trace, nodes=2, per_node=2)
    node = found.replicas.argmax(axis=2)[0] // 2
    assert node[0] == node[3] != node[1] == node[2] and found.counts().tolist() == [[1, 1, 1, 1]]


def test_every_published_statement_has_a_verdict() -> None:
    times = crossover.times([8, 64, 128, 2048][:3], [MIB, 32 * MIB, 128 * MIB, 256 * MIB])
    many = times[times["gpus"] == 128].assign(gpus=2048)  # stands in: the words only read the table
    table = pd.DataFrame({"size_bytes": [MIB, 32 * MIB, 256 * MIB], "gpus": [32, 168, 1056]})
    found = words.statements(pd.concat([times, many]), table, 1e-3)
    assert [verdict for _, _, verdict in found] == [
        "holds", "does not hold", "does not hold", "does not hold", "**not reproduced**", "outside the model"]


@pytest.mark.slow
def test_the_whole_study(tmp_path: Path, repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for file in STUDY.glob("*.*"):
        shutil.copy(file, tmp_path)
    monkeypatch.chdir(repo)
    monkeypatch.syspath_prepend(str(tmp_path))
    before = (tmp_path / "README.md").read_text(encoding="utf-8")
    runpy.run_path(str(tmp_path / "study.py"), run_name="__main__")
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == before  # committed as computed
    assert {f.name for f in (tmp_path / "figures").iterdir()} == {f.name for f in (STUDY / "figures").iterdir()}
