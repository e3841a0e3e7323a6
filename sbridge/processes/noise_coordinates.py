"""A linear process with constant coefficients and a quadratic cost along its paths, in units of its noise.

In ``z = S⁻¹x`` with ``SSᵀ = σσᵀ`` the noise is standard: ``dZ = (AZ + c) dt + dW``, ``V = ½zᵀQz + q·z``. The weighted
kernel ``K_Δ(x, y) = E_R[e^{−∫V dt}; Z_Δ = y | Z_0 = x]`` and all functions ``e^{−½zᵀΠz − π·z}`` that it propagates
belong to the flow of one Hamiltonian matrix. Its exponential over a long time would cancel, so kernels are doubled.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from sbridge.errors import UnsupportedError
from sbridge.linear import LinearMap
from sbridge.processes.base import LinearProcess, Process, applied
from sbridge.processes.brownian import BrownianMotion
from sbridge.processes.ornstein_uhlenbeck import OrnsteinUhlenbeck

_STEP = 0.5  # of the kernels that are doubled: ‖Hamiltonian‖ × duration
_MOST_DOUBLINGS = 60
_RELATIVE_ZERO = 1e-14
_FORGOTTEN = 1e-17  # coupling of the ends of a kernel, relative to that of either with itself


@dataclass(frozen=True, eq=False)
class WeightedKernel:
    """The kernel ``K(x, y) ∝ exp(−½xᵀFx + xᵀMy − ½yᵀGy + f·x + g·y)``, without its constant.

    Args:
        start, cross, end: ``F, M, G``, shape ``(n, blocks, size, size)``.
        start_slope, end_slope: ``f, g``, shape ``(n, blocks, size)``.
    """

    start: Tensor
    cross: Tensor
    end: Tensor
    start_slope: Tensor
    end_slope: Tensor

    @cached_property
    def middle(self) -> Tensor:
        """``G + F``, the precision of the state between two such kernels."""
        return self.end + self.start

    @property
    def bounded(self) -> bool:
        """Whether two such kernels compose: ``G + F`` is positive definite."""
        return bool((torch.linalg.cholesky_ex(self.middle).info == 0).all())

    def doubled(self) -> WeightedKernel:
        """Integrates over the state between this kernel and itself."""
        inner = torch.linalg.inv(self.middle)
        left, right = self.cross @ inner, self.cross.mT @ inner
        pull = self.end_slope + self.start_slope
        start, end = self.start - left @ self.cross.mT, self.end - right @ self.cross
        return WeightedKernel(
            0.5 * (start + start.mT),
            left @ self.cross,
            0.5 * (end + end.mT),
            self.start_slope + product(left, pull),
            self.end_slope + product(right, pull),
        )


@dataclass(frozen=True, eq=False)
class NoiseCoordinates:
    """Process and cost in the coordinates ``z = S⁻¹x``, which fall into blocks that do not mix.

    Args:
        basis: ``S``.
        linear: ``A``, shape ``(blocks, size, size)``; one block for all coordinates if they are alike.
        offset: ``c``, shape ``(blocks, size)``.
        curvature: ``Q``, symmetric, shaped as ``A``.
        slope: ``q``, shaped as ``c``.
        horizon: ``T``.
    """

    basis: LinearMap
    linear: Tensor
    offset: Tensor
    curvature: Tensor
    slope: Tensor
    horizon: float

    @classmethod
    def of(cls, process: LinearProcess, curvature: Tensor, slope: Tensor) -> NoiseCoordinates:
        """Finds the coordinates for ``V = ½xᵀQx + q·x`` along a process with constant coefficients.

        Raises:
            UnsupportedError: if the coefficients are not constant.
        """
        if not isinstance(process, (BrownianMotion, OrnsteinUhlenbeck)) or callable(process.sigma):
            raise UnsupportedError(no_closed_form(process))
        basis, linear, dim = process.scale(0.0), process.linear(0.0), len(slope)
        whole = basis.expanded(dim)
        curvature = whole.mT @ curvature @ whole
        curvature = 0.5 * (curvature + curvature.mT)
        alike = not linear.dense and linear.values.shape[-1] == 1
        if alike and not _is_diagonal(curvature):
            values, vectors = torch.linalg.eigh(curvature)
            values = torch.where(values.abs() > _RELATIVE_ZERO * values.abs().max(), values, 0.0)
            basis, curvature = basis @ LinearMap(vectors, dense=True), values.diag()
        elif not alike:
            linear = basis.inverse() @ linear @ basis
        drift = linear.expanded(dim)
        offset = applied(basis.inverse(), process.offset(0.0)).expand(dim)
        slope = applied(basis.T, slope)
        if not (_is_diagonal(curvature) and _is_diagonal(drift)):
            return cls(basis, drift[None], offset[None], curvature[None], slope[None], process.horizon)
        parts = torch.stack([drift.diagonal(), offset, curvature.diagonal(), slope])
        if not basis.dense and basis.values.shape[-1] == 1 and bool((parts == parts[:, :1]).all()):
            parts = parts[:, :1]
        drifts, offsets, curvatures, slopes = parts.unsqueeze(-1)
        return cls(basis, drifts[..., None], offsets, curvatures[..., None], slopes, process.horizon)

    @cached_property
    def speed(self) -> float:
        """A bound on the rates of the Hamiltonian flow: ``‖A‖ + ‖Q‖^½``."""
        sizes = (torch.linalg.matrix_norm(part, 2).max() for part in (self.linear, self.curvature))
        drift, curvature = map(float, sizes)
        return drift + math.sqrt(curvature)

    def steps(self, duration: float) -> int:
        """The power of two of steps into which a duration is cut, so that the flow over a step is near the identity."""
        return 2 ** max(0, math.ceil(math.log2(max(self.speed * duration / _STEP, 1.0))))

    def flow(self, duration: Tensor) -> tuple[Tensor, ...]:
        """The blocks ``Ψ_11, Ψ_12, Ψ_13, Ψ_21, Ψ_22, Ψ_23`` of ``e^{ΔH}``, for short ``Δ`` of shape ``(n,)``.

        ``H = [[A, −1, c], [−Q, −Aᵀ, −q], [0, 0, 0]]`` moves ``(z, Πz + π, 1)``. It is exponentiated in units in which
        its blocks are of one size.
        """
        size = self.linear.shape[-1]
        unit = self.speed or 1.0 / self.horizon
        rates = torch.zeros(len(self.linear), 2 * size + 1, 2 * size + 1, dtype=torch.float64, device="cpu")
        driven = torch.cat([self.offset, -self.slope / unit], -1)
        column = float(driven.abs().max()) / unit or 1.0
        rates[:, :size, :size], rates[:, size:-1, size:-1] = self.linear, -self.linear.mT
        rates[:, :size, size:-1] = -unit * torch.eye(size, dtype=torch.float64, device="cpu")
        rates[:, size:-1, :size] = -self.curvature / unit
        rates[:, :-1, -1] = driven / column
        flow = torch.linalg.matrix_exp(duration.reshape(-1, 1, 1, 1) * rates)
        upper, lower = flow[..., :size, :], flow[..., size:-1, :] * unit
        return (
            *(upper[..., :size], upper[..., size:-1] / unit, upper[..., -1] * column),
            *(lower[..., :size], lower[..., size:-1] / unit, lower[..., -1] * column),
        )

    def kernel(self, duration: Tensor) -> WeightedKernel:
        """The kernel over positive durations, shape ``(n,)``, before the conjugate time."""
        steps = self.steps(float(duration.max()))
        found = self._short(duration / steps)
        for _ in range(steps.bit_length() - 1):
            found = found.doubled()
        return found

    def conjugate_time(self) -> float | None:
        """The time, within the horizon, from which on a cost that repels has no least value; ``None`` if there is none.

        A kernel over ``2Δ`` exists if the integral over the state in the middle does.
        """
        if self._solvable(self.horizon):
            return None
        low, high = 0.0, self.horizon
        for _ in range(50):
            middle = 0.5 * (low + high)
            low, high = (middle, high) if self._solvable(middle) else (low, middle)
        return low

    def stationary(self) -> tuple[Tensor, Tensor] | None:
        """``Π, π`` of an infinite time ahead: the root of ``AᵀΠ + ΠA − Π² + Q = 0`` with which ``A − Π`` contracts.

        ``None`` if there is none, because the cost repels, or holds nothing in some direction in which the process does
        not contract either. Doubling converges quadratically (Anderson 1978).
        """
        if self.linear.shape[-1] == 1:
            return self._stationary_scalars()
        found = self._short(torch.full((1,), _STEP / self.speed, dtype=torch.float64, device="cpu"))
        for _ in range(_MOST_DOUBLINGS):
            if not found.bounded:
                return None
            found = found.doubled()
            coupling = torch.linalg.matrix_norm(found.cross) / torch.linalg.matrix_norm(found.middle)
            if bool((coupling <= _FORGOTTEN).all()):
                return found.start[0], -found.start_slope[0]
        return None

    def _stationary_scalars(self) -> tuple[Tensor, Tensor] | None:
        """Block by block ``Π = A + (A² + Q)^½``; where that root is zero, nothing may push the state."""
        drift, curvature = self.linear[..., 0], self.curvature[..., 0]
        square = drift.square() + curvature
        if bool((square < 0.0).any()):
            return None
        root = square.sqrt()
        tilt = torch.where(drift < 0.0, curvature / (root - drift), drift + root)  # no difference of equal numbers
        pushed = tilt * self.offset + self.slope
        if bool(((root == 0.0) & (pushed != 0.0)).any()):
            return None
        return tilt.unsqueeze(-1), torch.where(root == 0.0, self.offset, pushed / root)

    def multiplicity(self, dim: int) -> int:
        """How many coordinates each number of the blocks stands for."""
        return dim // (self.linear.shape[0] * self.linear.shape[-1])

    def map(self, blocks: Tensor) -> LinearMap:
        """The map ``x ↦ S B S⁻¹ x`` for blocks ``B`` of shape ``(..., blocks, size, size)``."""
        inner = self._inner(blocks)
        return self.basis @ inner @ self.basis.inverse() if self.basis.dense or inner.dense else inner

    def covariance(self, blocks: Tensor) -> LinearMap:
        """The map ``S B Sᵀ``."""
        return self.basis @ self._inner(blocks) @ self.basis.T

    def vector(self, blocks: Tensor) -> Tensor:
        """The vector ``S b``, for blocks of shape ``(..., blocks, size)``."""
        return applied(self.basis, blocks.flatten(-2))

    def form(self, blocks: Tensor, slopes: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        """Matrix and vector of ``½zᵀBz + b·z`` as a function of ``x``."""
        back = self.basis.inverse()
        matrix = (back.T @ self._inner(blocks) @ back).expanded(dim)
        return 0.5 * (matrix + matrix.mT), applied(back.T, slopes.flatten(-2)).expand(dim)

    def _inner(self, blocks: Tensor) -> LinearMap:
        if blocks.shape[-1] == 1:
            return LinearMap(blocks.flatten(-3))
        return LinearMap(blocks.squeeze(-3), dense=True)

    def _short(self, duration: Tensor) -> WeightedKernel:
        one, two, driven, _, low, low_driven = self.flow(duration)
        cross = -torch.linalg.inv(two)
        start, end = cross @ one, low @ cross
        pulled = product(cross, driven)
        return WeightedKernel(
            0.5 * (start + start.mT), cross, 0.5 * (end + end.mT), -pulled, low_driven + product(low, pulled)
        )

    def _solvable(self, duration: float) -> bool:
        steps = self.steps(duration)
        found = self._short(torch.full((1,), duration / steps, dtype=torch.float64, device="cpu"))
        while steps > 1:
            if not found.bounded:
                return False
            found, steps = found.doubled(), steps // 2
        return True


def no_closed_form(process: Process) -> str:
    """Explains that a quadratic cost has no closed form under ``process``."""
    return (
        "a quadratic state cost has a closed form under a BrownianMotion or an OrnsteinUhlenbeck with constant σ, got "
        f"{process}. Use one of these, or solve_schroedinger(…, state_cost=…) in one or two dimensions."
    )


def product(matrices: Tensor, vectors: Tensor) -> Tensor:
    """``M v`` block by block."""
    return (matrices @ vectors.unsqueeze(-1)).squeeze(-1)


def _is_diagonal(matrix: Tensor) -> bool:
    return bool((matrix == matrix.diagonal().diag()).all())
