"""What DeepSeek says of its all-to-alls: node-limited routing, DeepEP's kernels, the ideal decode step."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from moesim.network import Constants, Messages, Network, Switch


@pytest.fixture(scope="module")
def study() -> ModuleType:
    file = Path(__file__).resolve().parents[2] / "studies" / "02_collectives" / "routing.py"
    spec = importlib.util.spec_from_file_location("study_collectives_of_deepseek", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_ideal_decode_all_to_all() -> None:
    """arXiv 2505.09343: (1 + 2 bytes) x 32 tokens x 9 experts x 7K / 50 GB/s = 120.96 us, dispatch and combine."""
    n = 289  # any number: a device sends 9 copies of each of 32 tokens to others, all alike
    network = Network(n, 1, Constants(), Switch(n, link="50 GB/s"), Constants())
    copies = Messages(np.full((n, n), 32 * 9 / (n - 1)))
    both = network.exchange("flat", copies, 1 * 7000).time_s + network.exchange("flat", copies, 2 * 7000, True).time_s
    assert both * 1e6 == pytest.approx(120.96)


@pytest.mark.parametrize(("nodes", "limit", "visited", "remote", "gpus"), [
    (2, 2, 1.99, 1.00, 6.51), (4, 4, 3.60, 2.69, 7.25), (8, 4, 3.98, 3.48, 7.47)])
def test_what_a_token_visits(study: ModuleType, nodes: int, limit: int, visited: float, remote: float,
                             gpus: float) -> None:
    """DeepEP's generator of scores, drawn once by somebody else: 256 experts, 8 of a token, at most 4 nodes."""
    chosen = study.choices(50_000, nodes, limit, np.random.default_rng(0))
    found = study.visits(chosen, nodes)
    assert found.sum(axis=1).mean() == pytest.approx(visited, abs=0.02)
    assert found.sum(axis=1).mean() * (1 - 1 / nodes) == pytest.approx(remote, abs=0.025)
    assert study.visits(chosen, 8 * nodes).sum(axis=1).mean() == pytest.approx(gpus, abs=0.025)


@pytest.mark.parametrize("nodes", [2, 4, 8, 16, 32])
def test_expected_nodes_without_a_limit(study: ModuleType, nodes: int) -> None:
    """N (1 - (1 - 1/N)^8) for independent draws; 8 different experts of 256 spread a little more."""
    formula = nodes * (1 - (1 - 1 / nodes) ** 8)
    exact = study.expected(nodes)
    assert formula <= exact <= 1.015 * formula
    found = study.visits(study.choices(50_000, nodes, nodes, np.random.default_rng(1)), nodes).sum(axis=1).mean()
    assert found == pytest.approx(exact, rel=0.005)


def test_scores_that_pick_nodes_fill_them(study: ModuleType) -> None:
    """Nodes are kept for their best score, so a token visits more of its 4 than the formula for 4 nodes says."""
    chosen = study.choices(50_000, 8, 4, np.random.default_rng(2))
    assert study.visits(chosen, 8).sum(axis=1).mean() > 1.08 * 4 * (1 - (1 - 1 / 4) ** 8)


def test_experts_per_node_that_nvlink_hides(study: ModuleType) -> None:
    """DeepSeek-V3 (2412.19437, 3.2.2): 160 and 50 GB/s, so 3.2 experts per node cost no more than one.

    One in eight is on the device that forwards, so the model says up to 3.66.
    """
    def time_s(per_node: float) -> float:
        network = Network(32, 8, Constants(bandwidth=160e9), Switch(32, link="50 GB/s"), Constants())
        far = 1 - np.kron(np.eye(4), np.ones((8, 8)))
        messages = Messages(far * per_node / 8, 1 - np.kron(np.eye(4), np.ones((8, 1))))
        return float(network.exchange("node_limited", messages, 1e6).time_s)

    assert time_s(3.2) == pytest.approx(time_s(1.0)) == pytest.approx(3 * 1e6 / 50e9)
    assert time_s(3.65) == pytest.approx(time_s(1.0)) and time_s(4.0) == pytest.approx(3 * 3.5 * 1e6 / 160e9)


def test_deepep_bandwidths(study: ModuleType) -> None:
    """DeepEP's README (H800) and a table of H100: 14 numbers, none fitted, each within 12 %, 6 % on average."""
    found = study.published()
    free = found[~found["fitted"]]
    assert len(free) == 14 and free["error"].abs().max() < 0.12 and free["error"].abs().mean() < 0.065
    dispatch = free[free["kernel"] == "dispatch"].set_index("ep")["model"]
    assert dispatch[16] < dispatch[64] < dispatch[32]  # the order that was measured; 16 GPUs: NVLink is the bottleneck
