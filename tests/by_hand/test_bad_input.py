"""Wrong input: the exact message of every kind of mistake, with file:line, dotted path, fact and remedy."""

from __future__ import annotations

from pathlib import Path

import pytest

import moesim

TINY = Path(__file__).resolve().parent.parent / "data" / "tiny.yaml"

# what is wrong -> (text of tiny.yaml, what to put there, the messages, {line} = where the first changed line is)
MISTAKES = {
    "unknown key": (
        "name: tiny\n", "name: tiny\nsede: 1\n",
        ["{file}:{line+1}: sede: unknown key; did you mean 'seed'?"]),
    "missing key": (
        "placement: {solver: lpt}\n", "",
        ["{file}:1: placement: missing; add it"]),
    "key given twice": (
        "name: tiny\n", "name: tiny\nname: again\n",
        ["{file}:{line+1}: name: given twice (first on line {line}); keep one"]),
    "no unit": (
        "capacity: 1 GB", "capacity: 1",
        ["{file}:{line}: hardware.device.memory.0.capacity: 1 has no unit; write a size, e.g. '141 GB'"]),
    "unit of another kind": (
        "bandwidth: 10 GB/s", "bandwidth: 10 GB",
        ["{file}:{line}: hardware.scale_up.bandwidth: '10 GB' is not a bandwidth; write e.g. '4.8 TB/s'"]),
    "ambiguous unit": (
        "bandwidth: 10 GB/s", "bandwidth: 10 Gb/s",
        ["{file}:{line}: hardware.scale_up.bandwidth: '10 Gb/s' is ambiguous: write Gbit (bits) or GB (bytes)"]),
    "negative quantity": (
        "startup: 5 us", "startup: -5 us",
        ["{file}:{line}: hardware.scale_up.startup: '-5 us' is negative; a time is not"]),
    "unknown part": (
        "solver: lpt", "solver: lptt",
        ["{file}:{line}: placement.solver: unknown solver 'lptt'; did you mean 'lpt'?"]),
    "unknown parameter of a part": (
        "max_tokens: 64", "max_token: 64",
        ["{file}:{line}: scheduler: prefill_first has no parameter 'max_token'; did you mean 'max_tokens'?"]),
    "text for a number": (
        "devices_per_node: 2", "devices_per_node: two",
        ["{file}:{line}: hardware.devices_per_node: Input should be a valid integer, got 'two'"]),
    "number out of range": (
        "efficiency: 0.8", "efficiency: 1.8",
        ["{file}:{line}: hardware.scale_up.efficiency: Input should be less than or equal to 1, got 1.8"]),
    "unknown choice": (
        "kind: closed_loop", "kind: closed",
        ["{file}:{line}: requests.kind: unknown 'kind' 'closed'; known: 'poisson', 'closed_loop', 'replay'"]),
    "text for a mapping": (
        "{low: 8, high: 24}", "many",
        ["{file}:{line}: requests.prompt_tokens: 'many' is no number of tokens; write a whole one (512), or "
         "{low: 128, high: 512}"]),
    "a list for a range": (
        "{low: 8, high: 24}", "[8, 24]",
        ["{file}:{line}: requests.prompt_tokens: [8, 24] is no number of tokens; write a whole one (512), or "
         "{low: 128, high: 512}"]),
    "a list for a mapping": (
        "{solver: lpt}", "[lpt]",
        ["{file}:{line}: placement: must be a mapping of keys to values, got ['lpt']"]),
    "a mapping for a list": (
        "  nodes: 1\n", "  nodes: 1\n  host: {capacity: 1 GB}\n",
        ["{file}:{line+1}: hardware.host: Input should be a list, got {'capacity': '1 GB'}"]),
    "no capacity": (
        "name: tiny\n", "name: tiny\ncache: {capacity: [25%, 50%]}\n",
        ["{file}:{line+1}: cache.capacity: ['25%', '50%'] is no capacity; write a number of experts (8), a share "
         "('25%') or a size ('20 GB')"]),
    "not YAML": (
        "hidden: 64", "hidden: [64",
        ["{file}:{line+1}: not valid YAML: expected ',' or ']', but got ':'"]),
    "experts do not fit": (
        "capacity: 1 GB", "capacity: 100 kB",
        ["{file}:{line_of hardware}: hardware: the weights do not fit: each of 2 devices needs 125.6 kB and has 90 kB "
         "(90% of hbm), 35.57 kB too little; more devices, a larger parallelism.tp, narrower model.dtype.experts, a "
         "cache of experts (cache) or a higher memory_fraction would help"]),
    "tensor parallel over too many": (
        "name: tiny\n", "name: tiny\nparallelism: {tp: 3}\n",
        ["{file}:{line+1}: parallelism.tp: 3 does not divide the 2 devices of a node; use a divisor"]),
    "lengths twice": (
        "  scaled: true\n", "  scaled: true\n  join: paired\n",
        [f"{{file}}:{{line_of requests}}: requests.{which}_tokens: trace.join is paired: lengths are the trace's own; "
         "remove it" for which in ("prompt", "output")]),
    "several mistakes at once": (
        "devices_per_node: 2\n  nodes: 1\n", "devices_per_node: 0\n  node: 1\n",
        ["{file}:{line_of hardware}: hardware.nodes: missing; add it",
         "{file}:{line}: hardware.devices_per_node: Input should be greater than or equal to 1, got 0",
         "{file}:{line+1}: hardware.node: unknown key; did you mean 'nodes'?"]),
}


def expand(message: str, file: Path, text: str, line: int) -> str:
    """Return *message* with its places filled in."""
    message = message.replace("{file}", str(file)).replace("{line}", str(line)).replace("{line+1}", str(line + 1))
    for key in ("hardware", "requests"):
        number = next(i for i, row in enumerate(text.splitlines(), 1) if row.startswith(f"{key}:"))
        message = message.replace(f"{{line_of {key}}}", str(number))
    return message


@pytest.mark.parametrize("what", MISTAKES)
def test_exact_message(what: str, tmp_path: Path) -> None:
    old, new, messages = MISTAKES[what]
    text = TINY.read_text()
    assert text.count(old) >= 1
    line = text[: text.index(old)].count("\n") + 1
    file = tmp_path / "bad.yaml"
    file.write_text(text.replace(old, new, 1))
    with pytest.raises(moesim.ConfigError) as caught:
        moesim.load(file)
    assert str(caught.value).splitlines() == [expand(m, file, file.read_text(), line) for m in messages]
