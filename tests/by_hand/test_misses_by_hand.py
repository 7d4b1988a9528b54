"""What becomes of missed experts, worked on paper: every part of kind ``miss`` on ``serving_machine``.

An expert has 12 bytes, a token adds 8: 20 s for one on the device, 28 s for two. Two layers, three experts, two chosen.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from serving_machine import scenario

import moesim
from moesim.config import ConfigError
from moesim.hardware import TierLink
from moesim.sim.copying import Copies

# Of each layer expert 0 is kept (as often used as the others, and the first): hit in the first and the last step.
ONE = {"prompt": [[[0, 1], [0, 2]]], "decode": [[[1, 2], [2, 1]], [[0, 2], [0, 1]]], "devices": [[0, 1, 2]]}
# Two tokens at once; in both layers one missed expert has both, the other one, expert 0 one.
TWO = {"prompt": [[[0, 1], [1, 2]], [[2, 1], [0, 2]]], "decode": [[[0, 2], [0, 1]]], "devices": [[0, 1, 2]]}
STATIC = "cache={{capacity: 1, policy: static, overflow: stream, miss: {}}}"


def host(link: str) -> str:
    return f"hardware.host=[{{name: host, capacity: 1 kB, bandwidth: 100 B/s, link: {{{link}}}}}]"


def cpu(bandwidth: float, more: str = "kind: cpu") -> str:
    return (f"hardware.host_processor={{{more}, peak: {{bf16: 1 TFLOP/s}}, bandwidth: {bandwidth} B/s, "
            f"multiprocessors: 1}}")


def run(folder: Path, chosen: dict, request: tuple[int, int], *overrides: str, likely: float | None = None
        ) -> moesim.Result:
    """Return the run of one request (prompt, output); *likely*: probability of every first choice of two."""
    made = scenario(folder, [(0, *request)], chosen, *overrides)
    if likely is not None:
        trace = moesim.read_trace(folder / "trace.parquet")
        probs = np.broadcast_to(np.array([likely, 1 - likely], np.float16), trace.experts.shape)
        dataclasses.replace(trace, probs=probs).write(folder / "trace.parquet")
    return moesim.simulate(made)


def choices(steps: object, *names: str) -> list[list[int]]:
    return [steps[f"{name}_choices"].tolist() for name in names]  # type: ignore[index]


def test_fetch(tmp_path: Path) -> None:
    """25 s a copy; every expert runs on the device, two of one token each in every layer."""
    result = run(tmp_path, ONE, (1, 3), host("bandwidth: 0.5 B/s, setup: 1 s"), STATIC.format("fetch"))
    steps = result.steps
    assert steps["expert_misses"].tolist() == [2, 4, 2]
    assert steps["fetch_s"].tolist() == [50, 100, 50] and steps["experts_s"].tolist() == [80, 80, 80]
    assert not [c for c in steps if c.endswith("_choices")]


def test_host(tmp_path: Path) -> None:
    """The host needs twice the device's time, a token's state of 4 bytes 2 s each way: 44 s, or 88 for two experts.

    The device waits for what its own 20 s do not cover.
    """
    steps = run(tmp_path, ONE, (1, 3), host("bandwidth: 2 B/s"), cpu(0.5), STATIC.format("host")).steps
    assert steps["fetch_s"].tolist() == [24 + 24, 88 + 88, 24 + 24]
    assert steps["experts_s"].tolist() == [40, 0, 40]
    assert choices(steps, "expert", "host") == [[4, 4, 4], [2, 4, 2]]
    length = steps["end_s"] - steps["start_s"]
    assert (steps["host_busy_share"] * length).tolist() == pytest.approx([80, 160, 80])
    assert moesim.metrics.expert_cache(steps).to_dict() == {
        "hit_ratio": 4 / 12, "fetched_bytes": 0.0, "host_share": 8 / 12,
        "host_busy_share": pytest.approx(320 / length.sum())}


def test_host_beside_shared_experts(tmp_path: Path) -> None:
    """A shared expert of 26 s runs meanwhile too. The host has 50 s for one, 100 for two, and the ways: 54, 108 s."""
    steps = run(tmp_path, ONE, (1, 3), host("bandwidth: 2 B/s"), cpu(0.4), STATIC.format("host"),
                "model.moe.shared_ffn=1").steps
    assert steps["shared_s"].tolist() == [52, 52, 52]
    assert steps["fetch_s"].tolist() == pytest.approx([2 * (54 - 20 - 26), 2 * (108 - 26), 2 * (54 - 20 - 26)])


def test_a_processor_in_the_hosts_memory(tmp_path: Path) -> None:
    """PIM: 1 B/s of which half is reached, as the host above."""
    pim = cpu(1.0, "kind: bank_pim, efficiency: 0.5")
    steps = run(tmp_path, ONE, (1, 3), host("bandwidth: 2 B/s"), pim, STATIC.format("host")).steps
    assert steps["fetch_s"].tolist() == [48, 176, 48]


@pytest.mark.parametrize(("miss", "fetch_s", "experts_s", "at_host"), [
    # Two copies of 24 s; then 20 + 28 + 20 s.
    ("fetch", 48, 68, None),
    # 28 + 20 s at the host, three states of 8 s each way: 96 s beside the device's 20.
    ("host", 96 - 20, 20, 3),
    # Two tokens: 28 + 16 + 16 s there, 24 + 28 here; one: 20 + 8 + 8 there, 24 + 20 here. So one copy of 24 s, and
    # 36 s at the host while the device waits and computes 20 + 28 s.
    ("cheapest", 24, 48, 1),
])
def test_cheapest(tmp_path: Path, miss: str, fetch_s: float, experts_s: float, at_host: int | None) -> None:
    link, processor = host("bandwidth: 0.5 B/s"), cpu(1.0)
    steps = run(tmp_path, TWO, (2, 1), link, processor, STATIC.format(miss)).steps
    assert steps["fetch_s"].tolist() == [2 * fetch_s] and steps["experts_s"].tolist() == [2 * experts_s]
    assert at_host is None or choices(steps, "expert", "host") == [[8], [2 * at_host]]


def test_low_precision(tmp_path: Path) -> None:
    """25 s a whole copy, 7 s of 3 bytes. The second choice comes in few bits; chosen first, it has to come again.

    0 whole and 1 in few bits; 1 whole, 0 is there; both there; 2 whole for 0 or 1 - and 1, chosen last, was there.
    """
    chosen = {"prompt": [[[0, 1]] * 2], "decode": [[[1, 0]] * 2, [[1, 0]] * 2, [[2, 1]] * 2], "devices": [[0, 1, 2]]}
    link = host("bandwidth: 0.5 B/s, setup: 1 s")
    result = run(tmp_path, chosen, (1, 4), link, "cache={capacity: 2, miss: {name: low_precision, threshold: 0.5}}",
                 likely=0.75)
    steps = result.steps
    assert steps["fetch_s"].tolist() == [2 * (25 + 7), 50, 0, 50]
    assert steps["expert_misses"].tolist() == [4, 2, 0, 2] and steps["expert_hits"].tolist() == [0, 2, 4, 2]
    assert steps["fetched_bytes"].tolist() == [30, 24, 0, 24]
    assert choices(steps, "low_precision") == [[2, 0, 0, 0]]
    assert any("12.5% of the tokens' choices were computed with low-bit weights" in n for n in result.meta["warnings"])
    every = run(tmp_path, chosen, (1, 4), link, "cache={capacity: 2, miss: low_precision}").steps
    assert every["fetch_s"].tolist() == [28, 0, 0, 14] and every["fetched_bytes"].tolist() == [12, 0, 0, 6]
    assert choices(every, "low_precision") == [[4, 4, 4, 4]]  # also what is there is in few bits


def test_defer(tmp_path: Path) -> None:
    """The host needs 204 s for a token at an expert, with its way; between the waits of a step's layers are 20 s of the
    expert 0, if it is used, attention (88, 96, 104 s) and the gate (48).

    First: the second choice of layer 0 is put off; of its 204 s 156 pass by, 48 are in the way of the 204 of layer 1
    (the last: nothing is put off), which the device's 20 s shorten. Second: 204 at once; of the other 204 pass 144;
    60 and 408 for both of layer 1. Third: 204 - 172, 204, less 20.
    """
    defer = STATIC.format("{name: defer, choices: 1}")
    steps = run(tmp_path, ONE, (1, 3), host("bandwidth: 2 B/s"), cpu(0.1), defer).steps
    assert steps["fetch_s"].tolist() == [48 + 204 - 20, 204 + 60 + 408, 32 + 204 - 20]
    assert choices(steps, "host", "deferred") == [[1, 3, 1], [1, 1, 1]]
    quick = run(tmp_path, ONE, (1, 3), host("bandwidth: 2 B/s"), cpu(0.5), defer).steps  # 44 s: all pass by
    assert quick["fetch_s"].tolist() == [24, 44 + 88, 24]


def test_skip(tmp_path: Path) -> None:
    """Second choices that are missed are left out: 25 s for the first ones of the second step alone."""
    link = host("bandwidth: 0.5 B/s, setup: 1 s")
    result = run(tmp_path, ONE, (1, 3), link, STATIC.format("skip"))
    steps = result.steps
    assert steps["fetch_s"].tolist() == [0, 50, 0] and steps["experts_s"].tolist() == [40, 40, 40]
    assert steps["expert_misses"].tolist() == [2, 4, 2]
    assert choices(steps, "expert", "skipped") == [[4, 4, 4], [2, 2, 2]]
    assert moesim.metrics.expert_cache(steps)["skipped_share"] == 0.5
    assert any("cache.miss: skip: 50.0% of the tokens' choices were not" in note for note in result.meta["warnings"])
    for below, fetch_s in ((0.25, [50, 100, 50]), (0.3, [0, 50, 0])):  # second choices have 0.25
        weighed = STATIC.format(f"{{name: skip, below: {below}}}")
        assert run(tmp_path, ONE, (1, 3), link, weighed, likely=0.75).steps["fetch_s"].tolist() == fetch_s


def test_what_is_skipped_is_not_kept(tmp_path: Path) -> None:
    """Two places, last used leaves. 0 comes, 1 does not; 1 comes, 0 is there; 0 and 1 are there."""
    chosen = {"prompt": [[[0, 1]]], "decode": [[[1, 0]], [[0, 1]]], "devices": [[0, 1, 2]]}
    link = host("bandwidth: 0.5 B/s, setup: 1 s")
    steps = run(tmp_path, chosen, (1, 3), link, "cache={capacity: 2, miss: skip}").steps
    assert steps["fetch_s"].tolist() == [25, 25, 0] and choices(steps, "skipped") == [[1, 0, 0]]
    assert steps["expert_misses"].tolist() == [2, 1, 0]


def test_copies_of_two_sizes(tmp_path: Path) -> None:
    """One of 6 bytes and two of 12 at 1 B/s: 6 and 24 s, or in turns at a mean of 10: second of three, and last."""
    made = scenario(tmp_path, [(0, 1, 1)], {"prompt": [[[0, 1]]], "decode": [[[0, 1]]], "devices": [[0], [1]]},
                    host("bandwidth: 1 B/s"))
    n, share, found = np.array([1, 2]), np.array([0.5, 1.0]), []
    for per in ("device", "node"):
        tier = made.hardware.host[0].model_copy(update={"link": TierLink.model_validate(
            {"bandwidth": "1 B/s", "per": per})})
        copies = Copies(made.hardware.model_copy(update={"host": (tier,)}), 12.0)
        found.append(copies.seconds(n, share).tolist())
        assert copies.one_s == 12
    assert found == [[6, 24], [20, 30]]


@pytest.mark.parametrize(("overrides", "cache", "message"), [
    ([], "capacity: 2, miss: {name: low_precision, threshold: 0.4}", "cache.miss: looks at gate weights, and the"),
    ([], "capacity: 2, miss: {name: skip, below: 0.4}", "cache.miss: looks at gate weights, and the trace has no"),
    ([], "capacity: 2, miss: cheapest", "cache.miss: cheapest needs experts in the memory of a host that can compute"),
    ([cpu(1.0)], "capacity: 2, miss: defer", "cache.policy: with miss: defer nothing moves, so nothing can take"),
    ([], "capacity: 2, miss: skip, scope: global", "cache.scope: miss: skip decides for all layers as a step begins"),
    (["trace={balanced: true}"], "capacity: 2, miss: skip", "cache.miss: skip looks at how tokens rank experts, and"),
    ([], "capacity: 2, miss: later", "unknown miss 'later'; known: cheapest, defer, fetch, host, low_precision, skip"),
    ([], "capacity: 2, miss: {name: low_precision, share: 0}", "share: Input should be greater than 0, got 0"),
])
def test_wrong_input(tmp_path: Path, overrides: list[str], cache: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        run(tmp_path, ONE, (1, 3), host("bandwidth: 2 B/s"), *overrides, f"cache={{{cache}}}")
    assert message in str(error.value)
