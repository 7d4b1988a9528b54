"""What this study replays: traces, policies, capacities, batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from moesim.trace import RoutingTrace, read_trace

HERE = Path(__file__).resolve().parent
OWN, GPT = "reference-moe", "GPT-OSS-20B"
PUBLIC = "gptoss20b_decode_167seq.npz"
CAPACITIES = ("10%", "20%", "30%", "40%", "60%")
SWAPPING, WINDOWS = ("30%", "50%"), (3, 4, 6, 8)  # where choices are changed; our trace has 8 ranks
BATCHES = (1, 2, 4, 8, 16)
# hobbit without uses in high precision: the public trace has no probabilities
POLICIES: tuple[Any, ...] = ("random", "lru", "lfu", "lfru", "static", "eam",
                             {"name": "hobbit", "weights": [1.0, 1.0, 0.0, 1.0]}, "mark_predict")
NAMES = {"hobbit(weights=(1.0, 1.0, 0.0, 1.0))": "hobbit", "belady(bypass=False)": "belady, forced"}
FORCED: dict[str, Any] = {"name": "belady", "bypass": False}


def traces(public: Path | None) -> dict[str, RoutingTrace]:
    """Return the decode tokens of our own trace, and of that in the folder *public*. Raises ``ValueError``."""
    found = {OWN: read_trace(HERE.parents[1] / "workloads" / "traces" / "reference-moe.parquet").phase("decode")}
    if public is not None:
        if not (public / PUBLIC).is_file():
            raise ValueError(f"{public}: has no {PUBLIC}; see docs/howto/get-routing-traces.md")
        found[GPT] = read_trace(public / PUBLIC)
    return found
