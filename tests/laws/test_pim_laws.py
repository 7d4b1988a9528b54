"""What holds however jobs are shared by two processors over one memory."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim import kernels, registry
from moesim.hardware import Processor
from moesim.pim import Jobs, share
from moesim.pim.jobs import example

PARTS = [name for name in registry.names("selection")]
TOKENS = st.lists(st.integers(0, 40), min_size=2, max_size=9)


@given(tokens=TOKENS, spaces=st.integers(1, 4), name=st.sampled_from(PARTS))
def test_a_phase_lasts_at_least_as_its_busiest_processor_and_at_most_as_one_after_the_other(
        tokens: list[int], spaces: int, name: str) -> None:
    jobs = example(tokens, spaces)
    mask = registry.make("selection", name).beside(jobs)
    for side_by_side in (False, True):
        times = share(jobs, mask, side_by_side)
        assert max(times.own_s, times.beside_s) <= times.phase_s + 1e-9
        assert times.phase_s <= times.own_s + times.beside_s + 1e-9
    assert share(jobs, mask, True).phase_s <= share(jobs, mask, False).phase_s


@given(tokens=TOKENS, spaces=st.integers(1, 4))
def test_co_processing_is_never_slower_than_either_processor_alone(tokens: list[int], spaces: int) -> None:
    jobs = example(tokens, spaces)
    both = share(jobs, registry.make("selection", "coprocess_experts").beside(jobs), True).phase_s
    for name in ("gpu_only", "pim_only"):
        assert both <= share(jobs, registry.make("selection", name).beside(jobs), False).phase_s + 1e-9


@given(tokens=st.lists(st.integers(1, 40), min_size=1, max_size=6))
def test_co_processing_of_experts_in_spaces_of_their_own_is_the_best_split_by_tokens(tokens: list[int]) -> None:
    """Twin: every set of experts tried; that of the fewest tokens is as good as any, since the own times are equal."""
    jobs = example(tokens, n_spaces=len(tokens))
    best = min(float(share(jobs, np.array([bool(i >> j & 1) for j in range(len(tokens))]), True).phase_s)
               for i in range(2 ** len(tokens)))
    assert share(jobs, registry.make("selection", "coprocess_experts").beside(jobs), True).phase_s == best


@given(tokens=TOKENS, data=st.data())
def test_no_space_serves_two_processors_at_a_time(tokens: list[int], data: st.DataObject) -> None:
    """A phase is as long as the jobs of any one space, whoever does them."""
    jobs = example(tokens, n_spaces=2)
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=len(tokens), max_size=len(tokens))))
    lasts = share(jobs, mask, True).phase_s
    seconds = np.where(mask, jobs.beside_s, jobs.own_s)
    assert lasts >= max(seconds[jobs.space == s].sum() for s in range(2)) - 1e-9


@given(m=st.integers(1, 512), op_per_byte=st.floats(1, 64))
def test_with_infinite_bandwidth_a_processor_in_memory_is_bound_by_arithmetic(m: int, op_per_byte: float) -> None:
    pim = Processor(kind="logic_pim", peak={"bf16": f"{op_per_byte} TFLOP/s"}, bandwidth="1e30 B/s", multiprocessors=1)
    seconds = kernels.bind(pim, "reachable").time_s("moe", tokens_per_expert=[[m, 0, 1]], hidden=64, inter=32)
    assert seconds == pytest.approx(6 * (m + 1) * 64 * 32 / (op_per_byte * 1e12))


@given(watts=st.floats(1, 1e4), m=st.integers(1, 512))
def test_a_cap_of_power_is_kept(watts: float, m: int) -> None:
    part = {"name": "reachable", "watts": watts, "byte_j": 14e-12, "flop_j": 0.23e-12}
    pim = Processor(kind="logic_pim", peak={"bf16": "100 TFLOP/s"}, bandwidth="13 TB/s", multiprocessors=1)
    free, capped = (float(kernels.bind(pim, p).time_s("gemm", m=m, n=512, k=512)) for p in ("reachable", part))
    joules = 14e-12 * 2 * (m * 1024 + 512 * 512) + 0.23e-12 * 2 * m * 512 * 512
    assert capped >= free and joules / capped <= watts * (1 + 1e-9)
    assert capped == pytest.approx(max(free, joules / watts))


def test_nothing_to_do_takes_no_time() -> None:
    nothing = np.zeros((2, 3))
    jobs = Jobs(nothing, nothing, nothing, nothing, np.arange(3), 3, lambda mask: np.zeros(mask.shape[:-1]))
    for name in PARTS:
        part = registry.make("selection", name)
        assert share(jobs, part.beside(jobs), part.side_by_side).phase_s.tolist() == [0, 0]
