"""Put names beside points without covering points or other names."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from moesim.plots import _style as style

Mark = tuple[float, str, str]  # x, text, colour

# Where a name may stand: points of distance to the right and upwards, nearest first.
_OFFSETS = [(r * np.cos(a), r * np.sin(a)) for r in (7.0, 13.0, 20.0, 30.0, 42.0)
            for a in np.radians([0, 180, 45, 135, -45, -135, 90, -90])]
_DOT = 4.0  # points around a dot that a name keeps free


def beside(ax: Axes, x: np.ndarray, y: np.ndarray, texts: Sequence[str], colours: Sequence[str],
           keep_off: np.ndarray | None = None) -> None:
    """Write *texts* beside the points (*x*, *y*); a name that stands further off gets a thin line to its point.

    *keep_off* [vertices, 2]: a line of horizontal and vertical pieces that names should not cover.
    """
    style.settle(ax)
    pixel = ax.figure.dpi / 72
    dots = ax.transData.transform(np.column_stack([x, y])) / pixel
    frame = np.array(ax.get_window_extent().extents) / pixel
    taken = [np.array([px - _DOT, py - _DOT, px + _DOT, py + _DOT]) for px, py in dots]
    if keep_off is not None:
        line = ax.transData.transform(keep_off) / pixel
        taken += [np.concatenate([np.minimum(a, b) - 1, np.maximum(a, b) + 1])
                  for a, b in zip(line, line[1:], strict=False)]
    for i in np.lexsort((dots[:, 0], -dots[:, 1])):  # from top to bottom
        size = _size(texts[i])
        boxes = [_box(dots[i], offset, size) for offset in _OFFSETS]
        cost = [sum(_overlap(box, other) for other in taken) + 5 * _outside(box, frame) + 0.2 * np.hypot(*offset)
                for box, offset in zip(boxes, _OFFSETS, strict=True)]
        best = int(np.argmin(cost))
        taken.append(boxes[best])
        _write(ax, (x[i], y[i]), texts[i], _OFFSETS[best], colours[i])


def row(ax: Axes, y: float, marks: Sequence[Mark], up: bool = True) -> float:
    """Write (x, text, colour) *marks* in lines above (or below) the data row *y*, each with a line to its x.

    A name that would touch one to its left goes a line further out. Returns the points that they need.
    """
    style.settle(ax)
    pixel = ax.figure.dpi / 72
    ends: list[float] = []  # of the last name in each line
    sign = 1 if up else -1
    for x, text, colour in sorted(marks):
        at, width = ax.transData.transform((x, y))[0] / pixel, _size(text)[0] * style.SMALL / style.NORMAL
        line = next((i for i, end in enumerate(ends) if at - width / 2 > end + 4), len(ends))
        ends[line:line + 1] = [at + width / 2]
        ax.annotate(text, (x, y), (0, sign * (4 + 1.2 * style.SMALL * line)), textcoords="offset points",
                    ha="center", va="bottom" if up else "top", fontsize=style.SMALL, color=colour, fontweight="bold",
                    annotation_clip=False,
                    arrowprops={"arrowstyle": "-", "lw": 0.7, "color": colour, "shrinkA": 0, "shrinkB": 0})
    return 4 + 1.2 * style.SMALL * len(ends)


def _write(ax: Axes, at: tuple[float, float], text: str, offset: tuple[float, float], colour: str) -> None:
    far = np.hypot(*offset) > 15
    line = {"arrowstyle": "-", "color": style.GREY, "lw": 0.6, "shrinkA": 0, "shrinkB": 3} if far else None
    ax.annotate(text, at, xytext=offset, textcoords="offset points", fontsize=style.NORMAL, color=colour,
                ha=_side(offset[0], "left", "right"), va=_side(offset[1], "bottom", "top"), arrowprops=line)


def _side(distance: float, positive: str, negative: str) -> str:
    return "center" if abs(distance) < 1e-6 else positive if distance > 0 else negative


def _size(text: str) -> tuple[float, float]:
    return 0.56 * style.NORMAL * len(text), 1.15 * style.NORMAL  # mean width of a letter of DejaVu Sans, line height


def _box(dot: np.ndarray, offset: tuple[float, float], size: tuple[float, float]) -> np.ndarray:
    """Return left, bottom, right, top (points) of a name at *offset* from *dot*."""
    back = [{"center": 0.5, "high": 0.0, "low": 1.0}[_side(distance, "high", "low")] for distance in offset]
    low = dot + offset - np.multiply(back, size)
    return np.concatenate([low, low + size])


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Return the area (square points) that two boxes share."""
    width, height = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    return float(max(width, 0.0) * max(height, 0.0))


def _outside(box: np.ndarray, frame: np.ndarray) -> float:
    """Return how far (points) *box* sticks out of *frame*."""
    return float(np.maximum(frame[:2] - box[:2], 0).sum() + np.maximum(box[2:] - frame[2:], 0).sum())
