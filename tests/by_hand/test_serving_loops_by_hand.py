"""Who computes how much in a step, and who produces a token by it: four requests, on paper."""

from __future__ import annotations

import numpy as np

from moesim.serving import loops

PROMPT, OUTPUT = np.array([10, 4, 6, 3]), np.array([5, 2, 3, 1])


def live() -> tuple[np.ndarray, np.ndarray]:
    """Return what each has produced and computed: 4 tokens of 10; all but its last token, on its way; 1 of 7; none."""
    return np.array([0, 2, 1, 0]), np.array([4, 5, 6, 0])


def test_tokens_are_dealt_in_order_until_the_budget_is_spent() -> None:
    for budget, served, tokens in ((100, [0, 2, 3], [6, 1, 3]), (8, [0, 2, 3], [6, 1, 1]), (7, [0, 2], [6, 1]),
                                   (4, [0], [4]), (0, [], [])):
        who, n, after = loops.share(np.arange(4), budget, PROMPT, OUTPUT, *live())
        assert (who.tolist(), n.tolist()) == (served, tokens)
        assert after.tolist() == [live()[1][r] + t for r, t in zip(served, tokens, strict=True)]


def test_who_has_computed_all_it_has_produces_a_token() -> None:
    produced, computed = live()
    stepped = loops.advance(np.array([3, 2, 0]), np.array([3, 1, 5]), PROMPT, OUTPUT, produced, computed)
    assert stepped.tolist() == [3, 2]  # one token of the prompt of 0 is left
    assert computed.tolist() == [9, 5, 7, 3] and produced.tolist() == [0, 2, 2, 1]
