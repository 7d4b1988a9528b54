"""Pre-gated MoE's closed form (arXiv 2308.12066): a block takes the longer of its work and the next block's copies.

On demand it takes their sum; as only the first block's experts are not known ahead, they alone are waited for in full.
"""

from __future__ import annotations

import numpy as np
import pytest

from moesim.sim.arrivals import HIT, Asked, Lines, Pass, Queue, wait
from moesim.sim.cost import INDEX, PHASES, SYNC

BANDWIDTH = 32e9  # PCIe 4 x16 of an A100, as in the paper
EXPERT = 2 * 768 * 3072 * 4.0  # bytes of an expert of Switch-Base, 32 bits (the model of the paper's smaller cases)


@pytest.mark.parametrize("work_s", [0.1e-3, 0.5e-3, 2e-3])
@pytest.mark.parametrize("experts", [1, 3])
def test_a_block_takes_the_longer_of_work_and_copies(work_s: float, experts: int) -> None:
    """Twelve blocks of equal work, each with as many experts of the next one to fetch."""
    blocks, copies_s = 12, experts * EXPERT / BANDWIDTH
    seconds, present = np.zeros((blocks + 1, len(PHASES), 1)), np.zeros((blocks + 1, len(PHASES)), bool)
    seconds[:blocks, INDEX["experts"]], present[:blocks, INDEX["experts"]] = work_s, True
    lines = Lines(np.array([1]), np.array([1]), np.array([1]), np.array([[0.0, 1 / BANDWIDTH, 0.0, EXPERT]]), 1, 0.0)

    def waits(first_ahead: int) -> np.ndarray:
        layer = np.repeat(np.arange(first_ahead, blocks), experts)
        n = len(layer)
        queue = Queue(np.array([0, n]), layer, np.ones((1, n), np.int64), np.full(n, np.inf), np.zeros((1, n)),
                      np.zeros((1, 1), np.int64), np.zeros((1, 1)), np.searchsorted(layer, np.arange(blocks + 1)),
                      np.arange(n), np.full(n, HIT), np.zeros(n, np.uint8))
        missed = np.where(np.arange(blocks) < first_ahead, experts, 0)[None, :, None]
        asked = Asked(missed, missed * EXPERT, np.zeros((blocks, 1)), np.zeros(1))
        wait(Pass(seconds, present, SYNC, 1, np.arange(blocks), INDEX["fetch"]), lines, queue, asked)
        return asked.waits[:, 0]

    assert work_s + waits(blocks) == pytest.approx([work_s + copies_s] * blocks)
    ahead = waits(1)
    assert ahead[0] == pytest.approx(copies_s)
    assert work_s + ahead[1:] == pytest.approx([max(work_s, copies_s)] * (blocks - 1))
