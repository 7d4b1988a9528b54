"""Where the time of a step goes: phases stacked, one bar per placement and mode."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from moesim.plots import _labels
from moesim.plots import _style as style

# phase -> colour, in the order of the engine; communication is warm, computing cool, waiting has none.
COLOURS = {"attention": style.BLUE, "attention_reduce": style.YELLOW, "gate": style.BLACK, "dispatch": style.ORANGE,
           "shared": style.PURPLE, "experts": style.GREEN, "combine": style.VERMILION, "dense": style.SKY,
           "dense_reduce": style.YELLOW, "send": style.YELLOW, "head": style.GREY, "context": style.YELLOW,
           "other": style.FAINT, "wait": "white"}
MERGED = 0.015  # a phase with less than this share of every bar is "other"
LETTER = 0.013  # share of the longest bar that a letter of a name takes


def breakdown(table: pd.DataFrame, ax: Axes | None = None, *, what: str = "step", title: str = "{answer}") -> Axes:
    """Draw the columns ``<phase>_s`` of *table* as a stacked bar per row; *what* names the time that a bar is.

    *table*: placement and/or mode, and one column per phase in seconds, such as the mean of ``Result.steps``
    (mean over devices; ``wait_s`` is waiting for other devices). start_s and end_s are left out.
    """
    columns = [str(c) for c in table if str(c).endswith("_s") and c not in ("start_s", "end_s")]
    style.need(table, columns or ["attention_s"], "breakdown")
    names = list(style.labels(table))
    phases, seconds = _merge([c.removesuffix("_s") for c in columns], table[columns].fillna(0.0).to_numpy(float))
    divisor, unit = style.scale(seconds.sum(axis=1), "s")
    times = seconds / divisor
    ends = times.cumsum(axis=1)
    ax = style.axes(ax, (style.WIDTH, 1.4 + 0.36 * len(names)))
    for i, phase in enumerate(phases):
        wait = phase == "wait"
        ax.barh(range(len(names)), times[:, i], left=ends[:, i] - times[:, i], height=0.72, lw=0.8,
                color=_colour(phase), edgecolor=style.GREY if wait else "white", hatch="////" if wait else None)
    for row, value in enumerate(ends[:, -1]):
        ax.annotate(f"{value:#.3g}", (value, row), (4, 0), textcoords="offset points", va="center",
                    fontsize=style.NORMAL, color=style.INK)
    ax.set_xlim(0, 1.1 * ends.max())
    style.rows(ax, names)
    space = _names(ax, phases, times, ends)
    return style.finish(ax, style.answer(title, _title(phases, times, names, what)),
                        f"time of a {what}, mean over devices {unit.split(' ')[-1]}", pad=space)


def _merge(phases: list[str], seconds: np.ndarray) -> tuple[list[str], np.ndarray]:
    """Return phases and seconds [rows, phases] in the order of ``COLOURS``, those too short to see as "other"."""
    share = (seconds / seconds.sum(axis=1, keepdims=True)).max(axis=0)
    seen = [i for i, phase in enumerate(phases) if share[i] >= MERGED or (phase == "wait" and share[i] > 0)]
    rest = np.delete(seconds, seen, axis=1).sum(axis=1)
    shown = {phases[i]: seconds[:, i] for i in seen} | ({"other": rest} if rest.any() else {})
    known = list(COLOURS)
    order = sorted(shown, key=lambda phase: known.index(phase if phase in known else "other"))
    return order, np.stack([shown[phase] for phase in order], axis=1)


def _colour(phase: str) -> str:
    return COLOURS.get(phase, style.FAINT)


def _names(ax: Axes, phases: list[str], times: np.ndarray, ends: np.ndarray) -> float:
    """Name each phase once: in its widest segment, or, if that is too narrow, above the first bar or below the last.

    Returns the points needed above.
    """
    above: list[_labels.Mark] = []
    below: list[_labels.Mark] = []
    for i, phase in enumerate(phases):
        name, middle = phase.replace("_", " "), ends[:, i] - times[:, i] / 2
        row = int(times[:, i].argmax())
        if times[row, i] > LETTER * len(name) * ends.max():
            box = {"boxstyle": "square,pad=0.1", "fc": "white", "ec": "none"} if phase == "wait" else None
            ax.text(middle[row], row, name, ha="center", va="center", fontsize=style.SMALL,
                    color=style.on(_colour(phase)), bbox=box)
        elif times[0, i] > 0:
            above.append((float(middle[0]), name, style.INK))
        else:
            below.append((float(middle[-1]), name, style.INK))
    if below:
        ax.set_ylim(len(times), -0.6)
        _labels.row(ax, len(times) - 1 + 0.36, below, up=False)
    return _labels.row(ax, -0.36, above)


def _title(phases: list[str], times: np.ndarray, names: list[str], what: str) -> str:
    total = times.sum(axis=1)
    fast, slow = int(total.argmin()), int(total.argmax())
    if fast == slow:
        largest = int(times[slow].argmax())
        return f"{phases[largest].replace('_', ' ')} is {times[slow, largest] / total[slow]:.0%} of a {what}"
    gap = phases[int((times[slow] - times[fast]).argmax())].replace("_", " ")
    return (f"A {what} takes {total[slow] / total[fast]:.2f}x as long with {names[slow]} as with {names[fast]}; "
            f"the largest part of the gap is {gap}")
