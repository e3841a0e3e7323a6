"""Pairs of ends in the plane, outside every family of solvers, whose Schrödinger bridge is solved on a fine grid."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from sbridge.benchmarks.pairs import GaussianPair, MixturePair
from sbridge.controls.base import Time
from sbridge.errors import InvalidInputError, check_known
from sbridge.laws import Density, Gaussian, GaussianMixture, Law
from sbridge.measures import Estimate, PathMeasure
from sbridge.pde import FortetSinkhorn, Grid, GridSolution, solve_schroedinger
from sbridge.pde.grids import Spline
from sbridge.processes import BrownianMotion
from sbridge.random import Seed, generator
from sbridge.time import TimeGrid

_REACH = 7.0  # half a side of the box: seven deviations of the source
_NUMBERS = 2**23  # rows × cells that are looked at together
_SOLVED = FortetSinkhorn(tolerance=1e-9)


def ring() -> Law:
    """The ring ``|y| ≈ 3 ± 0.3``, rotationally symmetric."""
    return Density(lambda y: -0.5 * ((y.norm(dim=1) - 3.0) / 0.3).square(), 2)


def bananas() -> Law:
    """The curves ``y_2 = ±(0.8 + 0.3 y_1²)`` with deviation 0.3, ``y_1`` with density ``∝ exp(−(y_1/1.8)⁴)``."""

    def log_density(y: Tensor) -> Tensor:
        along, bend = -(y[:, 0] / 1.8).pow(4), 0.8 + 0.3 * y[:, 0].square()
        across = [-0.5 * ((sign * y[:, 1] - bend) / 0.3).square() for sign in (1.0, -1.0)]
        return along + torch.logaddexp(*across)

    return Density(log_density, 2)


def spirals() -> Law:
    """Gaussians of deviation 0.25 along two arms ``±½θ(−cos θ, sin θ)``, ``1 ≤ θ ≤ 8``, uniform in ``θ²``."""
    angle = torch.linspace(1.0, 64.0, 100, dtype=torch.float64).sqrt()
    arm = 0.5 * angle[:, None] * torch.stack([-angle.cos(), angle.sin()], 1)
    return _along(torch.cat([arm, -arm]), 0.25)


def moons() -> Law:
    """Gaussians of deviation 0.25 along two interleaving half circles of radius 2.5."""
    angle = torch.linspace(0.0, math.pi, 60, dtype=torch.float64)
    arc = 2.5 * torch.stack([angle.cos(), angle.sin()], 1)
    shift = arc.new_tensor([1.25, -0.6])
    return _along(torch.cat([arc - shift, shift - arc]), 0.25)


TARGETS: dict[str, Callable[[], Law]] = {"ring": ring, "bananas": bananas, "spirals": spirals, "moons": moons}
"""Targets by name."""


@dataclass(frozen=True)
class PlanarPair:
    """``p_0 = N(0, I)`` in the plane, Brownian reference with ``σ² = ε``, and a target by name, solved on a grid.

    The Schrödinger system is solved by :func:`sbridge.pde.solve_schroedinger` on ``[−7, 7]²``; sums over cells of
    smooth functions are integrals to rounding, so conditional moments at any ``x`` are exact. Draws are a cell and a
    uniform point in it, which adds a twelfth of a squared cell width to variances.

    Args:
        target: a name in :data:`TARGETS`.
        epsilon: ε, with ``T = 1``.
        seed: of what benchmarks draw; the distributions are the same.
        cells: a side.

    Raises:
        UnknownNameError: for a name that is not known.
    """

    target: str
    epsilon: float
    seed: int = 0
    cells: int = 112

    def __post_init__(self) -> None:
        check_known("planar target", [self.target], TARGETS)
        if not (self.epsilon > 0 and math.isfinite(self.epsilon)):
            raise InvalidInputError(f"a positive epsilon is needed, got {self.epsilon}.")

    @property
    def dim(self) -> int:
        """The dimension 2."""
        return 2

    @property
    def reference(self) -> BrownianMotion:
        """Brownian motion with ``σ = √ε``."""
        return BrownianMotion(math.sqrt(self.epsilon))

    @property
    def source(self) -> Gaussian:
        """``N(0, I)``."""
        return Gaussian(torch.zeros(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64))

    @cached_property
    def bridge(self) -> GridSolution:
        """The solution on the grid."""
        law = TARGETS[self.target]()
        grid = Grid.of((-_REACH,) * 2, (_REACH,) * 2, self.cells)
        return solve_schroedinger(self.reference, self.source, law, grid, options=_SOLVED)

    @cached_property
    def truth(self) -> PathMeasure:
        """The exact bridge, forward."""
        control, kernel = GridControl(self.bridge), GridKernel(self.bridge)
        return PathMeasure(self.reference, control, self.source, grid=TimeGrid.cosine(100), end_kernel=kernel)

    @property
    def value(self) -> Estimate:
        """``V*``, to rounding."""
        return Estimate(self.bridge.value, 0.0, self.bridge.grid.size)

    def sample(self, n: int, *, seed: Seed) -> tuple[Tensor, Tensor]:
        """Draws ``n`` independent rows of either end, unpaired, in float32."""
        draws = generator(seed)
        x0 = self.source.sample(n, draws).float()
        masses = torch.from_numpy(self.bridge.log_end.reshape(-1)).exp().expand(1, -1)
        which = torch.zeros(n, dtype=torch.int64)
        return x0, _draw_cells(self.bridge.grid, masses.cumsum(1), which, draws).float()

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Computes mean ``(n, 2)`` and covariance ``(n, 2, 2)`` of ``X_1`` given ``X_0 = x``, float64."""
        return GridKernel(self.bridge).moments(x)

    @cached_property
    def end_moments(self) -> tuple[Tensor, Tensor]:
        """Mean and covariance of ``p_1``."""
        grid = self.bridge.grid
        shares = torch.from_numpy(self.bridge.log_end.reshape(-1)).exp() * grid.volume
        mean = shares @ grid.points
        centred = grid.points - mean
        return mean, (shares.unsqueeze(1) * centred).mT @ centred


