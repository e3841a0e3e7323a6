"""The heat equation ``∂_t p = ½σ²∇²p`` on a grid, forward (smoothing) and backward (ill-posed)."""

from __future__ import annotations

import math

import numpy as np

from sbridge.errors import InvalidInputError, NonFiniteError
from sbridge.pde.grids import Field, Grid


def wavenumbers(grid: Grid) -> np.ndarray:
    """Computes the lengths ``|k|`` of the modes ``e^{ik·x}`` of a periodic field, as ``numpy.fft.rfftn`` has them."""
    axes = [np.fft.fftfreq(n, width) for n, width in zip(grid.cells[:-1], grid.widths[:-1], strict=True)]
    axes.append(np.fft.rfftfreq(grid.cells[-1], grid.widths[-1]))
    return 2.0 * math.pi * np.sqrt(sum(np.square(one) for one in np.meshgrid(*axes, indexing="ij", sparse=True)))


def amplification(wavenumber: float | np.ndarray, sigma: float, duration: float) -> float | np.ndarray:
    """Returns ``e^{−σ²k²t/2}``, the factor of a mode over a time ``t``; backward, ``t < 0``, it grows with ``k``."""
    with np.errstate(over="ignore"):
        return np.exp(-0.5 * sigma**2 * np.square(wavenumber) * duration)


def heat_spectral(grid: Grid, field: Field, sigma: float, duration: float, highest: float = math.inf) -> Field:
    """Solves the equation for a time ``duration`` on a periodic grid: every Fourier mode times its factor.

    Exact for a periodic field with no modes above those of the grid. A negative ``duration`` runs the equation
    backward, where rounding errors in high modes grow without bound; ``highest`` drops the modes with larger ``k``.

    Raises:
        NonFiniteError: if a mode overflows.
    """
    _check_sigma(sigma)
    k = wavenumbers(grid)
    factors = np.where(k <= highest, amplification(np.minimum(k, highest), sigma, duration), 0.0)
    if not np.isfinite(factors).all():
        raise NonFiniteError(
            f"the backward heat equation amplifies the highest mode by e^(σ²k²t/2) with k = {k.max():.3g} and t = "
            f"{-duration:.3g}, beyond the floating-point range. Drop high modes with highest=, or use a shorter time."
        )
    return np.fft.irfftn(factors * np.fft.rfftn(grid.check(field)), grid.cells, axes=range(grid.dim))


def heat_kernel(grid: Grid, field: Field, sigma: float, duration: float) -> Field:
    """Computes ``∫ N(x − y; 0, σ²t) p(y) dy`` by the midpoint rule on the line, with zero outside the interval.

    Raises:
        InvalidInputError: if ``duration`` is not positive, or the kernel is narrower than 1.2 cells.
    """
    _check_sigma(sigma)
    _check_interval(grid)
    deviation = sigma * math.sqrt(max(duration, 0.0))
    if deviation < 1.2 * grid.widths[0]:
        raise InvalidInputError(
            f"the heat kernel has standard deviation {deviation:.3g}; at least 1.2 cells, {1.2 * grid.widths[0]:.3g}, "
            "are needed. Use more cells, a longer time, or heat_spectral()."
        )
    line = grid.centres[0]
    kernel = np.exp(-0.5 * ((line[:, None] - line) / deviation) ** 2) / (deviation * math.sqrt(2.0 * math.pi))
    return grid.volume * kernel @ grid.check(field)


def _check_interval(grid: Grid) -> None:
    if grid.dim != 1:
        raise InvalidInputError(f"the heat kernel acts on an interval, got a grid of dimension {grid.dim}.")


def _check_sigma(sigma: float) -> None:
    if not (math.isfinite(sigma) and sigma > 0):
        raise InvalidInputError(f"sigma must be a positive number, got {sigma}.")
