"""Densities of distributions on a grid, and the check that the grid holds their mass."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import brentq
from scipy.special import logsumexp, ndtr

from sbridge.errors import InvalidInputError, NonFiniteError, UnsupportedError, listed
from sbridge.laws import Density, Gaussian, GaussianMixture, Law, Samples
from sbridge.laws.moments import gaussian_components
from sbridge.pde.grids import Field, Grid

MASS_TOLERANCE = 1e-6
"""The largest mass that a distribution may have outside the grid."""
_COARSE = 1e-3  # by how much a midpoint sum may miss the mass inside


class SampleDensity(ABC):
    """A method to convert a finite set of points to a density."""

    @abstractmethod
    def on(self, samples: Samples, grid: Grid) -> Field:
        """Computes the log density, up to a constant; raises InvalidInputError if the grid misses mass."""


@dataclass(frozen=True)
class KernelDensity(SampleDensity):
    """A Gaussian of standard deviation ``bandwidth`` around every point, the same along every axis.

    Args:
        bandwidth: in units of state; by default ``n^{−1/(dim+4)}`` standard deviations of each coordinate
            (Scott 1992), with the effective number of points if they are weighted.
    """

    bandwidth: float | None = None

    def on(self, samples: Samples, grid: Grid) -> Field:
        """Computes ``log Σ_i w_i Π_a N(x_a; X_ia, h_a²)``."""
        rows, weights = _rows(samples)
        if self.bandwidth is None:
            mean = weights @ rows
            count = 1.0 / float(weights @ weights)
            deviations = np.sqrt(weights @ (rows - mean) ** 2)
            widths = deviations * count ** (-1.0 / (grid.dim + 4))
        else:
            widths = np.full(grid.dim, self.bandwidth)
        if not (widths > 0).all():
            raise InvalidInputError(
                f"the bandwidth of a kernel density must be positive, got {listed(widths.tolist())}; a constant "
                "coordinate has no density."
            )
        _check_components(grid, weights, rows, np.broadcast_to(widths, rows.shape))
        found = np.full(grid.shape, -np.inf)
        for start in range(0, len(rows), 256):
            part = slice(start, start + 256)
            logs = [
                -0.5 * ((line - rows[part, a, None]) / widths[a]) ** 2 - math.log(widths[a] * math.sqrt(2 * math.pi))
                for a, line in enumerate(grid.centres)
            ]
            logs[0] = logs[0] + np.log(weights[part])[:, None]
            joint = logs[0] if grid.dim == 1 else logs[0][:, :, None] + logs[1][:, None, :]
            found = np.logaddexp(found, logsumexp(joint, 0))
        return found


@dataclass(frozen=True)
class Histogram(SampleDensity):
    """The share of the points in every cell over its volume: zero in cells without points."""

    def on(self, samples: Samples, grid: Grid) -> Field:
        """Computes the logarithm of the shares; ``−∞`` in empty cells."""
        rows, weights = _rows(samples)
        low, high = rows.min(0), rows.max(0)
        outside = float(weights @ ((rows < grid.low) | (rows > grid.high)).any(1))
        _refuse_if_outside(outside, low, high)
        edges = [np.linspace(a, b, n + 1) for a, b, n in zip(grid.low, grid.high, grid.cells, strict=True)]
        counts, _ = np.histogramdd(rows, bins=edges, weights=weights)
        with np.errstate(divide="ignore"):
            return np.log(counts / grid.volume)


def log_density_on(law: Law, grid: Grid, estimate: SampleDensity = KernelDensity()) -> Field:
    """Computes ``log p`` at the cell centres, normalised so that the cells hold mass 1.

    Args:
        law: a distribution with the dimension of the grid; it may be an unnormalised :class:`Density`.
        grid: wide enough for all but 1e-6 of the mass, and fine enough to resolve it.
        estimate: makes a density of :class:`Samples`.

    Raises:
        InvalidInputError: if the grid misses mass (the message says how much, and which bounds would do), if its cells
            are wider than the distribution, or if the dimensions disagree.
    """
    if law.dim != grid.dim:
        raise InvalidInputError(f"the distribution has dimension {law.dim}, the grid has {grid.dim}.")
    if isinstance(law, Samples):
        found = estimate.on(law, grid)
    elif isinstance(law, (Gaussian, GaussianMixture)):
        _check_components(grid, *_components(law))
        found = grid.field(law.log_density(grid.points.to(_dtype(law))))
    elif isinstance(law, Density):
        found = _unnormalised(law, grid)
    else:
        raise UnsupportedError(f"a {type(law).__name__} has no density; give Samples, a Gaussian or a Density.")
    mass = float(logsumexp(found)) + math.log(grid.volume)
    if not math.isfinite(mass):
        raise NonFiniteError(f"the log density of {type(law).__name__} sums to e^{mass} over the grid.")
    if not isinstance(law, Density) and abs(mass) > _COARSE:
        raise InvalidInputError(
            f"the cells of widths {_numbers(grid.widths)} are too wide for this {type(law).__name__}: the density sums "
            f"to {math.exp(mass):.4g} over a grid that holds its mass. Use at least twice as many cells."
        )
    return found - mass


def density_on(law: Law, grid: Grid, estimate: SampleDensity = KernelDensity()) -> Field:
    """Computes ``p`` at the cell centres; arguments and errors of :func:`log_density_on`."""
    return np.exp(log_density_on(law, grid, estimate))


def grid_around(*laws: Law, cells: int, deviations: float = 8.0) -> Grid:
    """Makes a grid that extends ``deviations`` standard deviations beyond every component or point of ``laws``.

    For points the deviation is that of a kernel density: a tenth of a standard deviation counts as one.

    Args:
        laws: Gaussians, mixtures and samples of one dimension.
        cells: number of cells per side.
        deviations: how far it reaches; 8 leaves 1e-15 of a Gaussian outside.
    """
    low, high = [], []
    for law in laws:
        if isinstance(law, Samples):
            rows, weights = _rows(law)
            reach = 0.1 * deviations * np.sqrt(weights @ (rows - weights @ rows) ** 2)
            centres = rows
        else:
            _, centres, spread = _components(law)
            reach = deviations * spread
        low.append((centres - reach).min(0))
        high.append((centres + reach).max(0))
    return Grid.of(np.min(low, 0).tolist(), np.max(high, 0).tolist(), cells)


def _rows(samples: Samples) -> tuple[np.ndarray, np.ndarray]:
    rows = samples.rows.detach().cpu().double().numpy()
    if samples.weights is None:
        return rows, np.full(len(rows), 1.0 / len(rows))
    weights = samples.weights.detach().cpu().double().numpy()
    kept = weights > 0
    return rows[kept], weights[kept] / weights.sum()


def _components(law: Law) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns weights, means and per-axis standard deviations."""
    if not isinstance(law, (Gaussian, GaussianMixture)):
        raise UnsupportedError(f"bounds follow from Gaussians, mixtures and samples, not from a {type(law).__name__}.")
    weights, means, covariances = gaussian_components(law)
    parts = (weights, means, covariances.diagonal(dim1=1, dim2=2).sqrt())
    return tuple(part.detach().cpu().double().numpy() for part in parts)  # type: ignore[return-value]


