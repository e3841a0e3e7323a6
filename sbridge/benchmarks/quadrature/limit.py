"""The continuous-time limit for a diffusion in one dimension with time-independent coefficients."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from sbridge.benchmarks.quadrature.controls import interpolate
from sbridge.benchmarks.quadrature.problem import LineProblem
from sbridge.errors import InvalidInputError, UnsupportedError
from sbridge.processes.base import Time
from sbridge.processes.coefficients import relative_expm1

_QUADRATURE = 64
_DEPTH = 25.0  # e^{−25} of the largest weight: beyond, quotients of eigenfunction sums are rounding


@dataclass(frozen=True, eq=False)
class LimitOnLine:
    """The exact solution of a :class:`LineProblem` in continuous time, from the eigenfunctions of its generator.

    With ``ρ = exp(∫b/σ²)`` the function ``ψ = ρφ`` of ``∂_t φ + bφ' + ½σ²φ'' = fφ`` solves ``∂_t ψ = Hψ`` for the
    symmetric ``H = −½σ²∂² + W``, ``W = b²/2σ² + ½b' + f``, with zero at both ends of the interval (a barrier adds what
    is paid there). ``H`` is discretised in particle-in-a-box functions (Colbert & Miller 1992): digits double
    with the number of cells. ``u* = σ ∂ log φ``.

    Args:
        problem: on the line; a barrier acts at all times.
        cells: intervals of the grid.

    Raises:
        UnsupportedError: if drift, σ or running cost differ between ``t = 0`` and ``t = T``.
        InvalidInputError: if the drift varies so much over the interval that ``ρ`` is lost to rounding at the start.
    """

    problem: LineProblem
    cells: int = 400

    def __post_init__(self) -> None:
        process, x = self.problem.process, self._inner
        coefficients = [
            torch.cat([self._drift(t, x), self.problem.running_at(t, x), process.scale(t).values.reshape(-1).double()])
            for t in (0.0, process.horizon)
        ]
        if not torch.equal(*coefficients):
            raise UnsupportedError(
                "the limit on a line is known for drift, σ and running cost that are constant in time."
            )
        if float(self._log_weight.max()) > _DEPTH:
            raise InvalidInputError(
                "the drift points away from the start over such a distance that e^(∫b/σ²) has no accurate digits "
                "there; choose a narrower interval."
            )

    @property
    def value(self) -> float:
        """The least cost ``−log φ(0, x_0)``."""
        start = torch.tensor([self.problem.start], dtype=torch.float64)
        return -math.log(float(self.potential(0.0, start)))

    @cached_property
    def energy(self) -> float:
        """The energy ``E∫u*² dt``."""
        points, weights = np.polynomial.legendre.leggauss(_QUADRATURE)
        horizon = self.problem.process.horizon
        total = 0.0
        for point, weight in zip(points, weights, strict=True):
            t = 0.5 * horizon * (1.0 + float(point))
            density = self.density(t)
            total += 0.5 * horizon * float(weight) * float(density @ self(t, self._inner.unsqueeze(1)).square().sum(1))
        return total * self._width

    @property
    def points(self) -> Tensor:
        """The points at which :meth:`density` is given, shape ``(cells − 1,)``."""
        return self._inner

    def potential(self, t: float, x: Tensor) -> Tensor:
        """Computes ``φ(t, x) = E[e^{−∫f − g} | X_t = x]`` at points ``(n,)``."""
        psi, _ = self._series(t, x)
        return psi / self._weight(x).exp() + self._paid

    def density(self, t: float) -> Tensor:
        """Computes the density at :attr:`points` of the optimal distribution of running paths, for ``0 < t ≤ T``."""
        start = torch.tensor([self.problem.start], dtype=torch.float64)
        source = (self._sines @ self._modes(start)[0][0]) * (2.0 / self.cells)
        levels, vectors = self._eigen
        spread = vectors @ ((-levels * t).exp() * (vectors.mT @ source)) / self._width
        psi, _ = self._series(t, self._inner)
        whole = psi + self._paid * self._log_weight.exp()
        return spread * whole / self.potential(0.0, start)

    def __call__(self, t: Time, x: Tensor) -> Tensor:
        """``u*(t, x)``, shape ``(batch, 1)``: cubic between points, constant where ``ρ`` is negligible and beyond."""
        reach = self._inner[self._reach]
        place = (x[:, 0].detach().double().cpu() - reach[0]) / self._width
        if isinstance(t, Tensor) and t.ndim:
            moments, index = t.detach().cpu().unique(return_inverse=True)
        else:
            moments, index = torch.tensor([float(t)], dtype=torch.float64), torch.zeros(1, dtype=torch.int64)
        table = torch.stack([self._control(float(moment)) for moment in moments])
        return interpolate(table, index.unsqueeze(1), place).unsqueeze(1).to(x)

    @cached_property
    def _reach(self) -> Tensor:
        """The points at which quotients of sums of eigenfunctions are accurate."""
        return self._log_weight > self._log_weight.max() - _DEPTH

    def _control(self, t: float) -> Tensor:
        """Computes ``u*(t, ·)`` at these points."""
        x, sigma = self._inner[self._reach], self._sigma
        psi, slope = self._series(t, x)
        rho = self._log_weight[self._reach].exp()
        return sigma * (slope - psi * self._drift(0.0, x) / sigma**2) / (psi + self._paid * rho)

    @cached_property
    def _ends(self) -> tuple[float, float]:
        barrier = self.problem.barrier
        return self.problem.low, self.problem.high if barrier is None else barrier.position

    @property
    def _width(self) -> float:
        return (self._ends[1] - self._ends[0]) / self.cells

    @cached_property
    def _inner(self) -> Tensor:
        return torch.linspace(*self._ends, self.cells + 1, dtype=torch.float64)[1:-1]

    @cached_property
    def _sigma(self) -> float:
        return float(self.problem.process.scale(0.0).expanded(1))

    @cached_property
    def _paid(self) -> float:
        """``e^{−g}`` at the barrier; zero without one."""
        if self.problem.barrier is None:
            return 0.0
        return float((-self.problem.terminal_at(torch.tensor([self._ends[1]], dtype=torch.float64))).exp())

    @cached_property
    def _log_weight(self) -> Tensor:
        return self._weight(self._inner)

    def _drift(self, t: float, x: Tensor) -> Tensor:
        return self.problem.process.drift(t, x.unsqueeze(1)).squeeze(1)

    def _weight(self, x: Tensor) -> Tensor:
        """Computes ``log ρ(x) = ∫ b/σ²`` from the start."""
        points, weights = (torch.from_numpy(one) for one in np.polynomial.legendre.leggauss(_QUADRATURE))
        half = 0.5 * (x - self.problem.start)
        between = self.problem.start + half.unsqueeze(1) * (1.0 + points)
        return half * (self._drift(0.0, between.reshape(-1)).reshape(between.shape) @ weights) / self._sigma**2

    @cached_property
    def _eigen(self) -> tuple[Tensor, Tensor]:
        n, x = self.cells, self._inner.clone().requires_grad_()
        i = torch.arange(1, n, dtype=torch.float64)
        minus, plus = (math.pi * (i.unsqueeze(1) + sign * i) / (2 * n) for sign in (-1.0, 1.0))
        apart = torch.where(minus == 0, torch.ones_like(minus), minus.sin()).square().reciprocal()
        kinetic = (apart - plus.sin().square().reciprocal()) * (1.0 - 2.0 * ((i.unsqueeze(1) - i).abs() % 2))
        diagonal = (2 * n**2 + 1) / 3 - (math.pi * i / n).sin().square().reciprocal()
        kinetic = kinetic.diagonal_scatter(diagonal)
        length = self._ends[1] - self._ends[0]
        with torch.enable_grad():
            drift = self._drift(0.0, x)
            slope = torch.autograd.grad(drift.sum(), x)[0] if drift.requires_grad else torch.zeros_like(x)
        x = x.detach()
        well = 0.5 * (drift.detach() / self._sigma).square() + 0.5 * slope + self.problem.running_at(0.0, x)
        return torch.linalg.eigh(kinetic * (0.5 * math.pi * self._sigma / length) ** 2 + torch.diag(well))

    @cached_property
    def _sines(self) -> Tensor:
        """``sin(nπ i/N)``, rows ``i``, columns ``n``."""
        i = torch.arange(1, self.cells, dtype=torch.float64)
        return (math.pi * i.unsqueeze(1) * i / self.cells).sin()

    def _modes(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Computes ``sin(nπ(x − a)/(b − a))`` and its derivative, shape ``(points, modes)``."""
        wave = math.pi * torch.arange(1, self.cells, dtype=torch.float64) / (self._ends[1] - self._ends[0])
        angle = (x - self._ends[0]).unsqueeze(1) * wave
        return angle.sin(), angle.cos() * wave

    def _series(self, t: float, x: Tensor) -> tuple[Tensor, Tensor]:
        """Computes ``ψ(t, x)``, less what is paid at a barrier, and its derivative."""
        left = self.problem.process.horizon - t
        levels, vectors = self._eigen
        rho = self._log_weight.exp()
        end = rho * ((-self.problem.terminal_at(self._inner)).exp() - self._paid)
        fade = (-levels * left).exp()
        coefficients = fade * (vectors.mT @ end)
        if self._paid:
            source = rho * self.problem.running_at(0.0, self._inner) * self._paid
            # ∫_0^{T−t} e^{−sH} ds
            coefficients = coefficients - left * relative_expm1(-levels * left) * (vectors.mT @ source)
        amplitudes = (2.0 / self.cells) * (self._sines @ (vectors @ coefficients))
        values, slopes = self._modes(x)
        return values @ amplitudes, slopes @ amplitudes
