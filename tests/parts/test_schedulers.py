"""What every scheduler and request router promises."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from moesim.serving.view import QueueView

from moesim import registry


@st.composite
def views(draw: st.DrawFn) -> QueueView:
    """Draw a queue in any state."""
    n = draw(st.integers(1, 12))
    cut = sorted((draw(st.integers(0, n)), draw(st.integers(0, n))))
    numbers = np.arange(n)
    prompt = np.array(draw(st.lists(st.integers(1, 50), min_size=n, max_size=n)))
    groups = draw(st.integers(1, 4))
    shared = draw(st.booleans())
    requests = np.array(draw(st.lists(st.integers(0, 3), min_size=groups, max_size=groups)))
    pools = 1 if shared else groups
    free = np.array(draw(st.lists(st.integers(0, 200), min_size=pools, max_size=pools)))
    return QueueView(numbers[cut[1]:], numbers[cut[0]:cut[1]], numbers[:cut[0]], prompt, prompt + 5, requests,
                     np.zeros(groups, int) if shared else np.arange(groups), free)


@pytest.mark.parametrize("router", registry.names("request_router"))
@pytest.mark.parametrize("scheduler", registry.names("scheduler"))
@given(view=views(), mixed=st.booleans())
@settings(max_examples=60, deadline=None)
def test_plans_are_possible(scheduler: str, router: str, view: QueueView, mixed: bool) -> None:
    options = {"prefill": "mixed" if mixed else "own", "max_tokens": 60} if scheduler == "continuous" else {}
    plan = registry.make("scheduler", {"name": scheduler} | options).plan(view, registry.make("request_router", router))
    assert set(plan.admit) <= set(view.waiting.tolist())
    reserved = np.zeros(len(view.free_tokens), int)
    for request, group in plan.admit.items():
        assert 0 <= group < len(view.pool)
        reserved[view.pool[group]] += view.kv_tokens[request]
    assert (reserved <= view.free_tokens).all(), "memory is never promised twice"
    ready = set(view.admitted.tolist()) | set(plan.admit)
    assert set(plan.prefill.tolist()) <= ready and len(set(plan.prefill.tolist())) == len(plan.prefill)
    assert set(plan.decode.tolist()) <= set(view.running.tolist())
    if ready or len(view.running):
        assert len(plan.prefill) + len(plan.decode) > 0, "whoever can run, runs"


@pytest.mark.parametrize("router", registry.names("request_router"))
def test_routers_never_choose_a_full_group(router: str) -> None:
    full, huge = -1, np.iinfo(np.int64).max
    choice = registry.make("request_router", router).choose(np.array([full, 0, full]), np.array([huge, 7, huge]))
    assert choice == 1
