"""The figures of a run folder."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from sbridge.diffusion import is_reverse_diffusion
from sbridge.evaluation.certificate import Certificate
from sbridge.fitting.courses import Course
from sbridge.laws import as_rows
from sbridge.plotting.certificates import certificate
from sbridge.plotting.clouds import course_marginals, marginals
from sbridge.plotting.couplings import coupling
from sbridge.plotting.courses import course_trajectories, trajectories
from sbridge.plotting.diffusion import reversals, score_field
from sbridge.plotting.fields import drift_field
from sbridge.plotting.histories import GROUPS, history as draw_history
from sbridge.plotting.projection import Projection
from sbridge.plotting.style import Clock, spaced
from sbridge.random import Seed, as_seed, derive
from sbridge.solutions import Bridge
from sbridge.storage import documents

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
    clock: Clock | None = None,
) -> tuple[Path, ...]:
    """Writes ``trajectories``, ``marginals``, ``drift``, ``coupling`` and ``history`` as PNG files, each atomically.

    For a reverse diffusion, the files are ``reversal`` (trajectories with and without the score), ``marginals`` of the
    noising process, ``generation`` (marginals of the reversal), ``score`` and ``history``. All figures share one plane,
    fitted to ``x0`` and ``x1``. ``history.png`` is not written if no step reported a number.

    Args:
        bridge: the solution.
        x0: source samples ``(n, dim)``; trajectories and coupling start at some of them.
        x1: target samples.
        history: one mapping per training step, may be empty.
        folder: made if missing.
        seed: of everything simulated for the figures.
        clock: how times are shown; as the bridge counts them if ``None``. A reverse diffusion keeps its own.

    Returns:
        The files, in the order above.
    """
    seed, x0, x1 = as_seed(seed), as_rows(x0, "x0", least=1), as_rows(x1, "x1", least=1)
    plane = Projection.fit(x0, x1)
    if is_reverse_diffusion(bridge):
        drawings = _diffusion_drawings(bridge, plane, seed)
    else:
        clock = clock or Clock.of(bridge.horizon)
        drawings = _path_drawings(bridge, x0, plane, clock, seed) | _leg_drawings(bridge, x0, plane, clock, seed)
    return _written(drawings | _history_drawing(history), Path(folder))


def course_figures(
    course: Course,
    snapshots: Sequence[Tensor | np.ndarray],
    histories: Sequence[Sequence[Mapping[str, float]]],
    folders: Sequence[str | Path],
    *,
    seed: Seed,
) -> tuple[Path, ...]:
    """Writes the figures of a time course: ``trajectories`` and ``marginals`` of all of it, the others for each bridge.

    All share one plane, fitted to all snapshots, one scale of colours, and the time axis of the course.

    Args:
        course: the bridges.
        snapshots: samples at each of its times.
        histories: of each bridge, one mapping per training step.
        folders: of the figures of the course, then of each bridge; made if missing.
        seed: of everything simulated for the figures.

    Returns:
        The files.
    """
    seed, rows = as_seed(seed), [as_rows(x, "snapshots", least=1) for x in snapshots]
    plane, starts = Projection.fit(*rows), rows[0][spaced(len(rows[0]), _PATHS)]
    whole: dict[str, Callable[[], Axes]] = {
        "trajectories": lambda: course_trajectories(course, starts, seed=derive(seed, "paths"), projection=plane),
        "marginals": lambda: course_marginals(course, rows, seed=derive(seed, "marginals"), projection=plane),
    }
    made = _written(whole, Path(folders[0]))
    for leg, bridge in enumerate(course.bridges):
        clock = Clock(course.times[leg], course.times[0], course.times[-1])
        drawings = _leg_drawings(bridge, rows[leg], plane, clock, derive(seed, leg))
        made += _written(drawings | _history_drawing(histories[leg]), Path(folders[1 + leg]))
    return made


def save_certificate(found: Certificate, path: str | Path) -> Path:
    """Writes :func:`~sbridge.plotting.certificate` as a PNG file, atomically."""
    return _write(certificate(found), Path(path))


def _path_drawings(
    bridge: Bridge, x0: Tensor, plane: Projection, clock: Clock, seed: int
) -> dict[str, Callable[[], Axes]]:
    few = x0[spaced(len(x0), _PATHS)]
    return {
        "trajectories": lambda: trajectories(
            bridge.forward.simulate(few, seed=derive(seed, "paths")), projection=plane, clock=clock
        ),
        "marginals": lambda: marginals(bridge, seed=derive(seed, "marginals"), projection=plane, clock=clock),
    }


def _leg_drawings(
    bridge: Bridge, x0: Tensor, plane: Projection, clock: Clock, seed: int
) -> dict[str, Callable[[], Axes]]:
    starts, span = x0[spaced(len(x0), _PAIRS)], (clock.label(0.0), clock.label(bridge.horizon))
    times = [bridge.horizon * share for share in _field_times(plane)]
    return {
        "drift": lambda: drift_field(bridge, times, seed=derive(seed, "drift"), projection=plane, clock=clock),
        "coupling": lambda: coupling(
            starts, bridge.transport(starts, seed=derive(seed, "coupling")), projection=plane, span=span
        ),
    }


def _history_drawing(history: Sequence[Mapping[str, float]]) -> dict[str, Callable[[], Axes]]:
    quantity = _quantity(history)
    return {} if quantity is None else {"history": lambda: draw_history(history, quantity=quantity)}


def _written(drawings: Mapping[str, Callable[[], Axes]], folder: Path) -> tuple[Path, ...]:
    return tuple(_write(draw(), folder / f"{name}.png") for name, draw in drawings.items())


def _diffusion_drawings(bridge: Bridge, plane: Projection, seed: int) -> dict[str, Callable[[], Axes]]:
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
    """Returns the loss if there is one, else the first reported number that is not a count."""
    keys = [key for row in history for key in row if key not in ("step", "stage", *GROUPS)]
    return "loss" if "loss" in keys else next(iter(keys), None)


def _write(ax: Axes, path: Path) -> Path:
    figure: Figure = ax.figure  # type: ignore[assignment]
    png = io.BytesIO()
    # Without the metadata the file depends on what is drawn alone.
    figure.savefig(png, format="png", dpi=_DOTS_PER_INCH, bbox_inches="tight", metadata={"Software": None})
    documents.write_bytes(path, png.getvalue())
    return path
