"""What a result warns of: synthetic routing, scaled models, kernel shapes that nobody measured."""

from __future__ import annotations

from pathlib import Path

import moesim

TINY = Path(__file__).resolve().parent.parent / "data" / "tiny.yaml"


def warnings(*overrides: str) -> list[str]:
    return moesim.simulate(moesim.load(TINY, overrides)).meta["warnings"]


def test_synthetic_and_scaled_routing_are_said() -> None:
    found = warnings()
    assert "the routing is synthetic" in found
    assert any("on the sizes of tiny (a what-if)" in w for w in found)


def test_shapes_outside_the_measured_domain_are_named_with_the_largest_of_a_run() -> None:
    found = warnings("requests.prompt_tokens=24", "requests.concurrency=1", "requests.count=1")
    moe = next(w for w in found if w.startswith("kernel times extrapolated: moe"))
    assert "on 2 experts, hidden 64, inter 32" in moe, "the tables begin at 8 experts and hidden 2048"
    # One prompt of 24 tokens chooses 48 experts; the busiest of two devices has at least half of them in some layer.
    assert 24 <= int(moe.split("(")[1].split(" tokens")[0]) <= 48


def test_constants_of_another_device_or_dtype_are_said_to_be_carried_over() -> None:
    found = warnings("model.dtype.experts=fp8")
    assert ("kernel times extrapolated: constants fitted on H200 are used on small, with its own peak rates") in found
    assert "kernel times extrapolated: fp8: constants were fitted with bf16, fp16, mxfp4" in found


def test_a_short_trace_is_said_to_repeat_itself() -> None:
    """Six evaluated requests of 8 decode rows each; 48 users decode at once: tokens share rows."""
    many = ("requests.concurrency=48", "requests.count=48", "scheduler.max_batch=48", "requests.output_tokens=9")
    short = next(w for w in warnings(*many) if w.startswith("the trace is short for this load"))
    assert "use a trace of more requests" in short
    assert not any(w.startswith("the trace is short") for w in warnings())
    only_prompts = warnings("requests.output_tokens=1")  # nothing is decoded, so nothing is repeated
    assert not any(w.startswith("the trace is short") for w in only_prompts)


def test_a_roofline_says_that_nothing_was_measured() -> None:
    assert "kernel times extrapolated: gemm: not fitted to measurements" in warnings("kernels=roofline")
