"""The contract that every registered part keeps, whatever its kind."""

from __future__ import annotations

import dataclasses
import doctest
import importlib
import inspect

import pytest

from moesim import registry

PARTS = [(kind, name) for kind in registry.KINDS for name in registry.names(kind)]


def required(kind: str, name: str) -> dict[str, object]:
    """Return values for the parameters that a part has no default for."""
    examples: dict[tuple[str, str], dict[str, object]] = {
        ("topology", "leaf_spine"): {"leaves": 2, "spines": 2, "hosts_per_leaf": 2, "link": "400 Gbit/s"},
        ("topology", "switch"): {"hosts": 4},
        ("topology", "fat_tree"): {"pods": 2, "leaves": 2, "hosts_per_leaf": 2, "aggs": 2, "cores_per_agg": 2},
        ("topology", "multi_plane"): {"planes": 2, "leaves": 2, "spines": 2, "hosts_per_leaf": 2, "ports": "one"},
        ("topology", "nvlink"): {"devices": 8, "switches": 4, "link": "450 GB/s"},
        ("topology", "rail_optimised"): {"pods": 2, "nodes_per_pod": 2, "rails": 2, "spines": 2},
        ("topology", "degraded"): {"fabric": {"name": "switch", "hosts": 4}, "factors": {"host1": 0.5}},
        ("all_to_all", "coordinated"): {"width": 2},
        ("layer_profile", "llmservingsim"): {"path": "profile"},
    }
    return examples.get((kind, name), {})


@pytest.mark.parametrize(("kind", "name"), PARTS)
def test_says_what_it_is(kind: str, name: str) -> None:
    cls = registry.find(kind, name)
    module = importlib.import_module(cls.__module__)
    first = registry.summary(kind, name)
    assert 10 < len(first) <= 140 and first[0].isupper(), "the first line is what `moesim list` prints"
    examples = doctest.DocTestParser().get_examples(inspect.getdoc(module) or "")
    assert examples, "a doctest in the module's docstring shows what makes the part different"
    assert cls.__doc__ and getattr(cls, registry.KINDS[kind][1]).__doc__


@pytest.mark.parametrize(("kind", "name"), PARTS)
def test_is_a_frozen_record_of_its_parameters(kind: str, name: str) -> None:
    part = registry.make(kind, {"name": name} | required(kind, name))
    assert registry.name_of(part) == name
    assert registry.make(kind, registry.dump(part)) == part
    assert registry.make(kind, part) is part
    for field in dataclasses.fields(part):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(part, field.name, None)
    with pytest.raises(registry.UnknownPart, match="no parameter 'no_such_parameter'"):
        registry.make(kind, {"name": name, "no_such_parameter": 1} | required(kind, name))


def test_unknown_names_are_answered_with_the_nearest() -> None:
    with pytest.raises(registry.UnknownPart, match="unknown solver 'linaer'; did you mean 'linear'?"):
        registry.make("solver", "linaer")
    with pytest.raises(registry.UnknownPart, match="a scheduler needs a name, one of: decode_first"):
        registry.make("scheduler", {"max_batch": 3})
