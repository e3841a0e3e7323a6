"""Common parts of all figures: colours, mark sizes, new axes and small multiples.

Nothing here touches pyplot, the backend or ``rcParams``: a figure made by this package is a bare
``matplotlib.figure.Figure``, and every setting is made on the artist that it concerns.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure

from sbridge.display import time_text

# Okabe & Ito's blue and vermillion keep apart for every kind of colour vision. Time runs from one to the other, so a
# colour means the same moment in every figure.
SOURCE = "#0072B2"
TARGET = "#D55E00"
BACKDROP = "#B8B8B8"
INK = "#333333"
TIME = LinearSegmentedColormap.from_list("sbridge.time", [SOURCE, "#5A6BB0", "#8A63A0", "#B55E77", TARGET])

_PANEL_INCHES = 2.5
_BETWEEN_COLUMNS = 0.2
_BETWEEN_ROWS = 0.8


@dataclass(frozen=True)
class Clock:
    """The times of a bridge on the axis of the user, with the same colours in all figures of a time course.

    Args:
        origin: the time on that axis at bridge time 0.
        first: start of the axis, in the colour of the source.
        last: end of the axis, in the colour of the target.
    """

    origin: float
    first: float
    last: float

    @classmethod
    def of(cls, horizon: float) -> Clock:
        """Makes the clock of the bridge itself."""
        return cls(0.0, 0.0, horizon)

    def shown(self, t: float) -> float:
        """Converts a time ``t`` of the bridge to the axis."""
        return self.origin + t

    def label(self, t: float) -> str:
        """Formats a time of the axis, with three digits where these distinguish its times."""
        shown, length = self.shown(t), self.last - self.first
        return f"{shown:.3g}" if abs(shown) < 100.0 * length else time_text(shown)

    def colour(self, t: float) -> tuple[float, float, float, float]:
        """Returns the colour of the time ``t`` of the bridge."""
        return TIME((self.shown(t) - self.first) / (self.last - self.first))

    @property
    def norm(self) -> Normalize:
        """Returns the map from times on the axis to colours."""
        return Normalize(self.first, self.last)


def axes(ax: Axes | None, size: tuple[float, float] = (5.0, 4.6)) -> Axes:
    """Returns ``ax``, or the axes of a new figure of ``size`` inches."""
    return Figure(figsize=size, layout="constrained").add_subplot() if ax is None else ax


def panels(ax: Axes | None, count: int, shape: float, *, per_row: int) -> tuple[Axes, list[Axes]]:
    """Makes ``count`` panels, each ``shape`` times as high as wide, inside one host axes; returns both.

    The panels are the host's ``child_axes``; a single panel is the host itself.
    """
    if count == 1:
        host = axes(ax)
        return host, [host]
    columns = min(count, per_row)
    rows = math.ceil(count / columns)
    wide = columns * _PANEL_INCHES + (columns - 1) * _BETWEEN_COLUMNS
    tall = rows * shape * _PANEL_INCHES + (rows - 1) * _BETWEEN_ROWS
    host = axes(ax, (wide + 0.7, tall + 0.8))
    host.set_axis_off()
    inner = []
    for index in range(count):
        row, column = divmod(index, columns)
        left = column * (_PANEL_INCHES + _BETWEEN_COLUMNS) / wide
        bottom = (rows - 1 - row) * (shape * _PANEL_INCHES + _BETWEEN_ROWS) / tall
        inner.append(host.inset_axes((left, bottom, _PANEL_INCHES / wide, shape * _PANEL_INCHES / tall)))
    return host, inner


def point_size(count: int) -> float:
    """Returns the area of a mark, in points squared, for ``count`` points."""
    return float(np.clip(4000.0 / max(count, 1), 3.0, 14.0))


def opacity(count: int, *, full: int = 150) -> float:
    """Returns the alpha of one mark of ``count``: opaque up to ``full`` marks, then decreasing like a square root."""
    return float(np.clip(math.sqrt(full / max(count, 1)), 0.08, 0.9))


def cloud(ax: Axes, points: np.ndarray, color: object, *, label: str | None = None, zorder: float = 2.0) -> None:
    """Draws a scatter plot of ``points`` (n, 2) in which dense regions stay readable."""
    ax.scatter(
        points[:, 0],
        points[:, 1],
        s=point_size(len(points)),
        color=color,  # type: ignore[arg-type]
        alpha=opacity(len(points), full=400),
        linewidths=0,
        label=label,
        zorder=zorder,
    )


def tidy(ax: Axes) -> None:
    """Leaves two spines and unobtrusive ticks."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color("#888888")
    ax.tick_params(colors="#555555", labelsize=8)


def plane(ax: Axes, labels: Sequence[str]) -> None:
    """Labels two coordinates with the same unit, at equal aspect."""
    tidy(ax)
    ax.set_aspect("equal", adjustable="box")
    ax.set_xlabel(labels[0])
    ax.set_ylabel(labels[1])


def legend(ax: Axes) -> None:
    """Draws a frameless legend above the axes, with visible marks."""
    shown = ax.legend(
        loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=4, frameon=False, fontsize=8, borderaxespad=0.2,
        handletextpad=0.3, columnspacing=1.2,
    )  # fmt: skip
    for handle in shown.legend_handles:
        if handle is not None:
            handle.set_alpha(1.0)
            if hasattr(handle, "set_sizes"):
                handle.set_sizes([18.0])  # type: ignore[attr-defined]


def time_bar(ax: Axes, clock: Clock) -> None:
    """Draws a colour bar of time next to ``ax``."""
    color_bar(ax, ScalarMappable(clock.norm, TIME), "time $t$")


def color_bar(ax: Axes, mappable: ScalarMappable, label: str) -> None:
    """Draws a bar as tall as ``ax``, even where an equal aspect makes it lower than its place in the figure."""
    bar = ax.figure.colorbar(mappable, cax=ax.inset_axes((1.03, 0.0, 0.03, 1.0)))
    bar.set_label(label)
    bar.outline.set_visible(False)  # type: ignore[operator]
    bar.ax.tick_params(colors="#555555", labelsize=8)


def spaced(count: int, most: int) -> np.ndarray:
    """Returns at most ``most`` evenly spaced indices below ``count``, including the first and the last."""
    return np.linspace(0, count - 1, min(count, most)).round().astype(int)


def limits(points: np.ndarray, margin: float = 0.06) -> tuple[np.ndarray, np.ndarray]:
    """Returns lower and upper corner (each ``(columns,)``) of all but a thousandth of ``points``, with a margin."""
    low, high = np.quantile(points.reshape(-1, points.shape[-1]), [0.0005, 0.9995], axis=0)
    pad = margin * np.maximum(high - low, 1e-12)
    return low - pad, high + pad


def shape(low: np.ndarray, high: np.ndarray) -> float:
    """Returns height over width of a plane with these limits, kept between a half and two."""
    return float(np.clip((high[1] - low[1]) / (high[0] - low[0]), 0.5, 2.0))
