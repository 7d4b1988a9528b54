"""What one step costs: seconds of every phase on every device, and bytes on every link.

A step is the model's layers, and after them one entry more for what closes the step (output head,
context exchange, what the host adds). A layer is phases, in the order of ``PHASES``; which of them wait for others
is in ``SYNC``. Both engines evaluate the same ``StepCost``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from moesim.sim.routing import Routes, uneven
from moesim.sim.traffic import Traffic

LOCAL, GROUP, ALL = 0, 1, 2  # a phase runs on one device, or starts when its tensor-parallel group, or all, are there

PHASES = ("attention", "attention_reduce", "gate", "dispatch", "fetch", "shared", "experts", "combine", "dense",
          "dense_reduce", "send", "head", "context", "host")
SYNC = np.array([LOCAL, GROUP, LOCAL, ALL, LOCAL, LOCAL, LOCAL, ALL, LOCAL,
                 GROUP, ALL, LOCAL, ALL, LOCAL], dtype=np.int8)
INDEX = {name: i for i, name in enumerate(PHASES)}


@dataclass(frozen=True)
class Batch:
    """The tokens of one step, in SI and counts; P prompts, R decoding requests, both in order of groups.

    ``prefill_*``: per prompt, or chunk of one, its request number, tokens, tokens before it that are in memory, whether
    its last token gives an output token, and its group; ``prefill_rows``: trace rows of all its tokens. ``decode_*``:
    per decoding request, its number, context length with the new token, group and trace row. ``pad_*``: group and row
    of tokens that only fill up what was captured.
    """

    prefill: np.ndarray
    prefill_tokens: np.ndarray
    prefill_past: np.ndarray
    prefill_sampled: np.ndarray
    prefill_group: np.ndarray
    prefill_rows: np.ndarray
    decode: np.ndarray
    decode_kv: np.ndarray
    decode_group: np.ndarray
    decode_rows: np.ndarray
    pad_group: np.ndarray
    pad_rows: np.ndarray

    @property
    def rows(self) -> np.ndarray:
        """Return the trace rows of all tokens, prompts first, then decodes, then padding."""
        return np.concatenate([self.prefill_rows, self.decode_rows, self.pad_rows])

    def tokens(self, n_groups: int) -> np.ndarray:
        """Return how many tokens each of *n_groups* groups runs, padding too."""
        return (np.bincount(self.decode_group, minlength=n_groups) + np.bincount(self.pad_group, minlength=n_groups)
                + np.bincount(self.prefill_group, self.prefill_tokens, n_groups).astype(np.int64))

    @property
    def sampled_group(self) -> np.ndarray:
        """Return the group of every output token of the step."""
        return np.concatenate([self.prefill_group[self.prefill_sampled], self.decode_group])

    @property
    def n_prefill_tokens(self) -> int:
        """Number of prompt tokens."""
        return len(self.prefill_rows)

    def home(self, tp: int) -> np.ndarray:
        """Return the device of every token in the order of ``rows``: its group's devices take turns. int32 [T]."""
        group = np.concatenate([np.repeat(self.prefill_group, self.prefill_tokens), self.decode_group, self.pad_group])
        if tp == 1:
            return group.astype(np.int32)
        order = np.argsort(group, kind="stable")
        rank = np.empty(len(group), np.int64)
        first = np.searchsorted(group[order], group[order])
        rank[order] = np.arange(len(group)) - first
        return (group * tp + rank % tp).astype(np.int32)


@dataclass
class StepCost:
    """Seconds and bytes of a step.

    ``seconds``: float64 [layers + 1, PHASES, devices]; a phase that other devices wait for has the same time on all
    that take part. ``present``: bool [layers + 1, PHASES], which phases a layer has. ``link_bytes``: per phase that
    communicates, bytes on every link of the network, float64 [links]. ``load_max_over_mean``: tokens of the busiest
    device's experts over the mean, averaged over the layers with experts. ``traffic``: per phase that communicates,
    what it sends. ``expert_tokens``: tokens per expert slot, [layers with experts, devices, slots]; None without them.
    ``routes``: from which they were counted.
    ``readers``: devices that read the weights outside experts, and the head's; None: those of groups with tokens.
    ``spent``: what else a step adds up, by the column of ``steps`` that gets it: joules, and seconds of
    processors beside the devices' own under the name of their share. ``beside``: their kind, and by phase their
    seconds, [the phase's layers, devices]; they begin as the phase does.
    """

    seconds: np.ndarray
    present: np.ndarray
    link_bytes: dict[str, np.ndarray]
    load_max_over_mean: float = 1.0
    traffic: dict[str, list[Traffic]] = field(default_factory=dict)
    expert_tokens: np.ndarray | None = None
    routes: Routes | None = None
    readers: tuple[float, float] | None = None
    spent: dict[str, float] = field(default_factory=dict)
    beside: tuple[str, dict[str, np.ndarray]] | None = None

    @classmethod
    def empty(cls, n_layers: int, n_devices: int) -> StepCost:
        """Return a step in which nothing happens."""
        return cls(np.zeros((n_layers + 1, len(PHASES), n_devices)), np.zeros((n_layers + 1, len(PHASES)), bool), {})

    def clear(self) -> StepCost:
        """Forget everything; return this step, empty again (large arrays are reused from step to step)."""
        self.seconds.fill(0.0)
        self.present.fill(False)
        self.link_bytes = {}
        self.traffic = {}
        self.spent, self.beside, self.routes = {}, None, None
        self.load_max_over_mean = 1.0
        return self

    def put(self, phase: str, layers: np.ndarray | slice | int, seconds: np.ndarray | float) -> None:
        """Set the *seconds* of *phase* in *layers* ([layers, devices], or what broadcasts to it)."""
        self.seconds[layers, INDEX[phase]] = seconds
        self.present[layers, INDEX[phase]] = True

    def note_load(self, tokens: np.ndarray, load: np.ndarray) -> None:
        """Note *tokens* per expert slot ([layers, devices, slots]), and how even *load*, their sum, is over devices."""
        self.expert_tokens = tokens
        self.load_max_over_mean = float(uneven(load).sum()) / len(load)

    def add_bytes(self, phase: str, loads: np.ndarray) -> None:
        """Add bytes per link ([..., links]) of *phase*."""
        total = loads.reshape(-1, loads.shape[-1]).sum(axis=0)
        self.link_bytes[phase] = self.link_bytes.get(phase, 0.0) + total

    def note_traffic(self, phase: str, traffic: Traffic) -> None:
        """Note what *phase* sends, after what has been noted for it before."""
        self.traffic.setdefault(phase, []).append(traffic)


def block(indices: np.ndarray) -> np.ndarray | slice:
    """Return what takes *indices* (ascending): a slice, which is quicker, if they follow one another."""
    if len(indices) and indices[-1] - indices[0] == len(indices) - 1:
        return slice(int(indices[0]), int(indices[-1]) + 1)
    return indices


def spent(costs: Sequence[StepCost], length_s: float) -> dict[str, float]:
    """Return the sums of what *costs* spent, of a step of *length_s*: seconds become shares of it."""
    names = dict.fromkeys(name for cost in costs for name in cost.spent)
    sums = {name: sum(cost.spent.get(name, 0.0) for cost in costs) for name in names}
    return {name: value / length_s if name.endswith("_share") else value for name, value in sums.items()}
