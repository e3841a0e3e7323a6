"""Uniform grids on an interval or a rectangle, and functions on them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
import torch
from numpy.polynomial import polynomial
from scipy.interpolate import NdBSpline, make_interp_spline
from torch import Tensor

from sbridge.errors import InvalidInputError, UnsupportedError

Field = np.ndarray
"""Values at the cell centres of a grid: float64, of the grid's shape."""

DEGREE = 5  # of splines: values of order h⁶, gradients of order h⁵
_STENCIL = 9  # points of a difference formula: order 8


@dataclass(frozen=True)
class Grid:
    """A grid of ``cells`` equal cells per side of the box ``[low, high]``, in one or two dimensions.

    Fields hold values at the cell centres. Sums of them times the cell volume (the midpoint rule) are integrals: exact
    to rounding for smooth functions that vanish at the boundary, once a cell is narrower than their features.

    Args:
        low, high: corners of the box, one number a dimension.
        cells: how many cells each side is cut into, at least 10.

    Raises:
        InvalidInputError: unless there are one or two dimensions, ``low < high``, and enough cells.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]
    cells: tuple[int, ...]

    def __post_init__(self) -> None:
        sizes = {len(self.low), len(self.high), len(self.cells)}
        if sizes not in ({1}, {2}):
            raise InvalidInputError(
                f"a grid has one or two dimensions, with equally many bounds and cell counts; got low {self.low}, high "
                f"{self.high}, cells {self.cells}. In more dimensions simulate instead."
            )
        if not all(-math.inf < a < b < math.inf for a, b in zip(self.low, self.high, strict=True)):
            raise InvalidInputError(f"a grid needs finite bounds with low < high, got {self.low} and {self.high}.")
        if min(self.cells) < _STENCIL + 1:
            raise InvalidInputError(f"a grid needs at least {_STENCIL + 1} cells per side, got {self.cells}.")

    @classmethod
    def of(cls, low: float | Sequence[float], high: float | Sequence[float], cells: int | Sequence[int]) -> Grid:
        """Makes a grid from numbers (an interval) or sequences; a number with a sequence applies to every side."""
        dim = max((len(v) for v in (low, high, cells) if isinstance(v, Sequence)), default=1)

        def spread(value: float | Sequence[float]) -> tuple[float, ...]:
            return tuple(value) if isinstance(value, Sequence) else (value,) * dim

        lows, highs = (tuple(float(v) for v in spread(value)) for value in (low, high))
        return cls(lows, highs, tuple(int(n) for n in spread(cells)))

    @property
    def dim(self) -> int:
        """The dimension, 1 or 2."""
        return len(self.cells)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of a field."""
        return self.cells

    @property
    def size(self) -> int:
        """The number of cells."""
        return math.prod(self.cells)

    @property
    def widths(self) -> tuple[float, ...]:
        """The side ``h`` of a cell, per dimension."""
        return tuple((b - a) / n for a, b, n in zip(self.low, self.high, self.cells, strict=True))

    @property
    def volume(self) -> float:
        """The volume of a cell."""
        return math.prod(self.widths)

    @cached_property
    def centres(self) -> tuple[np.ndarray, ...]:
        """Cell centres along each dimension."""
        return tuple(a + h * (np.arange(n) + 0.5) for a, h, n in zip(self.low, self.widths, self.cells, strict=True))

    @cached_property
    def points(self) -> Tensor:
        """Returns all cell centres as states, float64, shape ``(size, dim)``, in the order of a flattened field."""
        return torch.from_numpy(np.stack(np.meshgrid(*self.centres, indexing="ij"), -1).reshape(-1, self.dim))

    def faces(self, axis: int) -> Tensor:
        """Returns centres of the inner faces across ``axis``, shape ``(faces, dim)``, one fewer than cells along it."""
        inner = self.low[axis] + self.widths[axis] * np.arange(1, self.cells[axis])
        lines = [inner if a == axis else line for a, line in enumerate(self.centres)]
        return torch.from_numpy(np.stack(np.meshgrid(*lines, indexing="ij"), -1).reshape(-1, self.dim))

    def integrate(self, field: Field) -> float:
        """Computes ``∫ f dx`` by the midpoint rule."""
        return float(self.check(field).sum()) * self.volume

    def check(self, field: Field) -> Field:
        """Returns ``field``; raises InvalidInputError unless it has the grid's shape."""
        if field.shape != self.shape:
            raise InvalidInputError(f"a field on this grid has shape {self.shape}, got {field.shape}.")
        return field

    def field(self, values: Tensor) -> Field:
        """Converts values at :attr:`points`, shape ``(size,)``, to a field."""
        return values.detach().cpu().double().numpy().reshape(self.shape)

    def spline(self, field: Field) -> Spline:
        """Returns the interpolating spline of degree 5.

        Raises:
            UnsupportedError: if the field has infinite or NaN values.
        """
        if not np.isfinite(self.check(field)).all():
            raise UnsupportedError(
                "only finite fields can be interpolated; a density that is zero in some cells has no smooth logarithm. "
                "Use KernelDensity() instead of Histogram()."
            )
        coefficients, knots = field, []
        for axis, line in enumerate(self.centres):
            along = make_interp_spline(line, np.moveaxis(coefficients, axis, 0), k=DEGREE)
            coefficients = np.moveaxis(along.c, 0, axis)
            knots.append(along.t)
        return Spline(self, NdBSpline(tuple(knots), np.ascontiguousarray(coefficients), DEGREE))

    def difference(self, field: np.ndarray, axis: int, derivative: int = 1) -> np.ndarray:
        """Computes ``∂ᵐf/∂x_axisᵐ`` by differences of order 8, one-sided at the boundary, over the last axes."""
        matrix = _difference_matrix(self.cells[axis], self.widths[axis], derivative)
        position = field.ndim - self.dim + axis
        return np.moveaxis(np.tensordot(matrix, field, (1, position)), 0, position)

    def gradient(self, field: np.ndarray) -> np.ndarray:
        """Computes ``∇f``, with the components along a new first axis."""
        return np.stack([self.difference(field, axis) for axis in range(self.dim)])


