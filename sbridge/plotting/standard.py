"""The figures of a run folder."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from sbridge import files
from sbridge.diffusion import is_reverse_diffusion
from sbridge.evaluation import Certificate
from sbridge.laws import as_rows
from sbridge.plotting.certificates import certificate
from sbridge.plotting.clouds import marginals
from sbridge.plotting.couplings import coupling
from sbridge.plotting.courses import trajectories
from sbridge.plotting.diffusion import reversals, score_field
from sbridge.plotting.fields import drift_field
from sbridge.plotting.histories import history as draw_history
from sbridge.plotting.projection import Projection
from sbridge.plotting.style import spaced
from sbridge.random import Seed, as_seed, derive
from sbridge.solutions import Bridge

_DOTS_PER_INCH = 150
_PATHS = 150
_PAIRS = 300
_DIFFUSION_TIMES = (0.0, 0.02, 0.1, 0.3, 1.0)  # most happens near the data


def standard_figures(
    bridge: Bridge,
    x0: Tensor | np.ndarray,
    x1: Tensor | np.ndarray,
    history: Sequence[Mapping[str, float]],
    folder: str | Path,
    *,
    seed: Seed,
) -> tuple[Path, ...]:
    """Writes ``trajectories``, ``marginals``, ``drift``, ``coupling`` and ``history`` as PNG files, each atomically.

    Of a reverse diffusion: ``reversal`` (trajectories with and without the score), ``marginals`` of the noising,
    ``generation`` (those of the reversal), ``score`` and ``history``. All share one plane, fitted to ``x0`` and ``x1``.
    ``history.png`` is left out if no step reported a number.

    Args:
        bridge: the solution.
        x0: source rows ``(n, dim)``; trajectories and coupling start in some of them.
        x1: target rows.
        history: one mapping per training step, may be empty.
        folder: made if missing.
        seed: of everything simulated for the figures.

    Returns:
        The files, in the order above.
    """
    seed, x0, x1 = as_seed(seed), as_rows(x0, "x0", least=1), as_rows(x1, "x1", least=1)
    plane = Projection.fit(x0, x1)
    draw = _diffusion_drawings if is_reverse_diffusion(bridge) else _bridge_drawings
    drawings = draw(bridge, x0, plane, seed)
    quantity = _quantity(history)
    if quantity is not None:
        drawings["history"] = lambda: draw_history(history, quantity=quantity)
    return tuple(_write(draw(), Path(folder) / f"{name}.png") for name, draw in drawings.items())


def save_certificate(found: Certificate, path: str | Path) -> Path:
    """Writes :func:`~sbridge.plotting.certificate` as a PNG file, atomically."""
    return _write(certificate(found), Path(path))


def _bridge_drawings(bridge: Bridge, x0: Tensor, plane: Projection, seed: int) -> dict[str, Callable[[], Axes]]:
    few, starts = (x0[spaced(len(x0), most)] for most in (_PATHS, _PAIRS))
    times = [bridge.horizon * share for share in _field_times(plane)]
    return {
        "trajectories": lambda: trajectories(
            bridge.forward.simulate(few, seed=derive(seed, "paths")), projection=plane
        ),
        "marginals": lambda: marginals(bridge, seed=derive(seed, "marginals"), projection=plane),
        "drift": lambda: drift_field(bridge, times, seed=derive(seed, "drift"), projection=plane),
        "coupling": lambda: coupling(starts, bridge.transport(starts, seed=derive(seed, "coupling")), projection=plane),
    }


def _diffusion_drawings(bridge: Bridge, x0: Tensor, plane: Projection, seed: int) -> dict[str, Callable[[], Axes]]:
    times = [bridge.horizon * share for share in _DIFFUSION_TIMES]
    back = bridge.reversed()
    return {
        "reversal": lambda: reversals(bridge, seed=derive(seed, "paths"), projection=plane),
        "marginals": lambda: marginals(bridge, times, seed=derive(seed, "marginals"), projection=plane),
        "generation": lambda: marginals(back, times[::-1], seed=derive(seed, "generation"), projection=plane),
        "score": lambda: score_field(bridge, times[1:-1], seed=derive(seed, "score"), projection=plane),
    }


def _field_times(plane: Projection) -> list[float]:
    return [0.1, 0.5, 0.9] if plane.columns == 2 else [k / 12 for k in range(12)]


def _quantity(history: Sequence[Mapping[str, float]]) -> str | None:
    """The loss if there is one, else the first number that steps report."""
    keys = [key for row in history for key in row if key not in ("step", "stage")]
    return "loss" if "loss" in keys else next(iter(keys), None)


def _write(ax: Axes, path: Path) -> Path:
    figure: Figure = ax.figure  # type: ignore[assignment]
    png = io.BytesIO()
    # Without the metadata the file depends on what is drawn alone.
    figure.savefig(png, format="png", dpi=_DOTS_PER_INCH, bbox_inches="tight", metadata={"Software": None})
    files.write_bytes(path, png.getvalue())
    return path
