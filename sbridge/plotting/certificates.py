"""Figure of a certificate: the bounds on the suboptimality of a bridge."""

from __future__ import annotations

import textwrap

from matplotlib.axes import Axes

from sbridge.display import value_and_error
from sbridge.evaluation.certificate import Certificate
from sbridge.plotting.style import INK, SOURCE, axes, tidy

_BAR = 2.0  # standard errors either side
_MARGIN = 0.06
_LINE = 72  # characters


def certificate(found: Certificate, *, ax: Axes | None = None) -> Axes:
    """Draws the bounds of a certificate in nats, each ± two standard errors, below the verdict and its reason.

    A good bridge has an energy at the lower bound, and a gap and a divergence of its directions at zero. A divergence
    that the certificate does not have is not drawn.

    Args:
        found: what :func:`sbridge.certify` returned.
        ax: where to draw; a new figure if ``None``.
    """
    ax = axes(ax, (6.4, 3.0))
    tidy(ax)
    bounds = {
        "lower bound $D(g)$": (found.lower_bound.value, found.lower_bound.standard_error),
        "energy": (found.energy.value, found.energy.standard_error),
        "gap": (found.gap.value, found.gap.standard_error),
    }
    divergence = found.jeffreys
    if divergence is not None and divergence.value is not None and divergence.standard_error is not None:
        bounds["directions (Jeffreys)"] = (divergence.value, divergence.standard_error)
    reach = [0.0]
    for place, (value, error) in enumerate(bounds.values()):
        ax.errorbar(
            [value], [place], xerr=[_BAR * error], fmt="o", color=SOURCE, markersize=4, capsize=3, linewidth=1.2
        )
        reach += [value - _BAR * error, value + _BAR * error]
    ax.axvline(0.0, color=INK, linewidth=0.6, linestyle=(0, (2, 3)), zorder=0)
    names = [f"{name}\n{value_and_error(value, error)}" for name, (value, error) in bounds.items()]
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.5, -0.5)
    pad = _MARGIN * max(max(reach) - min(reach), 1e-12)
    ax.set_xlim(min(reach) - pad, max(reach) + pad)
    ax.set_xlabel("nats")
    ax.set_title(textwrap.fill(str(found.verdict), _LINE), fontsize=9, color=INK, loc="left")
    return ax