@dataclass(frozen=True, eq=False)
class Spline:
    """A smooth function through the values of a field."""

    grid: Grid
    inner: NdBSpline

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """Computes values at ``points`` of shape ``(n, dim)``; extrapolated polynomially beyond the grid."""
        return self.inner(points, extrapolate=True)

    def gradient(self, points: np.ndarray) -> np.ndarray:
        """Computes ``∇f``, shape ``(n, dim)``; beyond the outermost cell centres that of the nearest point inside."""
        ends = [(line[0], line[-1]) for line in self.grid.centres]
        inside = np.clip(points, [a for a, _ in ends], [b for _, b in ends])
        units = np.eye(self.grid.dim, dtype=int)
        return np.stack([self.inner(inside, nu=unit, extrapolate=True) for unit in units], -1)


def _difference_matrix(cells: int, width: float, derivative: int) -> np.ndarray:
    """Returns a matrix whose rows differentiate the polynomial through the nearest nine values."""
    formulas = _difference_formulas(derivative)
    matrix = np.zeros((cells, cells))
    for row in range(cells):
        first = min(max(row - _STENCIL // 2, 0), cells - _STENCIL)
        matrix[row, first : first + _STENCIL] = formulas[row - first]
    return matrix / width**derivative


@cache  # a grid in time asks for the same formulas at every step
def _difference_formulas(derivative: int) -> np.ndarray:
    """Returns rows ``k`` that differentiate the polynomial through nine equidistant values at the ``k``-th of them."""
    wanted = np.zeros(_STENCIL)
    wanted[derivative] = math.factorial(derivative)
    offsets = np.arange(_STENCIL) - np.arange(_STENCIL)[:, np.newaxis]
    return np.stack([np.linalg.solve(polynomial.polyvander(at, _STENCIL - 1).T, wanted) for at in offsets])
