"""Closed-form collectives against measured ones (NCCL, DeepEP) and against exact flow lists."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from moesim.config import load
from moesim.hardware import HardwareSpec
from moesim.network import LeafSpine, Network
from moesim.network.collective import Constants
from moesim.network.ends import Choice, Ends
from moesim.network.topologies.switch import Switch

pytestmark = pytest.mark.external


def constants(startup_us: float, gigabytes_per_s: float, ramp_us: float) -> Constants:
    return Constants(bandwidth=gigabytes_per_s * 1e9, efficiency=1.0, startup=startup_us * 1e-6,
                           ramp=ramp_us * 1e-6)


def mean_error(predicted_s: np.ndarray, measured_s: np.ndarray) -> float:
    return float(100 * np.abs(predicted_s / measured_s - 1).mean())


def nccl(shared_data: Path, gpu: str, op: str) -> tuple[np.ndarray, np.ndarray]:
    """Return (bytes, seconds) of *op* over 8 GPUs: 512 B to 512 MB, half precision."""
    table = pd.read_csv(next((shared_data / "collectives").glob(f"{gpu}_sxm__comm__nccl*.csv")))
    rows = table[(table.op_name == op) & (table.num_gpus == 8) & (table.nccl_dtype == "half")]
    return rows.message_size.to_numpy() * 2.0, rows.latency.to_numpy() * 1e-3


@pytest.mark.parametrize(("machine", "gpu", "bar"), [("h100-1x8", "h100", 8), ("a100-1x8", "a100", 8)])
def test_all_to_all_of_the_shipped_machines(shared_data: Path, repo: Path, machine: str, gpu: str, bar: float) -> None:
    size, measured = nccl(shared_data, gpu, "alltoall")
    network = Network.of(load(HardwareSpec, repo / f"hw_configs/machines/{machine}.yaml"))
    predicted = network.all_to_all(size[:, None, None] / 8 * np.ones((8, 8))).time_s
    assert len(size) >= 21 and mean_error(predicted, measured) < bar  # 7.0 and 7.0 % when this was written
    plain = Network(8, 8, constants(9.5, 300 if gpu == "h100" else 200, 0))  # without the square root
    assert mean_error(plain.all_to_all(size[:, None, None] / 8 * np.ones((8, 8))).time_s, measured) > bar


@pytest.mark.parametrize(("op", "fit", "bar"), [  # startup us, GB/s, ramp us, fitted to these rows
    ("all_reduce", (15.2, 481, 20.6), 6), ("all_gather", (10.9, 358, 7.5), 6), ("reduce_scatter", (10.4, 341, 2.8), 6)])
def test_rings_inside_a_node(shared_data: Path, op: str, fit: tuple[float, float, float], bar: float) -> None:
    size, measured = nccl(shared_data, "h100", op)
    network = Network(8, 8, constants(*fit))
    if op == "all_gather":
        predicted = network.all_gather(size[:, None] / 8 * np.ones(8)).time_s
    else:
        predicted = getattr(network, op)(size[:, None], 8).time_s[:, 0]
    assert mean_error(predicted, measured) < bar  # 5.3, 4.8 and 4.5 % when this was written


def deepep(shared_data: Path, nodes: int, phase: str) -> tuple[np.ndarray, np.ndarray]:
    """Return (tokens per device, seconds) of DeepEP's low-latency kernels on *nodes* of 8 H100, from 2 tokens."""
    table = pd.read_csv(next((shared_data / "collectives").glob("*deepep_ll_perf.csv")))
    rows = table[(table.node_num == nodes) & (table.num_token > 1)]
    return rows.num_token.to_numpy(), rows[f"{phase}_avg_t_us"].to_numpy() * 1e-6


# Startup (us) and rate (GB/s) per number of nodes, fitted to these rows; no ramp. Bytes of a token: fp8 with scales
# out, bf16 back (DeepEP README); 8 copies of each.
LOW_LATENCY = {
    "dispatch": (7392, {1: (14.7, 285), 2: (19.6, 46.8), 4: (25.3, 48.0), 8: (27.2, 47.8)}),
    "combine": (14336, {1: (11.2, 239), 2: (24.8, 46.4), 4: (25.3, 45.5), 8: (25.8, 46.5)})}


def low_latency(phase: str, nodes: int, tokens: np.ndarray, out: Constants) -> np.ndarray:
    """Predict: every device sends its tokens' copies evenly to all, itself included."""
    size, fits = LOW_LATENCY[phase]
    startup, rate = fits[1]
    inside = constants(startup, rate * 7 / 8, 0)  # the fit counts the bytes that stay on the device, 1 of 8
    fabric = Switch(8 * nodes, link="50 GB/s") if nodes > 1 else None
    network = Network(8 * nodes, 8, inside, fabric, out if nodes > 1 else None)
    each = tokens[:, None, None] * 8 * size / (8 * nodes)
    return network.all_to_all(each * np.ones((8 * nodes, 8 * nodes))).time_s


