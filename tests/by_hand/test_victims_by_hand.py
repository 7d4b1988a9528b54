"""Who leaves first, by hand: scores of policies on a small table, marks, and what similar requests used."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from moesim import registry
from moesim.memory import events_of, replay
from moesim.memory import terms as t
from moesim.memory.activation import expected_shares
from moesim.memory.job import Job
from moesim.trace import RoutingTrace


def job(trace: RoutingTrace, batch: int = 1) -> Job:
    whole = events_of(trace, batch)
    return Job(whole, whole, whole.layer_of, np.ones(whole.n_layers, np.int64), np.ones(len(whole.layer_of), np.int64))


def leaving(policy: Any, columns: dict[int, list[float]], now: dict[int, float]) -> list[int]:
    """Return the keys in the order in which *policy* gives them up; *columns* of the table, facts of *now*."""
    n = len(next(iter(columns.values())))
    of, facts, out = np.full((n, t.COLUMNS), t.NEVER), np.zeros(t.FACTS), np.zeros(n)
    for column, values in columns.items():
        of[:, column] = values
    for fact, value in now.items():
        facts[fact] = value
    chosen = registry.make("cache_policy", policy)
    rule = chosen.rule(job(RoutingTrace.from_arrays(np.zeros((1, 1, 1), int), 1, 1)))
    rule.score(np.arange(n, dtype=np.int32), n, of, facts, np.array(rule.parameters, float), out)
    return np.argsort(out, kind="stable").tolist()


# Layer 1 of 4 of pass 2: time 9. Key by key: last seen, expected for, uses, layer.
NOW = {t.TIME: 9.0, t.START: 8.0, t.HERE: 1.0, t.LAYERS: 4.0, t.SINCE: 3.0}


@pytest.mark.parametrize(("policy", "columns", "order"), [
    ("lru", {t.SEEN: [5, 8, 1]}, [2, 0, 1]),
    ("lfu", {t.COUNT: [2, 1, 2], t.SEEN: [5, 8, 1]}, [1, 2, 0]),
    ("lfru", {t.COUNT: [3, 1, 2], t.SEEN: [5, 9, 1]}, [2, 1, 0]),  # 3 / 2, 1 / 1, 2 / 3
    ("least_stale", {t.SEEN: [5, 7, 1, 8], t.DUE: [t.NEVER, t.NEVER, 10, t.NEVER]}, [0, 1, 2, 3]),  # 2 is expected
    ("fld", {t.LAYER: [1, 2, 0, 2], t.SEEN: [9, 3, 8, 6]}, [0, 2, 1, 3]),  # 3, 0, 2, 0 layers after the next
    ("plec", {t.SEEN: [8, 2, 3, 4], t.DUE: [t.NEVER, 10, 11, 5]}, [3, 0, 2, 1]),  # 10 stays longest, 5 is over
    ({"name": "hobbit", "weights": [0.0, 0.0, 0.0, 1.0], "high": 0.4}, {t.LAYER: [1, 2, 0]}, [0, 2, 1]),
    # last used 8 and 4 time units ago, in tokens 1 and 2 of 3, and 1 and 0 uses: (1 + 3) / 3 > (2 + 0) / 3
    ({"name": "hobbit", "weights": [1.0, 1.0, 0.0, 0.0]}, {t.LAST: [1, 5], t.COUNT: [3, 0], t.LAYER: [0, 0]}, [1, 0]),
    ({"name": "belady", "window": 1}, {t.NEXT: [10, 12, 11]}, [1, 2, 0]),  # pass 2 ends before 12: 12 is not seen
])
def test_the_order(policy: Any, columns: dict[int, list[float]], order: list[int]) -> None:
    assert leaving(policy, columns, NOW) == order


def test_a_new_phase_marks_what_began_it() -> None:
    """Marks alone (all bits wrong): 3 finds 1 and 2 marked and begins a phase; 4 then takes what is left of them."""
    for seed in range(20):
        for policy in ({"name": "mark0", "missed": 1.0}, {"name": "mark_predict", "missed": 1.0}):
            assert replay([{1}, {2}, {3}, {4}, {3}], policy, 2, seed=seed).hits == 1


def test_late_layers_leave_first() -> None:
    trace = RoutingTrace.from_arrays(np.array([[[0], [1]]] * 3), 2, 1, request=[0, 1, 1], phase=1)
    rule = registry.make("cache_policy", {"name": "eam", "eps": 0.5}).rule(job(trace))
    # request 1: what request 0 used, (1, 0) in layer 0 and (0, 1) in layer 1; layer 1 of two counts half
    assert rule.values[1].tolist() == [1.5, 0.5, 0.25, 0.75]


def shares(used: list[int], request: list[int], batch: int, places: int) -> list[list[float]]:
    trace = RoutingTrace.from_arrays(np.array(used)[:, None, None], 3, 1, request=request, phase=1)
    return expected_shares(job(trace, batch), "eam", places).tolist()


def test_what_similar_requests_used() -> None:
    """Request 0 uses expert 0 three times and 1 once, request 1 expert 2 twice; then request 2 begins with 2."""
    found = shares([0, 0, 0, 1, 2, 2, 2, 2, 2], [0] * 4 + [1] * 2 + [2] * 3, batch=1, places=2)
    assert found[:4] == [[0, 0, 0]] * 4  # nothing has finished
    assert found[4:6] == [[0.75, 0.25, 0]] * 2  # only request 0 has
    assert found[6] == pytest.approx([0.5, 1 / 6, 1 / 3])  # the first token: all together
    assert found[7:] == [[0, 0, 1]] * 2  # like request 1


def test_a_request_is_compared_with_those_that_end_meanwhile() -> None:
    """Requests 0 and 1 use 0 0 and 1 1; request 2 runs beside them, 1 1 1: its third token is expected to be like 1."""
    assert shares([0, 0, 1, 1, 1, 1, 1], [0, 0, 1, 1, 2, 2, 2], batch=3, places=2)[2] == [0, 1, 0]


def test_the_nearest_makes_room() -> None:
    """One place: request 1 (1 1) takes that of request 0 (0 0), so request 2 is expected to be like request 1."""
    assert shares([0, 0, 1, 1, 0, 0], [0, 0, 1, 1, 2, 2], batch=1, places=1)[4:] == [[0, 1, 0]] * 2
