"""How far from optimal a bridge can be, at one look."""

from __future__ import annotations

from matplotlib.axes import Axes

from sbridge.errors import InvalidInputError
from sbridge.evaluation import Certificate
from sbridge.measures import Estimate
from sbridge.plotting.style import INK, SOURCE, TARGET, axes, tidy

_BAR = 2.0  # standard errors either side


def certificate(found: Certificate, *, ax: Axes | None = None) -> Axes:
    """Bounds in nats on the lower axis, end-law errors over their floors on the upper one, ± two standard errors.

    A good bridge has an energy at the lower bound, a gap and a divergence of its directions at zero, and end-law errors
    at one. None of these means much without the others, so they share a figure. The upper axis is the host's
    ``child_axes``. A number that the certificate has not is left out.

    Args:
        found: what :func:`sbridge.certify` returned.
        ax: where to draw; a new figure if ``None``.
    """
    ax = axes(ax, (5.6, 3.0))
    tidy(ax)
    bounds = {"lower bound $D(g)$": found.lower_bound, "energy": found.energy, "gap": found.gap}
    divergence = found.jeffreys
    if divergence.value is not None and divergence.standard_error is not None:
        spread = divergence.standard_error
        bounds["directions (Jeffreys)"] = Estimate(divergence.value, spread, divergence.samples or 0)
    names = [*bounds, "end law, forward", "end law, backward"]
    for place, estimate in enumerate(bounds.values()):
        _mark(ax, estimate.value, estimate.standard_error, place, SOURCE)
    ax.axvline(0.0, color=INK, linewidth=0.6, linestyle=(0, (2, 3)), zorder=0)
    above = ax.inset_axes((0.0, 0.0, 1.0, 1.0), sharey=ax, facecolor="none")
    for place, direction in enumerate(("forward", "backward"), len(bounds)):
        try:
            value, error, floor = found.end_error(direction)
        except InvalidInputError:  # there is none, as its text says
            continue
        _mark(above, value / floor, error / floor, place, TARGET)
    above.axvline(1.0, color=TARGET, linewidth=0.6, linestyle=(0, (2, 3)), zorder=0)
    above.xaxis.tick_top()
    above.xaxis.set_label_position("top")
    above.spines[["left", "right", "bottom"]].set_visible(False)
    above.tick_params(axis="x", colors=TARGET, labelsize=8)
    above.tick_params(axis="y", left=False, labelleft=False)
    above.set_xlabel("end-law error / its floor", color=TARGET)
    above.set_xlim(left=0.0)
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.set_xlabel("nats")
    return ax


def _mark(ax: Axes, value: float, error: float, place: int, color: str) -> None:
    ax.errorbar([value], [place], xerr=[_BAR * error], fmt="o", color=color, markersize=4, capsize=3, linewidth=1.2)
