"""How training went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from sbridge.errors import InvalidInputError
from sbridge.plotting.style import INK, SOURCE, axes, tidy

_WIDE_RANGE = 20.0
_WINDOWS = 100


def history(history: Sequence[Mapping[str, float]], *, ax: Axes | None = None, quantity: str = "loss") -> Axes:
    """One reported quantity against the training step: every step faint, the running median strong.

    Where rows carry a ``stage``, a thin line stands at each change of stage. The vertical axis is logarithmic if the
    quantity is positive and spans more than a factor of 20.

    Args:
        history: one mapping per step, as callbacks receive it, with the counter ``step`` (1, 2, … if there is none).
        ax: where to draw; a new figure if ``None``.
        quantity: the key to draw.

    Raises:
        InvalidInputError: if no row has the quantity.
    """
    rows = [(float(row.get("step", k)), float(row[quantity])) for k, row in enumerate(history, 1) if quantity in row]
    if not rows:
        known = sorted({key for row in history for key in row} - {"step", "stage"})
        raise InvalidInputError(f"no row of the history has {quantity!r}; there is {', '.join(known) or 'nothing'}.")
    steps, values = np.array(rows).T
    ax = axes(ax, (5.6, 3.4))
    tidy(ax)
    window = max(1, len(values) // _WINDOWS)
    if window > 1:
        ax.plot(steps, values, color=SOURCE, alpha=0.25, linewidth=0.6, label="every step")
        ax.plot(steps, _running_median(values, window), color=SOURCE, linewidth=1.6, label=f"median of {window} steps")
    else:
        ax.plot(steps, values, color=SOURCE, linewidth=1.6, marker="o" if len(values) < 30 else "", markersize=3.5)
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


def _running_median(values: np.ndarray, window: int) -> np.ndarray:
    """The median of ``window`` values around each; fewer at the two ends."""
    half = window // 2
    padded = np.pad(values, (half, window - 1 - half), constant_values=np.nan)
    return np.nanmedian(np.lib.stride_tricks.sliding_window_view(padded, window), axis=1)


def _stage_changes(history: Sequence[Mapping[str, float]]) -> list[float]:
    """The steps half way between the last of one stage and the first of the next."""
    staged = [(float(row.get("step", k)), row["stage"]) for k, row in enumerate(history, 1) if "stage" in row]
    return [0.5 * (a[0] + b[0]) for a, b in pairwise(staged) if a[1] != b[1]]