Pair = MixturePair | GaussianPair | PlanarPair
"""What one table runs over: they share their properties, ``sample`` and ``moments``."""


@dataclass(frozen=True, eq=False)
class GridControl:
    """The control ``u*(t, x) = σᵀ∇log φ`` from splines, cached for every requested time."""

    bridge: GridSolution

    def __call__(self, t: Time, x: Tensor) -> Tensor:
        """Computes the control at ``(t, x)``; all rows at one time."""
        moment = float(t)
        if moment not in self._splines:
            self._splines[moment] = self.bridge.grid.spline(self.bridge.potentials.log_phi(moment))
        gradient = torch.from_numpy(self._splines[moment].gradient(x.detach().cpu().double().numpy()))
        return self.bridge.process.scale(moment).T(gradient).to(x)

    @cached_property
    def _splines(self) -> dict[float, Spline]:
        return {}


@dataclass(frozen=True, eq=False)
class GridKernel:
    """The plan on the grid: ``π(y | x) ∝ G(y | x) φ(T, y)`` over the cells ``y``, for any ``x``."""

    bridge: GridSolution

    def shares(self, x: Tensor) -> Tensor:
        """Computes probabilities of the cells for each row, ``(n, cells)``, float64."""
        law, grid = self.bridge.process.transition(0.0, self.bridge.process.horizon), self.bridge.grid  # type: ignore[attr-defined]
        whiten = law.root.inverse()
        near, far = whiten(law.mean(x.double())), whiten(grid.points)
        potential = torch.from_numpy(self.bridge.log_phi_end.reshape(-1))
        return torch.softmax(potential - 0.5 * far.square().sum(1) + near @ far.mT, 1)

    def draw(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Draws a point in one cell for each row; equal rows share their probabilities."""
        distinct, place = torch.unique(x, dim=0, return_inverse=True)
        found, size = torch.empty_like(x), max(1, _NUMBERS // self.bridge.grid.size)
        for start in range(0, len(distinct), size):
            chosen = (place >= start) & (place < start + size)
            sums = self.shares(distinct[start : start + size]).cumsum(1)
            found[chosen] = _draw_cells(self.bridge.grid, sums, place[chosen] - start, generator).to(x)
        return found

    def mean(self, x: Tensor) -> Tensor:
        """Computes the conditional mean per row."""
        return self.moments(x)[0].to(x)

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Computes conditional mean ``(n, 2)`` and covariance ``(n, 2, 2)`` of the end for each row, float64."""
        points = self.bridge.grid.points
        features = torch.cat([points, (points.unsqueeze(2) * points.unsqueeze(1)).reshape(-1, 4)], 1)
        parts = [self.shares(rows) @ features for rows in x.split(max(1, _NUMBERS // len(points)))]
        mean, second = torch.cat(parts).split([2, 4], 1)
        return mean, second.reshape(-1, 2, 2) - mean.unsqueeze(2) * mean.unsqueeze(1)


def _along(points: Tensor, deviation: float) -> GaussianMixture:
    weights = torch.full((len(points),), 1.0 / len(points), dtype=torch.float64)
    covariance = deviation**2 * torch.eye(2, dtype=torch.float64)
    return GaussianMixture(weights, points, covariance.expand(len(points), 2, 2))


def _draw_cells(grid: Grid, sums: Tensor, rows: Tensor, generator: torch.Generator) -> Tensor:
    """Draws a uniform point in a cell chosen by the cumulative sums of row ``rows[i]``, for each ``i``."""
    found = torch.empty(len(rows), dtype=torch.int64)
    uniform = torch.rand(len(rows), dtype=torch.float64, generator=generator)
    for row in rows.unique().tolist():
        here = rows == row
        found[here] = torch.searchsorted(sums[row], uniform[here] * sums[row, -1], right=True)
    inside = torch.rand(len(rows), 2, dtype=torch.float64, generator=generator) - 0.5
    return grid.points[found.clamp_(max=grid.size - 1)] + inside * torch.tensor(grid.widths, dtype=torch.float64)
