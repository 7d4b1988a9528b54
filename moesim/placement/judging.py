"""What a placement is worth on requests that its solver saw, on others, and on domains that it never saw."""

from __future__ import annotations

from typing import Any

import pandas as pd

from moesim.placement.evaluation import evaluate, stay_load
from moesim.placement.placement import Placement, PlacementError
from moesim.placement.solving import MACHINE, solve
from moesim.trace import RoutingTrace
from moesim.trace_checks import UNKNOWN

Case = tuple[str, str, RoutingTrace | None, Placement | None]  # a row: its two names, and what they stand for
MOST_DOMAINS = 8  # chosen: every domain costs a solve, so more are judged only if asked for


def judge(trace: RoutingTrace, n_devices: int, solver: Any = "joint", seed: int = 0, fraction: float = 0.5,
          domains: bool | None = None, **options: Any) -> tuple[Placement, pd.DataFrame]:
    """Place on a *fraction* of the requests; return the placement, and what it is worth there and elsewhere.

    Other arguments as in ``solve``. The table has one row per ``judged_on`` and ``placement``:

    judged_on   profile: the requests that the solver saw;  evaluation: all others;  a domain: the evaluation's tokens
                of that domain
    placement   fitted: the one returned;  fitted without D: what the solver makes of the profile without domain D,
                which it then never saw;  linear: experts in the order of their number, for scale

    Its other columns are ``tokens`` (judged on) and the numbers of ``evaluate``; if experts are replicated also
    ``stay_load_max_over_mean``, see ``stay_load``. They are NaN where there is nothing to judge on, or nothing to fit:
    a domain needs requests on both sides. *domains* says whether domains have rows; left out they do if 2 to
    ``MOST_DOMAINS`` are labelled. Raises ``PlacementError`` if *domains* is true and fewer than 2 are, and what
    ``solve`` raises.
    """
    seen, unseen = trace.profile(fraction, seed), trace.evaluation(fraction, seed)
    names = _labelled(trace, domains)
    fitted = solve(seen, n_devices, solver, seed, **options)
    linear = solve(seen, n_devices, "linear", seed, **{key: options[key] for key in MACHINE if key in options})
    cases: list[Case] = [(on, name, part, placement) for on, part in (("profile", seen), ("evaluation", unseen))
                         for name, placement in (("fitted", fitted), ("linear", linear))]
    for domain in names:
        known, others = _where(seen, domain, True), _where(seen, domain, False)
        part, without = _where(unseen, domain, True), None
        if part is not None and others is not None:
            without = solve(others, n_devices, solver, seed, **options | {"bound": False})
        cases += [(domain, "fitted", part, None if known is None else fitted),
                  (domain, f"fitted without {domain}", part, without), (domain, "linear", part, linear)]
    replicated = bool((fitted.replicas.sum(axis=2) > 1).any())
    return fitted, pd.DataFrame([_row(case, options.get("devices_per_node"), replicated) for case in cases])


def _row(case: Case, per_node: int | None, replicated: bool) -> dict[str, Any]:
    judged_on, name, part, placement = case
    row = {"judged_on": judged_on, "placement": name, "tokens": 0 if part is None else part.n_tokens}
    if part is None or placement is None:
        return row
    more = {"stay_load_max_over_mean": stay_load(placement, part, per_node)} if replicated else {}
    return row | evaluate(placement, part, per_node).to_dict() | more


def _labelled(trace: RoutingTrace, wanted: bool | None) -> list[str]:
    """Return the domains that get rows."""
    names = [name for name in trace.domains() if name != UNKNOWN]
    if wanted and len(names) < 2:
        raise PlacementError(f"the trace labels {len(names)} domains; to judge on a domain never seen takes two: label "
                             "its requests, or join traces of several domains")
    return names if wanted or (wanted is None and 2 <= len(names) <= MOST_DOMAINS) else []


def _where(trace: RoutingTrace, domain: str, wanted: bool) -> RoutingTrace | None:
    """Return the tokens that are of *domain*, or that are not; None if there are none."""
    rows = (trace.tokens["domain"] == domain).to_numpy() == wanted
    return trace.select(rows) if rows.any() else None
