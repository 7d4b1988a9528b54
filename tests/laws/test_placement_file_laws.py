"""Every placement format gives back what it was given, and leaves no half file behind."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim import registry
from moesim.placement import Placement, PlacementError, read_placement, write_placement
from moesim.placement.formats import _slots

FORMATS = [(name, suffix) for name in registry.names("placement_format")
           for suffix in registry.make("placement_format", name).suffixes]


@st.composite
def placements(draw: st.DrawFn) -> tuple[Placement, int]:
    """Return a placement with equally many experts on all devices, and the copies it has beyond the first."""
    n_devices, per_device, n_layers = draw(st.integers(1, 5)), draw(st.integers(1, 4)), draw(st.integers(1, 4))
    slots = n_devices * per_device
    n_experts = draw(st.integers(per_device, slots))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    replicas = np.zeros((n_layers, n_experts, n_devices), dtype=bool)
    for layer in replicas:  # experts in turn, each device from where the last one stopped: no expert twice on one
        order = rng.permutation(n_experts)
        layer[order[np.arange(slots) % n_experts], np.arange(slots) // per_device] = True
    layers = np.sort(rng.choice(n_layers + 3, n_layers, replace=False)).tolist()
    return Placement(replicas, {"moe_layer_indices": layers}), slots - n_experts


@pytest.mark.parametrize(("name", "suffix"), FORMATS)
@settings(deadline=None, max_examples=40)
@given(drawn=placements())
def test_what_is_read_is_what_was_written(name: str, suffix: str, drawn: tuple[Placement, int]) -> None:
    placement, copies = drawn
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"p{suffix}"
        if name == "exflow" and copies:
            with pytest.raises(PlacementError, match="has replicas"):
                write_placement(placement, path, name)
            assert not list(Path(folder).iterdir())
            return
        write_placement(placement, path, name)
        assert [p.name for p in Path(folder).iterdir()] == [path.name]
        layers = placement.info["moe_layer_indices"]
        form = {"name": name, "layers": layers} if name == "sglang" else name
        for given_format in (form, None) if name != "sglang" else (form,):
            again = read_placement(path, placement.n_devices, given_format, placement.n_experts)
            assert np.array_equal(again.replicas, placement.replicas)
        if name in ("sglang", "trtllm", "moesim_json"):
            assert again.info["moe_layer_indices"] == layers


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_filled_slots_say_the_same_and_shift_no_tokens_where_they_need_not(data: st.DataObject) -> None:
    n_devices, n_experts = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 8))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    replicas = rng.random((2, n_experts, n_devices)) < 0.4
    replicas[:, np.arange(n_experts), rng.integers(n_devices, size=n_experts)] = True
    if not replicas.any(axis=1).all():  # a device without experts cannot be filled
        return
    placement = Placement(replicas)
    slots = _slots.slots_of(placement, fill=True)
    assert np.array_equal(_slots.placement_of(slots.tolist(), n_devices, n_experts).replicas, replicas)
    by_device = slots.reshape(2, n_devices, -1)
    for layer, device in np.ndindex(2, n_devices):
        held, count = np.unique(by_device[layer, device], return_counts=True)
        alone = replicas[layer, held].sum(axis=1) == 1
        if alone.any():
            assert (count[~alone] == 1).all(), "a copied expert with replicas elsewhere draws tokens away from them"
