"""Transition kernels on a grid, applied to positive functions in logarithms."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.special import logsumexp

from sbridge.errors import InvalidInputError, UnsupportedError
from sbridge.pde.grids import Field, Grid
from sbridge.pde.propagator import FLOOR, Propagator
from sbridge.processes.base import Transition

RESOLVED = 1.2
"""Width in cells from which the midpoint rule integrates a Gaussian to 1e-12."""
MOST_CELLS = 4096
"""Largest number of cells for which a full matrix is made: 134 MB."""
_BLOCK = 2**21  # numbers of a block


class LogKernel(ABC):
    """A kernel ``G(y | x)`` between the cells of a grid."""

    grid: Grid

    @abstractmethod
    def backward(self, logs: Field) -> Field:
        """Computes ``x ↦ log ∫ G(y | x) e^{f(y)} dy``."""

    @abstractmethod
    def forward(self, logs: Field) -> Field:
        """Computes ``y ↦ log ∫ G(y | x) e^{f(x)} dx``."""

    @abstractmethod
    def table(self) -> np.ndarray:
        """Computes ``log G(y | x)`` as a density in ``y``, shape ``(size, size)``: a row for each ``x``."""


@dataclass(frozen=True, eq=False)
class SeparableKernel(LogKernel):
    """A product of kernels along the axes: ``log G_a + log h_a``, a row for each starting cell."""

    grid: Grid
    factors: tuple[np.ndarray, ...]

    def backward(self, logs: Field) -> Field:
        """Applies the kernel axis by axis."""
        for axis, factor in enumerate(self.factors):
            logs = _along(factor, logs, axis)
        return logs

    def forward(self, logs: Field) -> Field:
        """Applies the kernel axis by axis."""
        for axis, factor in enumerate(self.factors):
            logs = _along(factor.T, logs, axis)
        return logs

    def table(self) -> np.ndarray:
        """Returns the density for all pairs of cells."""
        check_size(self.grid)
        found, *rest = self.factors
        for factor in rest:
            joint = found[:, None, :, None] + factor[None, :, None, :]
            found = joint.reshape(len(found) * len(factor), -1)
        return found - math.log(self.grid.volume)


@dataclass(frozen=True, eq=False)
class DenseKernel(LogKernel):
    """The matrix ``log G + log volume`` for all pairs of cells, a row for each starting cell."""

    grid: Grid
    values: np.ndarray

    def backward(self, logs: Field) -> Field:
        """Multiplies by the matrix."""
        return _along(self.values, logs.reshape(-1), 0).reshape(self.grid.shape)

    def forward(self, logs: Field) -> Field:
        """Multiplies by the transpose."""
        return _along(self.values.T, logs.reshape(-1), 0).reshape(self.grid.shape)

    def table(self) -> np.ndarray:
        """Returns the matrix as a density."""
        return self.values - math.log(self.grid.volume)


@dataclass(frozen=True, eq=False)
class PropagatedKernel(LogKernel):
    """The kernel of a propagator between two knots, never stored: every product runs through the steps."""

    propagator: Propagator
    first: int
    last: int

    @property
    def grid(self) -> Grid:  # type: ignore[override]
        """The grid of the propagator."""
        return self.propagator.grid

    def backward(self, logs: Field) -> Field:
        """Propagates back from the last knot."""
        for k in reversed(range(self.first, self.last)):
            logs = self.propagator.log_backward(k, logs)
        return logs

    def forward(self, logs: Field) -> Field:
        """Propagates forward from the first knot."""
        for k in range(self.first, self.last):
            logs = self.propagator.log_forward(k, logs)
        return logs

    def table(self) -> np.ndarray:
        """Computes the table by running all cells at once."""
        check_size(self.grid)
        return propagated(self.propagator, self.first, self.last).table()


def propagated(propagator: Propagator, first: int, last: int) -> DenseKernel:
    """Returns the kernel of a propagator between two knots as a matrix; entries below ``e^{−690}`` are raised to it."""
    matrix = propagator.matrix(first, last).T
    return DenseKernel(propagator.grid, np.log(np.maximum(matrix, math.exp(FLOOR))))


def resolved_kernel(law: Transition, grid: Grid) -> LogKernel:
    """Returns :func:`gaussian_kernel`; raises InvalidInputError if it is narrower than 1.2 cells."""
    if not (resolved_in_end(law, grid) and resolved_in_start(law, grid)):
        spread = np.sqrt(np.diagonal(_matrix(law, grid)[1]))
        raise InvalidInputError(
            f"the standard deviations of the reference over this time are {', '.join(f'{s:.3g}' for s in spread)}, "
            f"less than {RESOLVED} cells of widths {', '.join(f'{h:.3g}' for h in grid.widths)} (seen from one of the "
            "ends): use more cells."
        )
    return gaussian_kernel(law, grid)


def gaussian_kernel(law: Transition, grid: Grid) -> LogKernel:
    """Computes the exact transition of a linear process at the cell centres: separable if the axes do not mix.

    Raises:
        UnsupportedError: if a transition that mixes the axes needs too large a matrix.
    """
    phi, q, offset = *_matrix(law, grid), _offset(law, grid)
    if not (law.map.dense or law.covariance.dense):
        return SeparableKernel(
            grid,
            tuple(
                -0.5 * (line - phi[a, a] * line[:, None] - offset[a]) ** 2 / q[a, a]
                - 0.5 * math.log(2.0 * math.pi * q[a, a])
                + math.log(grid.widths[a])
                for a, line in enumerate(grid.centres)
            ),
        )
    check_size(grid)
    whiten = np.linalg.inv(np.linalg.cholesky(q))
    points = grid.points.numpy()
    ends, means = points @ whiten.T, (points @ phi.T + offset) @ whiten.T
    squares = (ends**2).sum(1) + (means**2).sum(1)[:, None] - 2.0 * means @ ends.T
    constant = 0.5 * np.linalg.slogdet(2.0 * math.pi * q)[1] - math.log(grid.volume)
    return DenseKernel(grid, -0.5 * squares - constant)


def resolved_in_end(law: Transition, grid: Grid) -> bool:
    """Returns whether the transition is at least 1.2 cells wide as a function of its end."""
    return _is_wide(_matrix(law, grid)[1], grid)


def resolved_in_start(law: Transition, grid: Grid) -> bool:
    """Returns whether the transition is at least 1.2 cells wide as a function of its start."""
    phi, q = _matrix(law, grid)
    back = np.linalg.inv(phi)
    return _is_wide(back @ q @ back.T, grid)


def narrow_backward(law: Transition, grid: Grid, logs: Field) -> Field:
    """Gives ``x ↦ log E e^{f(Φx + k + Lξ)}`` by Gauss–Hermite nodes on the spline of ``f``, for narrow transitions."""
    phi, q, offset = *_matrix(law, grid), _offset(law, grid)
    return _over_noise(grid, logs, lambda shift: grid.points.numpy() @ phi.T + offset + shift, q)


def narrow_forward(law: Transition, grid: Grid, logs: Field) -> Field:
    """Computes ``y ↦ log E e^{f(Φ⁻¹(y − k − Lξ))} − log|Φ|``, likewise."""
    phi, q, offset = *_matrix(law, grid), _offset(law, grid)
    back = np.linalg.inv(phi)
    found = _over_noise(grid, logs, lambda shift: (grid.points.numpy() - offset - shift) @ back.T, q)
    return found - np.linalg.slogdet(phi)[1]


def check_size(grid: Grid) -> None:
    """Raises UnsupportedError if a full matrix over the cells would be too large."""
    if grid.size > MOST_CELLS:
        raise UnsupportedError(
            f"a matrix over {grid.size} cells is too large; at most {MOST_CELLS} ({int(math.sqrt(MOST_CELLS))} per "
            "side in two dimensions) are allowed. Use a coarser grid, or scalar or diagonal coefficients."
        )


def _over_noise(grid: Grid, logs: Field, place: Callable[[np.ndarray], np.ndarray], covariance: np.ndarray) -> Field:
    nodes, weights = np.polynomial.hermite_e.hermegauss(9)
    axes = np.meshgrid(*[nodes] * grid.dim, indexing="ij")
    noise = np.stack(axes, -1).reshape(-1, grid.dim)
    products = np.prod(np.stack(np.meshgrid(*[weights] * grid.dim, indexing="ij"), -1), -1).reshape(-1)
    values, vectors = np.linalg.eigh(covariance)
    shifts = noise @ (vectors * np.sqrt(np.maximum(values, 0.0))).T
    spline = grid.spline(logs)
    seen = np.stack([spline(place(shift)) for shift in shifts])
    return logsumexp(seen, 0, b=(products / products.sum())[:, None]).reshape(grid.shape)


def _is_wide(covariance: np.ndarray, grid: Grid) -> bool:
    return float(np.linalg.eigvalsh(covariance / np.outer(grid.widths, grid.widths))[0]) >= RESOLVED**2


def _matrix(law: Transition, grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """Computes ``Φ`` and ``Q``."""
    return law.map.expanded(grid.dim).numpy(), law.covariance.expanded(grid.dim).numpy()


def _offset(law: Transition, grid: Grid) -> np.ndarray:
    return law.offset.expand(grid.dim).numpy()


def _along(table: np.ndarray, logs: np.ndarray, axis: int) -> np.ndarray:
    """Computes ``log Σ_k exp(table_ik + f_k…)`` over one axis of ``f``, exact in logarithms, in blocks of rows."""
    moved = np.moveaxis(logs, axis, 0)
    flat = moved.reshape(len(moved), -1)
    found = np.empty((len(table), flat.shape[1]))
    size = max(1, _BLOCK // flat.size)
    for start in range(0, len(table), size):
        terms = table[start : start + size, :, None] + flat
        top = terms.max(1)
        base = np.where(np.isfinite(top), top, 0.0)
        terms -= base[:, None]
        np.exp(terms, out=terms)
        with np.errstate(divide="ignore"):
            found[start : start + size] = np.log(terms.sum(1)) + base
    return np.moveaxis(found.reshape(len(table), *moved.shape[1:]), 0, axis)
