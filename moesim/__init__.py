"""moesim: what would this Mixture-of-Experts model do on that machine, if ...?

A discrete-event simulator of MoE inference that replays the expert choices of real models.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

# Public name -> where it lives. Loaded when first used, so that ``import moesim`` is quick.
_PUBLIC = {
    "load": "moesim.scenario",
    "Scenario": "moesim.scenario",
    "override": "moesim.scenario",
    "ConfigError": "moesim.config",
    "read_trace": "moesim.trace",
    "RoutingTrace": "moesim.trace",
    "simulate": "moesim.sim.engine",
    "Result": "moesim.result",
    "sweep": "moesim.explore",
}
_MODULES = {"capture", "explore", "kernels", "memory", "metrics", "network", "placement", "plots", "serving", "units"}

__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    if name in _MODULES:
        return importlib.import_module(f"moesim.{name}")
    raise AttributeError(f"module 'moesim' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC, *_MODULES])