@pytest.mark.parametrize("phase", LOW_LATENCY)
@pytest.mark.parametrize("nodes", [1, 2, 4, 8])
def test_deepep_low_latency(shared_data: Path, phase: str, nodes: int) -> None:
    tokens, measured = deepep(shared_data, nodes, phase)
    startup, rate = LOW_LATENCY[phase][1][nodes]
    out = Constants(efficiency=rate / 50, startup=startup * 1e-6, ramp=0.0)
    assert mean_error(low_latency(phase, nodes, tokens, out), measured) < 5  # 1.4 to 4.1 % when this was written


@pytest.mark.parametrize("phase", LOW_LATENCY)
def test_deepep_with_the_shipped_constants(shared_data: Path, repo: Path, phase: str) -> None:
    """One startup for any number of nodes: 4 and 8 nodes within 5 %, 2 nodes within 12 % (dispatch starts sooner)."""
    out = load(HardwareSpec, repo / "hw_configs/machines/h100-2x8.yaml").scale_out
    for nodes, bar in ((2, 12), (4, 5), (8, 5)):
        tokens, measured = deepep(shared_data, nodes, phase)
        assert mean_error(low_latency(phase, nodes, tokens, out), measured) < bar  # type: ignore[arg-type]


class Pinned:
    """The spine of every pair as a flow list gives it; pieces of a pair share it out by bytes."""

    def __init__(self, flows: pd.DataFrame):
        pieces = flows[flows.spine >= 0]
        table = pieces.pivot_table(index=["src", "dst"], columns="spine", values="bytes", aggfunc="sum", fill_value=0)
        self.shares = table.div(table.sum(axis=1), axis=0)

    deals = False

    def paths(self, ends: Ends, seed: int) -> Choice:
        far = np.flatnonzero(ends.n_paths > 1)
        shares = self.shares.loc[list(zip(ends.src[far], ends.dst[far], strict=True))].to_numpy()
        flow, path = np.nonzero(shares)
        near = np.flatnonzero(ends.n_paths == 1)
        return Choice(np.concatenate([far[flow], near]), np.concatenate([path, 0 * near]),
                      np.concatenate([shares[flow, path], np.ones(len(near))]))


BOUNDS_US = {  # max load / capacity as computed by the generator of the lists
    "a2a448_ecmp1": 1258.2912, "a2a448_ecmp2": 1258.2912, "a2a448_ecmp3": 1258.2912, "a2a448_ethereal": 1006.6330,
    "a2a448_mprdma4": 1137.70, "a2a468_ecmp1": 922.75, "a2a468_ethereal": 671.09, "a2a488_ecmp1": 775.95,
    "a2a488_ecmp2": 713.03, "a2a488_ethereal": 650.1171}
PERFECT = Constants(bandwidth=50e9, efficiency=1.0, startup=0.0, ramp=0.0)


def all_pairs(spines: int, balancing: object) -> float:
    """Return the seconds of 1 MiB between all ordered pairs of 4 leaves x 8 hosts, one device per node."""
    fabric = LeafSpine(leaves=4, spines=spines, hosts_per_leaf=8, link="400 Gbit/s")
    network = Network(32, 1, PERFECT, fabric, PERFECT, balancing)
    return float(network.all_to_all(np.full((32, 32), 2.0**20)).time_s)


@pytest.mark.parametrize("case", BOUNDS_US)
def test_flow_lists(shared_data: Path, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    flows = pd.read_csv(shared_data / "network" / f"{case}.flows", sep=" ", comment="#",
                        names=["id", "src", "dst", "bytes", "spine", "parent"])
    monkeypatch.setattr("moesim.registry.make", lambda kind, value: value)
    found = all_pairs(int(case[4]), Pinned(flows))
    digits = 5e-5 if BOUNDS_US[case] * 1e4 % 100 else 5e-3
    assert found * 1e6 == pytest.approx(BOUNDS_US[case], abs=digits)
    simulated = np.loadtxt(shared_data / "network" / "simgrid_fct" / f"fct_{case}.txt")[:, 1].max()
    assert found == pytest.approx(simulated, rel=2e-5)  # the bound is tight: an independent fluid solver agrees


@pytest.mark.parametrize(("spines", "us"), [(4, 1006.6330), (6, 671.0886), (8, 650.1171)])
def test_spray_is_the_best_case(spines: int, us: float) -> None:
    assert all_pairs(spines, "spray") * 1e6 == pytest.approx(us, abs=5e-5)
    assert all_pairs(spines, "ecmp") > all_pairs(spines, "spray")
