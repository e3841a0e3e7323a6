"""Figure of a coupling of source and target rows."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from torch import Tensor

from sbridge.errors import InvalidInputError
from sbridge.laws import as_rows
from sbridge.plotting.projection import Projection
from sbridge.plotting.style import INK, SOURCE, TARGET, axes, cloud, legend, limits, opacity, plane, spaced, tidy


def coupling(
    x0: Tensor | np.ndarray,
    x1: Tensor | np.ndarray,
    *,
    ax: Axes | None = None,
    projection: Projection | None = None,
    span: tuple[str, str] = ("0", "T"),
    most: int = 300,
) -> Axes:
    """Draws straight lines from samples ``x0`` to the coupled samples ``x1``.

    In one dimension the lines run from the first time to the last on the horizontal axis.

    Args:
        x0: sources, ``(n, dim)``.
        x1: their partners, in the same order: for example ``bridge.transport(x0, seed=0)``.
        ax: where to draw; a new figure if ``None``.
        projection: the plane; fitted to ``x0`` and ``x1`` if ``None``.
        span: labels of the two times.
        most: largest number of pairs drawn, evenly spaced among the samples.

    Raises:
        InvalidInputError: if the arrays differ in shape or hold no finite rows.
    """
    x0, x1 = as_rows(x0, "x0", least=1), as_rows(x1, "x1", least=1)
    if x0.shape != x1.shape:
        raise InvalidInputError(
            f"a coupling pairs rows: x0 and x1 need the same shape, got {tuple(x0.shape)} and {tuple(x1.shape)}."
        )
    projection = projection or Projection.fit(x0, x1)
    index = spaced(len(x0), most)
    start, stop = projection(x0)[index], projection(x1)[index]
    ax = axes(ax)
    if projection.columns == 1:
        start, stop = (np.column_stack([np.full(len(y), x), y]) for x, y in ((0.0, start), (1.0, stop)))
        tidy(ax)
        ax.set_xticks([0.0, 1.0], span)
        ax.set_xlabel("time $t$")
        ax.set_ylabel(projection.labels[0])
    else:
        plane(ax, projection.labels)
    lines = np.stack([start, stop], axis=1)
    ax.add_collection(LineCollection(list(lines), colors=INK, linewidths=0.6, alpha=opacity(len(index), full=40)))
    cloud(ax, start, SOURCE, label=f"source, $t$ = {span[0]}", zorder=3)
    cloud(ax, stop, TARGET, label=f"partner, $t$ = {span[1]}", zorder=3)
    low, high = limits(lines)
    ax.set_xlim(low[0], high[0])
    ax.set_ylim(low[1], high[1])
    legend(ax)
    return ax
