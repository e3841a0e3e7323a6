"""The action functional of stochastic control on a grid in space and Chebyshev points in time."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from sbridge.errors import InvalidInputError
from sbridge.pde.grids import Grid
from sbridge.pde.propagator import StateCost
from sbridge.processes.base import Process


@dataclass(frozen=True, eq=False)
class SpaceTime:
    """A grid in space with ``nodes`` Chebyshev points of ``[0, T]``, including both ends.

    Fields on it have shape ``(nodes, *grid.shape)``, vector fields ``(dim, nodes, *grid.shape)``. Derivatives in time
    are those of the interpolating polynomial (Trefethen 2000) and integrals those of Clenshaw & Curtis, so
    smooth fields are treated to 1e-10 with some twenty nodes; derivatives in space are differences of order 8.
    """

    grid: Grid
    horizon: float
    nodes: int = 24

    def __post_init__(self) -> None:
        if self.nodes < 3 or not self.horizon > 0:
            raise InvalidInputError(f"at least 3 nodes and a positive horizon are needed, got {self}.")

    @cached_property
    def times(self) -> np.ndarray:
        """The nodes, increasing."""
        return 0.5 * self.horizon * (1.0 - np.cos(np.pi * np.arange(self.nodes) / (self.nodes - 1)))

    @cached_property
    def weights(self) -> np.ndarray:
        """The weights of the integral over time."""
        degrees = np.arange(self.nodes)
        moments = np.where(degrees % 2 == 0, 2.0 / (1.0 - np.where(degrees == 1, 0, degrees) ** 2.0), 0.0)
        nodes = 2.0 * self.times / self.horizon - 1.0
        return (
            0.5 * self.horizon * np.linalg.solve(np.polynomial.chebyshev.chebvander(nodes, self.nodes - 1).T, moments)
        )

    @cached_property
    def _time_derivative(self) -> np.ndarray:
        t = self.times
        gaps = t[:, None] - t + np.eye(self.nodes)
        ends = np.ones(self.nodes)
        ends[[0, -1]] = 2.0
        signed = ends * (-1.0) ** np.arange(self.nodes)
        matrix = signed[:, None] / signed / gaps
        return matrix - np.diag(matrix.sum(1))

    def time_derivative(self, field: np.ndarray) -> np.ndarray:
        """Computes ``∂_t f``."""
        return np.tensordot(self._time_derivative, self.check(field), (1, 0))

    def integrate(self, field: np.ndarray) -> float:
        """Computes ``∫∫ f dx dt``."""
        return float(self.weights @ self.check(field).reshape(self.nodes, -1).sum(1)) * self.grid.volume

    def check(self, field: np.ndarray) -> np.ndarray:
        """Returns ``field``; raises InvalidInputError unless it has the shape of a field here."""
        if field.shape != (self.nodes, *self.grid.shape):
            raise InvalidInputError(f"a field has shape {(self.nodes, *self.grid.shape)} here, got {field.shape}.")
        return field


@dataclass(frozen=True, eq=False)
class GridAction:
    """``S[p, u, J]``, whose stationary points are Schrödinger bridges (Premkumar 2023, §3.2).

    Density ``p``, control ``u`` (noise units, a vector field) and multiplier ``J`` are independent fields.

    Args:
        process: ``dX = b dt + σ dW``, σ of any form.
        space: where fields live; ``p`` must vanish at the boundary of its grid.
        state_cost: ``V``.
    """

    process: Process
    space: SpaceTime
    state_cost: StateCost | None = None

    def constraint_form(self, p: np.ndarray, u: np.ndarray, multiplier: np.ndarray) -> float:
        """Returns ``∫∫ p (½|u|² + V) + ∫∫ J (−∂_t p − ∇·((b + σu)p) + ½σσᵀ:∇²p)``, eq. (3.22): derivatives on ``p``."""
        residual = self.fokker_planck_residual(p, u)
        return self.space.integrate(p * self._running_cost(u) - multiplier * residual)

    def adjoint_form(self, p: np.ndarray, u: np.ndarray, multiplier: np.ndarray) -> float:
        """Computes ``∫∫ p (½|u|² + V + ∂_t J + (b + σu)·∇J + ½σσᵀ:∇²J) + ∫p_0 J_0 − ∫p_T J_T``, eq. (3.21).

        Equal to :meth:`constraint_form`, with derivatives on ``J`` instead of ``p``.
        """
        moved = self.space.time_derivative(multiplier) + self._generator(multiplier, u)
        boundary = (p[0] * multiplier[0]).sum() - (p[-1] * multiplier[-1]).sum()
        return self.space.integrate(p * (self._running_cost(u) + moved)) + float(boundary) * self.space.grid.volume

    def fokker_planck_residual(self, p: np.ndarray, u: np.ndarray) -> np.ndarray:
        """Computes ``∂_t p + ∇·((b + σu)p) − ½σσᵀ:∇²p``, eq. (3.23a)."""
        grid, drift = self.space.grid, self._drift + self._scaled(u)
        flow = sum(grid.difference(drift[a] * p, a) for a in range(grid.dim))
        return self.space.time_derivative(p) + flow - self._spread(p)

    def hjb_residual(self, multiplier: np.ndarray) -> np.ndarray:
        """Computes ``∂_t J + b·∇J + ½σσᵀ:∇²J − ½|σᵀ∇J|² + V``, eq. (3.24)."""
        u = self.control_of(multiplier)
        moved = self.space.time_derivative(multiplier) + self._generator(multiplier, np.zeros_like(u))
        return moved - 0.5 * (u**2).sum(0) + self._cost

    def control_of(self, multiplier: np.ndarray) -> np.ndarray:
        """Computes ``u = −σᵀ∇J``, eq. (3.23c)."""
        return -np.einsum("tba,bt...->at...", self._scale, self.space.grid.gradient(multiplier))

    def _generator(self, field: np.ndarray, u: np.ndarray) -> np.ndarray:
        gradient = self.space.grid.gradient(field)
        return ((self._drift + self._scaled(u)) * gradient).sum(0) + self._spread(field)

    def _spread(self, field: np.ndarray) -> np.ndarray:
        """Computes ``½σσᵀ:∇²f``."""
        grid, square = self.space.grid, self._scale @ np.swapaxes(self._scale, 1, 2)
        total = np.zeros_like(field)
        for a in range(grid.dim):
            for b in range(grid.dim):
                if not square[:, a, b].any():
                    continue
                second = grid.difference(field, a, 2) if a == b else grid.difference(grid.difference(field, a), b)
                total += 0.5 * self._per_time(square[:, a, b]) * second
        return total

    def _scaled(self, u: np.ndarray) -> np.ndarray:
        return np.einsum("tab,bt...->at...", self._scale, u)

    def _running_cost(self, u: np.ndarray) -> np.ndarray:
        return 0.5 * (u**2).sum(0) + self._cost

    def _per_time(self, values: np.ndarray) -> np.ndarray:
        return values.reshape(-1, *[1] * self.space.grid.dim)

    @cached_property
    def _scale(self) -> np.ndarray:
        """σ, shape ``(nodes, dim, dim)``."""
        dim = self.space.grid.dim
        return np.stack([self.process.scale(float(t)).expanded(dim).numpy() for t in self.space.times])

    @cached_property
    def _drift(self) -> np.ndarray:
        """``b``, a vector field."""
        points, grid = self.space.grid.points, self.space.grid
        rows = [self.process.drift(float(t), points).detach().double().numpy() for t in self.space.times]
        return np.moveaxis(np.stack(rows), -1, 0).reshape(grid.dim, self.space.nodes, *grid.shape)

    @cached_property
    def _cost(self) -> np.ndarray:
        grid, cost = self.space.grid, self.state_cost
        if cost is None:
            return np.zeros((self.space.nodes, *grid.shape))
        return np.stack(
            [grid.field(torch.as_tensor(cost(float(t), grid.points), device="cpu")) for t in self.space.times]
        )