def _dtype(law: Gaussian | GaussianMixture) -> torch.dtype:
    return law.mean.dtype if isinstance(law, Gaussian) else law.means.dtype


def _check_components(grid: Grid, weights: np.ndarray, means: np.ndarray, deviations: np.ndarray) -> None:
    """Raises unless all but 1e-6 of a mixture is in the box: tails per axis, from their distribution functions."""
    low, high, outside = [], [], 0.0
    share = 0.5 * MASS_TOLERANCE / grid.dim
    for axis in range(grid.dim):
        centre, width = means[:, axis], deviations[:, axis]

        def below(x: float, centre: np.ndarray = centre, width: np.ndarray = width) -> float:
            return float(weights @ ndtr((x - centre) / width))

        def above(x: float, centre: np.ndarray = centre, width: np.ndarray = width) -> float:
            return float(weights @ ndtr((centre - x) / width))

        outside += below(grid.low[axis]) + above(grid.high[axis])
        far = (float((centre - 20 * width).min()), float((centre + 20 * width).max()))
        low.append(brentq(lambda x, f=below: f(x) - share, *far))
        high.append(brentq(lambda x, f=above: f(x) - share, *far))
    _refuse_if_outside(outside, np.array(low), np.array(high))


def _unnormalised(law: Density, grid: Grid) -> Field:
    """Computes an unnormalised log density, checked against a box three times as wide with cells of the same width."""
    wide = Grid(
        tuple(2 * a - b for a, b in zip(grid.low, grid.high, strict=True)),
        tuple(2 * b - a for a, b in zip(grid.low, grid.high, strict=True)),
        tuple(3 * n for n in grid.cells),
    )
    logs = wide.field(law.log_density(wide.points))
    if np.isnan(logs).any() or np.isposinf(logs).any():
        raise NonFiniteError("the log density is NaN or +inf in some cells.")
    inside = tuple(slice(n, 2 * n) for n in grid.cells)
    shares = np.exp(logs - logsumexp(logs))
    low, high = [], []
    for axis, line in enumerate(wide.centres):
        marginal = shares.sum(tuple(a for a in range(grid.dim) if a != axis))
        share, half = 0.5 * MASS_TOLERANCE / grid.dim, 0.5 * wide.widths[axis]
        low.append(line[np.argmax(np.cumsum(marginal) > share)] - half)
        high.append(line[::-1][np.argmax(np.cumsum(marginal[::-1]) > share)] + half)
    _refuse_if_outside(1.0 - float(shares[inside].sum()), np.array(low), np.array(high))
    return logs[inside]


def _refuse_if_outside(outside: float, low: np.ndarray, high: np.ndarray) -> None:
    if outside > MASS_TOLERANCE:
        raise InvalidInputError(
            f"the grid misses mass: {outside:.2g} of the distribution lies outside its bounds, at most "
            f"{MASS_TOLERANCE:g} is allowed. Sufficient bounds: low = {_numbers(low)}, high = {_numbers(high)}."
        )


def _numbers(values: np.ndarray | tuple[float, ...]) -> str:
    return "(" + ", ".join(f"{float(v):.4g}" for v in values) + ")"
