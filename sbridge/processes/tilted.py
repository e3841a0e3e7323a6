"""A linear process tilted by a quadratic cost along its paths."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from sbridge.errors import InvalidInputError, number
from sbridge.linear import LinearMap
from sbridge.processes.base import LinearProcess, Time, Transition
from sbridge.processes.coefficients import clock, integrate, interval
from sbridge.processes.noise_coordinates import NoiseCoordinates, product
from sbridge.storage.registry import register


@register
@dataclass(frozen=True, eq=False)
class TiltedLinearProcess(LinearProcess):
    """The process ``dP ∝ e^{−∫V dt − ½X_TᵀΠ_T X_T} dR`` of a linear ``R`` and ``V = ½xᵀQx + q·x``, a linear one again.

    With ``a = σσᵀ`` and ``dX = (AX + c) dt + σ dW`` under ``R``::

        −Π̇ = AᵀΠ + ΠA − ΠaΠ + Q      −π̇ = (A − aΠ)ᵀπ + Πc + q      drift of P: (A − aΠ) x + c − aπ

    Pinned paths and the plan of a bridge do not depend on ``Π_T``. It is zero in the directions in which ``V`` holds
    the state; where ``V`` repels it is as large as needed for ``E e^{−∫V − …}`` to be finite up to the conjugate time.

    Args:
        process: ``R``, with constant coefficients.
        curvature: ``Q``, symmetric, of any sign, shape ``(dim, dim)``.
        slope: ``q``, shape ``(dim,)``.

    Raises:
        InvalidInputError: for other shapes, or from the conjugate time on, beyond which no process is the best.
        UnsupportedError: if the coefficients of ``R`` are not constant.
    """

    process: LinearProcess
    curvature: Tensor
    slope: Tensor

    def __post_init__(self) -> None:
        for name in ("curvature", "slope"):
            object.__setattr__(self, name, getattr(self, name).detach().to(dtype=torch.float64, device="cpu"))
        dim = len(self.slope)
        if self.curvature.shape != (dim, dim) or self.process.dim not in (None, dim):
            raise InvalidInputError(
                f"a process of dimension {self.process.dim} cannot be tilted by a quadratic form of shape "
                f"{tuple(self.curvature.shape)} with a slope of shape {tuple(self.slope.shape)}."
            )
        conjugate = self._coordinates.conjugate_time()
        if conjugate is not None:
            raise InvalidInputError(
                f"the state cost repels too strongly for the horizon {number(self.horizon)}: from the conjugate time "
                f"{conjugate:.4g} on, KL + E∫V falls below any bound, since paths gain more far out than it costs to "
                "get there. Shorten the horizon, or weaken the repulsion (the conjugate time of "
                "V = −½(ω²/σ²)|x|² under Brownian motion is π/ω)."
            )

    @property
    def horizon(self) -> float:  # type: ignore[override]
        """The horizon of the process."""
        return self.process.horizon

    @property
    def dim(self) -> int:
        """The dimension of the cost."""
        return len(self.slope)

    def linear(self, t: Time) -> LinearMap:
        """Computes ``A − aΠ(t)``."""
        tilt, _ = self._tilt(clock(t))
        return self._coordinates.map(self._coordinates.linear - tilt)

    def offset(self, t: Time) -> Tensor:
        """Computes ``c − aπ(t)``."""
        _, slope = self._tilt(clock(t))
        return self._coordinates.vector(self._coordinates.offset - slope)

    def scale(self, t: Time) -> LinearMap:
        """Returns σ."""
        return self.process.scale(t)

    def transition(self, s: Time, t: Time) -> Transition:
        """Computes ``Q = (G + Π(t))⁻¹``, ``Φ = Q Mᵀ`` and ``k = Q (g − π(t))`` from the kernel of ``e^{−∫V} R``."""
        start, duration = interval(s, t, self.horizon)
        still = (duration == 0.0).reshape(-1)
        kernel = self._coordinates.kernel(torch.where(still, self.horizon, duration.reshape(-1)))
        tilt, slope = (part.reshape(-1, *part.shape[duration.ndim :]) for part in self._tilt(start + duration))
        covariance = torch.linalg.inv(kernel.end + tilt)
        covariance = 0.5 * (covariance + covariance.mT)
        one = torch.eye(covariance.shape[-1], dtype=torch.float64, device="cpu")
        matrices, vectors = still.reshape(-1, 1, 1, 1), still.reshape(-1, 1, 1)
        parts = (
            torch.where(matrices, one, covariance @ kernel.cross.mT),
            torch.where(vectors, 0.0, product(covariance, kernel.end_slope - slope)),
            torch.where(matrices, 0.0, covariance),
        )
        phi, offset, covariance = (part.reshape(*duration.shape, *part.shape[1:]) for part in parts)
        found = self._coordinates
        return Transition(found.map(phi), found.vector(offset), found.covariance(covariance))

    def potential(self, t: float) -> tuple[Tensor, Tensor, float]:
        """``Π, π, γ`` of ``−log φ(t, x) = ½xᵀΠx + π·x + γ``, with ``γ(T) = 0``.

        ``φ(t, x) = E_R[e^{−∫_t^T V − ½X_TᵀΠ_T X_T} | X_t = x]``.
        """
        found, moment = self._coordinates, clock(t)
        left = self.horizon - moment
        alike = found.multiplicity(self.dim)

        def rate(r: Tensor, _: Tensor) -> LinearMap:
            _, slope = self._tilt(r)
            return LinearMap((slope * (found.offset - 0.5 * slope)).sum((-2, -1)).unsqueeze(-1))

        driven = float(integrate(rate, moment, left, len(self._knots[0])).values)
        shrunk = float(self.transition(t, self.horizon).map.log_abs_det(self.dim))
        trace = float(found.linear.diagonal(dim1=-2, dim2=-1).sum()) * alike
        return *found.form(*self._tilt(moment), self.dim), driven * alike + 0.5 * (trace * float(left) - shrunk)

    @cached_property
    def _coordinates(self) -> NoiseCoordinates:
        return NoiseCoordinates.of(self.process, self.curvature, self.slope)

    @cached_property
    def _knots(self) -> tuple[Tensor, Tensor, Tensor]:
        """Times, and ``Π`` and ``π`` at each."""
        steps = self._coordinates.steps(self.horizon)
        times = torch.linspace(0.0, self.horizon, steps + 1, dtype=torch.float64, device="cpu")
        tilts, slopes = [self._end], [torch.zeros_like(self._coordinates.slope)]
        for _ in range(steps):
            step = torch.full((1,), -self.horizon / steps, dtype=torch.float64, device="cpu")
            tilt, slope = self._moved(step, tilts[-1], slopes[-1])
            tilts.append(tilt[0])
            slopes.append(slope[0])
        return times, torch.stack(tilts[::-1]), torch.stack(slopes[::-1])

    @cached_property
    def _end(self) -> Tensor:
        """``Π_T``: the positive part of the solution that lies half way between those that are infinite at an end.

        At ``T/2`` these are ``F`` and ``−G``; a larger ``Π_T`` than that of a solution has a solution too.
        """
        half = self._coordinates.kernel(torch.full((1,), 0.5 * self.horizon, dtype=torch.float64, device="cpu"))
        between = half.cross.mT @ torch.linalg.solve(0.5 * half.middle, half.cross) - half.end
        values, vectors = torch.linalg.eigh(0.5 * (between + between.mT)[0])
        size = float(torch.linalg.matrix_norm(half.end, 2).max())
        values = torch.where(values > 1e-12 * size, values, 0.0)
        return (vectors * values.unsqueeze(-2)) @ vectors.mT

    def _tilt(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """``Π`` and ``π`` at times of shape ``(...)``: one step from the next knot."""
        times, tilts, slopes = self._knots
        flat = t.reshape(-1).clamp(0.0, self.horizon)
        index = torch.searchsorted(times, flat)
        tilt, slope = self._moved(flat - times[index], tilts[index], slopes[index])
        return tilt.reshape(*t.shape, *tilt.shape[1:]), slope.reshape(*t.shape, *slope.shape[1:])

    def _moved(self, duration: Tensor, tilt: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
        """``Π`` and ``π`` after a short time, which may be negative."""
        one, two, driven, low, low_two, low_driven = self._coordinates.flow(duration)
        moved = torch.linalg.solve((one + two @ tilt).mT, (low + low_two @ tilt).mT)
        moved = 0.5 * (moved + moved.mT)
        return moved, product(low_two, slope) + low_driven - product(moved, product(two, slope) + driven)
