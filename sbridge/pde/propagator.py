"""Forward and backward Kolmogorov equations on a grid, in steps that are exact adjoints of each other.

Space: finite volumes with the flux of Scharfetter & Gummel (1969, IEEE Trans. Electron Devices 16, 64). Across a face
between cells ``i`` and ``i + 1``, with ``D = ½σ²`` and ``q = b h/D``::

    J = (D/h) (B(−q) p_i − B(q) p_{i+1}),    B(z) = z/(e^z − 1)

No mass crosses the boundary. The generator ``A`` of ``p' = A p`` has columns that sum to zero and no negative entry
off the diagonal: it moves mass, makes none, and keeps densities positive. It is second order in ``h``, and its
transpose is the backward operator ``b·∇ + ½σ²Δ`` with reflecting ends.

Time: a rational function ``R(ΔA)`` with coefficients at the middle of the step, one direction after the other
(Strang 1968), half of the factor ``e^{−VΔ}`` before and half behind.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

import numpy as np
import torch
from scipy.linalg.lapack import dgttrf, dgttrs  # pyright: ignore[reportAttributeAccessIssue]
from torch import Tensor

from sbridge.controls import Control
from sbridge.errors import InvalidInputError, NonFiniteError, UnsupportedError
from sbridge.pde.grids import Field, Grid
from sbridge.processes.base import Process

StateCost = Callable[[float, Tensor], Tensor]
"""A function ``V(t, x)`` of a time and states ``(batch, dim)`` to ``(batch,)``; where positive, a killing rate."""

FLOOR = -690.0
"""Logarithms of propagated fields are cut off this far below the largest: ``e^{−690}`` is still a normal number."""
_MOST_STEPS = 200_000
_SAME = 1e-12  # steps whose lengths differ by rounding are one step
_FEW = 20  # equal steps that are cheaper to run than to multiply out


@dataclass(frozen=True)
class TimeScheme:
    """The approximation ``R(z) = (1 + explicit·z)/(1 − implicit·z)^solves`` of ``e^z``.

    Args:
        order: of its error.
        explicit, implicit, solves: its coefficients.
    """

    order: int
    explicit: float
    implicit: float
    solves: int

    def largest_step(self, rate: float) -> float:
        """Returns the longest step that keeps densities positive, if no cell is left at more than ``rate``."""
        return math.inf if self.explicit == 0.0 or rate == 0.0 else 1.0 / (self.explicit * rate)


IMPLICIT_EULER = TimeScheme(1, 0.0, 1.0, 1)
"""First order; positive for every step."""
CRANK_NICOLSON = TimeScheme(2, 0.5, 0.5, 1)
"""Second order; positive for ``Δ ≤ 2h²/σ²``."""
L_STABLE = TimeScheme(2, math.sqrt(2.0) - 1.0, 1.0 - math.sqrt(0.5), 2)
"""Second order and L-stable (Alexander 1977, SIAM J. Numer. Anal. 14, 1006); positive for ``Δ ≤ 2.4 h²/σ²``."""


@dataclass(frozen=True, eq=False)
class Propagator:
    """A process on a grid, over the intervals between ``times``.

    An interval is cut into as few equal steps as keep densities positive, whatever the density.

    Args:
        process: ``dX = b dt + σ dW`` with σ scalar or diagonal.
        grid: cells.
        times: increasing knots, float64, shape ``(N + 1,)``.
        state_cost: ``V``, of either sign.
        control: ``u``, added to the drift as ``σu``.
        scheme: the function ``R``.

    Raises:
        UnsupportedError: if σ is a matrix that is not diagonal.
        InvalidInputError: if dimensions disagree, or it takes more than 200000 steps.
        NonFiniteError: if drift or state cost are not finite on the grid.
    """

    process: Process
    grid: Grid
    times: np.ndarray
    state_cost: StateCost | None = None
    control: Control | None = None
    scheme: TimeScheme = L_STABLE

    def __post_init__(self) -> None:
        if self.process.dim not in (None, self.grid.dim):
            raise InvalidInputError(f"the process has dimension {self.process.dim}, the grid has {self.grid.dim}.")
        rising = self.times.ndim == 1 and len(self.times) > 1 and bool((np.diff(self.times) > 0).all())
        if not rising:
            raise InvalidInputError("a propagator needs at least two increasing times.")

    def forward(self, k: int, density: np.ndarray) -> np.ndarray:
        """Computes ``p(t_{k+1})`` from ``p(t_k)`` of shape ``grid.shape``; further last axes hold several densities."""
        for step in self._steps[k]:
            density = step.run(density, transposed=0)
        return density

    def backward(self, k: int, values: np.ndarray) -> np.ndarray:
        """Computes ``φ(t_k)`` from ``φ(t_{k+1})`` by the transposed matrix: ``Σ p φ`` does not change."""
        for step in reversed(self._steps[k]):
            values = step.run(values, transposed=1)
        return values

    def log_forward(self, k: int, log_density: Field) -> Field:
        """Computes :meth:`forward` of a positive density in logarithms."""
        return _in_logs(lambda field: self.forward(k, field), log_density)

    def log_backward(self, k: int, log_values: Field) -> Field:
        """Computes :meth:`backward` of positive values in logarithms."""
        return _in_logs(lambda field: self.backward(k, field), log_values)

    def matrix(self, first: int, last: int) -> np.ndarray:
        """Returns the matrix from ``p(t_first)`` to ``p(t_last)``, ``(size, size)``, a column per starting cell."""
        size = self.grid.size
        unit = np.eye(size).reshape(*self.grid.shape, size)
        columns = unit
        for _, group in groupby((step for k in range(first, last) for step in self._steps[k]), id):
            step, count = (same := list(group))[0], len(same)
            if count > _FEW:  # products of non-negative matrices lose no digits
                power = np.linalg.matrix_power(step.run(unit, transposed=0).reshape(size, size), count)
                columns = (power @ columns.reshape(size, size)).reshape(unit.shape)
            else:
                for _ in range(count):
                    columns = step.run(columns, transposed=0)
        return columns.reshape(size, size)

    def generator(self, t: float) -> Generator:
        """Returns the generator at time ``t``."""
        sigma = self.process.scale(t)
        if sigma.dense and bool((sigma.values != torch.diag(sigma.values.diagonal())).any()):
            raise UnsupportedError(
                "finite volumes need a scalar or diagonal σ: with a full matrix the scheme is not positive. Rotate the "
                "coordinates, or use a LinearProcess, whose exact transition solve_schroedinger uses."
            )
        diffusion = 0.5 * sigma.expanded(self.grid.dim).diagonal().square().numpy()
        lines = tuple(Line.of(self.grid, axis, self._drift(t, axis), diffusion[axis]) for axis in range(self.grid.dim))
        return Generator(lines, None if self.state_cost is None else self._cost(t, self.state_cost))

    def _drift(self, t: float, axis: int) -> np.ndarray:
        points = self.grid.faces(axis)
        drift = self.process.drift(t, points)
        if self.control is not None:
            drift = drift + self.process.scale(t).to(points)(self.control(t, points))
        shape = list(self.grid.shape)
        shape[axis] -= 1
        found = drift[:, axis].detach().double().numpy().reshape(shape)
        if not np.isfinite(found).all():
            raise NonFiniteError(f"the drift is NaN or infinite on the grid at t = {t:g}.")
        return found

    def _cost(self, t: float, cost: StateCost) -> Field:
        values = cost(t, self.grid.points)
        if values.shape != (self.grid.size,):
            raise InvalidInputError(
                f"a state cost maps (t, x) to shape (batch,), here ({self.grid.size},); got {tuple(values.shape)}."
            )
        if not bool(torch.isfinite(values).all()):
            raise NonFiniteError(f"the state cost is NaN or infinite on the grid at t = {t:g}.")
        return self.grid.field(values)

    @cached_property
    def _steps(self) -> list[list[_Step]]:
        steps: list[list[_Step]] = []
        known: _Step | None = None
        for start, end in zip(self.times[:-1], self.times[1:], strict=True):
            count = self._enough(0.5 * (start + end), end - start, 1)
            while True:
                span = (end - start) / count
                if sum(map(len, steps)) + count > _MOST_STEPS:
                    raise InvalidInputError(
                        f"positive densities would need more than {_MOST_STEPS} steps; use wider cells, or "
                        "scheme=IMPLICIT_EULER, which is positive for every step."
                    )
                middles = [start + (j + 0.5) * span for j in range(count)]
                generators = [self.generator(middle) for middle in middles]
                rate = max(g.rate for g in generators)
                if span <= self.scheme.largest_step(rate) * (1 + 1e-12):
                    break
                count = math.ceil((end - start) / self.scheme.largest_step(rate))  # more: the step was too long
            mine = []
            for generator in generators:
                if known is None or abs(known.span - span) > _SAME * span or not known.generator.same(generator):
                    known = _Step(generator, span, self.scheme)
                mine.append(known)
            steps.append(mine)
        return steps

    def _enough(self, t: float, span: float, least: int) -> int:
        return max(least, math.ceil(span / self.scheme.largest_step(self.generator(t).rate) - 1e-12))


@dataclass(frozen=True, eq=False)
class Generator:
    """The generator ``A`` at one time: a tridiagonal matrix along each axis, and ``V`` at the centres."""

    lines: tuple[Line, ...]
    cost: Field | None

    @property
    def rate(self) -> float:
        """Returns the fastest rate at which a cell is left along one axis."""
        return max(float(-line.diagonal.min()) for line in self.lines)

    def same(self, other: Generator) -> bool:
        """Returns whether all numbers are equal."""
        mine, theirs = (
            [a for line in g.lines for a in (line.lower, line.upper)] + ([] if g.cost is None else [g.cost])
            for g in (self, other)
        )
        return all(np.array_equal(a, b) for a, b in zip(mine, theirs, strict=True))


@dataclass(frozen=True, eq=False)
class Line:
    """The generator along one axis, with that axis last: independent rows of cells.

    Attributes:
        left, right: ``J = left·p_i − right·p_{i+1}`` at inner faces, with the axis last.
        lower, diagonal, upper: the diagonals of the matrix of all rows together.
    """

    axis: int
    width: float
    left: np.ndarray
    right: np.ndarray

    @classmethod
    def of(cls, grid: Grid, axis: int, drift: np.ndarray, diffusion: float) -> Line:
        """Builds it from the drift at the inner faces."""
        # Flux of Scharfetter & Gummel (1969): J = (D/h) [B(−bh/D) p_i − B(bh/D) p_{i+1}], B(z) = z/(e^z − 1), D = ½σ².
        # It is exact for constant J and b between two centres, and both factors are positive for any b.
        width = grid.widths[axis]
        slope = np.moveaxis(drift, axis, -1) * width / diffusion
        return cls(axis, width, diffusion / width * _bernoulli(-slope), diffusion / width * _bernoulli(slope))

    @cached_property
    def lower(self) -> np.ndarray:
        """The rates into the next cell, 0 between rows; shape ``(size − 1,)``."""
        return _padded(self.left / self.width)

    @cached_property
    def upper(self) -> np.ndarray:
        """The rates into the previous cell."""
        return _padded(self.right / self.width)

    @cached_property
    def diagonal(self) -> np.ndarray:
        """Minus the rate at which each cell is left; shape ``(size,)``."""
        return -(np.append(self.lower, 0.0) + np.insert(self.upper, 0, 0.0))

    def flux(self, density: Field) -> np.ndarray:
        """Computes ``J`` at all faces; at the outer ones it is zero. There is one more than cells along the axis."""
        p = np.moveaxis(density, self.axis, -1)
        inner = self.left * p[..., :-1] - self.right * p[..., 1:]
        ends = [(0, 0)] * (inner.ndim - 1) + [(1, 1)]
        return np.moveaxis(np.pad(inner, ends), -1, self.axis)


@dataclass(frozen=True, eq=False)
class _Step:
    generator: Generator
    span: float
    scheme: TimeScheme

    def run(self, field: np.ndarray, transposed: int) -> np.ndarray:
        behind = field.ndim - len(self.generator.lines)
        field = self._survive(field, behind)
        for sweep in self._sweeps:
            field = sweep.run(field, transposed)
        return self._survive(field, behind)

    def _survive(self, field: np.ndarray, behind: int) -> np.ndarray:
        """Multiplies by ``e^{−VΔ/2}``; ``behind`` is the number of axes after those of the grid."""
        half = self._half_survival
        return field if half is None else half.reshape(*half.shape, *[1] * behind) * field

    @cached_property
    def _half_survival(self) -> np.ndarray | None:
        return None if self.generator.cost is None else np.exp(-0.5 * self.span * self.generator.cost)

    @cached_property
    def _sweeps(self) -> list[_Sweep]:
        # Strang (1968): e^{½ΔA_1} e^{ΔA_2} e^{½ΔA_1}, of second order; palindromic, so transposes are the adjoint
        *outer, last = self.generator.lines
        halves = [_Sweep(line, 0.5 * self.span, self.scheme) for line in outer]
        return [*halves, _Sweep(last, self.span, self.scheme), *reversed(halves)]


@dataclass(frozen=True, eq=False)
class _Sweep:
    """The step ``R(ΔA)`` along one axis."""

    line: Line
    span: float
    scheme: TimeScheme

    def run(self, field: np.ndarray, transposed: int) -> np.ndarray:
        axis, several = self.line.axis, field.ndim > self.line.left.ndim
        moved = np.moveaxis(field, axis, self.line.left.ndim - 1)
        flat = moved.reshape(len(self.line.diagonal), -1) if several else moved.reshape(-1, 1)
        if self.scheme.explicit:
            flat = flat + self.scheme.explicit * self.span * self._apply(flat, transposed)  # (1 + explicit·ΔA) p
        for _ in range(self.scheme.solves):  # (1 − implicit·ΔA)⁻¹; the transposed solve is the exact adjoint
            flat, _ = dgttrs(*self._factors, flat, trans="T" if transposed else "N")
        return np.moveaxis(flat.reshape(moved.shape), self.line.left.ndim - 1, axis)

    def _apply(self, flat: np.ndarray, transposed: int) -> np.ndarray:
        line = self.line
        lower, upper = (line.upper, line.lower) if transposed else (line.lower, line.upper)
        found = line.diagonal[:, None] * flat
        found[1:] += lower[:, None] * flat[:-1]
        found[:-1] += upper[:, None] * flat[1:]
        return found

    @cached_property
    def _factors(self) -> tuple[np.ndarray, ...]:
        """The LU factors of ``1 − γΔA``; pivots stay on the diagonal, which dominates its column."""
        part = self.scheme.implicit * self.span
        *factors, _ = dgttrf(-part * self.line.lower, 1.0 - part * self.line.diagonal, -part * self.line.upper)
        return tuple(factors)


def _padded(inner: np.ndarray) -> np.ndarray:
    """Converts face values, axis last, to one off-diagonal: a zero after each row but the last."""
    return np.pad(inner.reshape(-1, inner.shape[-1]), [(0, 0), (0, 1)]).reshape(-1)[:-1]


def _bernoulli(z: np.ndarray) -> np.ndarray:
    """Computes ``z/(e^z − 1)``, 1 at 0."""
    with np.errstate(over="ignore"):
        return np.divide(z, np.expm1(z), out=np.ones_like(z), where=z != 0.0)


def _in_logs(move: Callable[[Field], Field], logs: Field) -> Field:
    top = float(logs.max())
    if not math.isfinite(top):
        raise NonFiniteError(f"a field in logarithms has the largest value {top}.")
    moved = move(np.exp(logs - top))
    largest = float(moved.max())
    return np.log(np.maximum(moved, largest * math.exp(FLOOR))) + top
