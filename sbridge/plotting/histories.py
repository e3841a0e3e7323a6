"""Figures of the training history."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby, pairwise

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from sbridge.errors import InvalidInputError, shown
from sbridge.plotting.style import INK, SOURCE, axes, tidy

_WIDE_RANGE = 20.0
_WINDOWS = 100
_MOST_LABELS = 8
GROUPS = {"components": "{:g} comp.", "epsilon": "ε = {:.3g}", "half-step": "half-step {:g}"}
"""Numbers of a step whose change starts a new curve, with their labels."""


def history(history: Sequence[Mapping[str, float]], *, ax: Axes | None = None, quantity: str = "loss") -> Axes:
    """Draws a reported quantity against the training step; for long histories faint, with a strong running median.

    A new curve begins when the fit restarts with another number of components, noise level or half-step
    (:data:`GROUPS`); values of different curves are not comparable. The curves have labels if there are few of them. A
    thin line marks each change of ``stage``. The vertical axis is logarithmic if the quantity is
    positive and spans more than a factor of 20.

    Args:
        history: one mapping per step, as callbacks receive it, with the counter ``step`` (1, 2, … if there is none).
        ax: where to draw; a new figure if ``None``.
        quantity: the key to draw.

    Raises:
        InvalidInputError: if no step has the quantity.
    """
    rows = [(k, row) for k, row in enumerate(history, 1) if quantity in row]
    if not rows:
        known = sorted({key for row in history for key in row} - {"step", "stage"})
        raise InvalidInputError(f"no row of the history has {shown(quantity)}; it has {', '.join(known) or 'nothing'}.")
    ax = axes(ax, (5.6, 3.4))
    tidy(ax)
    window = max(1, len(rows) // _WINDOWS)
    curves = [list(curve) for _, curve in groupby(rows, key=lambda item: _group(item[1]))]
    for place, curve in enumerate(curves):
        steps = np.array([float(row.get("step", k)) for k, row in curve])
        values = np.array([float(row[quantity]) for _, row in curve])
        _draw_curve(ax, steps, values, window, named=place == 0)
        if 1 < len(curves) <= _MOST_LABELS:
            ax.annotate(
                _label(curve[0][1]), (0.5 * (steps[0] + steps[-1]), 1.0), xycoords=("data", "axes fraction"),
                ha="center", va="bottom", fontsize=8, color=INK,
            )  # fmt: skip
        if place:
            before = float(curves[place - 1][-1][1].get("step", curves[place - 1][-1][0]))
            ax.axvline(0.5 * (before + steps[0]), color=INK, linewidth=0.4, alpha=0.5, zorder=0)
    values = np.array([float(row[quantity]) for _, row in rows])
    finite = values[np.isfinite(values)]
    if len(finite) and finite.min() > 0 and finite.max() > _WIDE_RANGE * finite.min():
        ax.set_yscale("log")
    for k, change in enumerate(_stage_changes(history)):
        label = None if k else "new stage"
        ax.axvline(change, color=INK, linewidth=0.6, linestyle=(0, (2, 3)), zorder=0, label=label)
    if ax.get_legend_handles_labels()[0]:
        ax.legend(frameon=False, fontsize=8)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("training step")
    ax.set_ylabel(quantity)
    return ax


def _draw_curve(ax: Axes, steps: np.ndarray, values: np.ndarray, window: int, *, named: bool) -> None:
    if window == 1:
        ax.plot(steps, values, color=SOURCE, linewidth=1.6, marker="o" if len(values) < 30 else "", markersize=3.5)
        return
    names = ("every step", f"median of {window} steps") if named else (None, None)
    ax.plot(steps, values, color=SOURCE, alpha=0.25, linewidth=0.6, label=names[0])
    ax.plot(steps, _running_median(values, window), color=SOURCE, linewidth=1.6, label=names[1])


def _group(row: Mapping[str, float]) -> tuple[float | None, ...]:
    return tuple(row.get(key) for key in GROUPS)


def _label(row: Mapping[str, float]) -> str:
    return ", ".join(text.format(row[key]) for key, text in GROUPS.items() if key in row)


def _running_median(values: np.ndarray, window: int) -> np.ndarray:
    """Computes the median of ``window`` values around each; fewer at the two ends."""
    half = window // 2
    padded = np.pad(values, (half, window - 1 - half), constant_values=np.nan)
    return np.nanmedian(np.lib.stride_tricks.sliding_window_view(padded, window), axis=1)


def _stage_changes(history: Sequence[Mapping[str, float]]) -> list[float]:
    """Returns the steps half way between the last step of one stage and the first of the next."""
    staged = [(float(row.get("step", k)), row["stage"]) for k, row in enumerate(history, 1) if "stage" in row]
    return [0.5 * (a[0] + b[0]) for a, b in pairwise(staged) if a[1] != b[1]]
