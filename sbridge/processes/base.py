"""Reference processes ``dX = b(t, X) dt + σ(t) dW`` on ``[0, T]``.

:class:`Process` is any such equation; :class:`LinearProcess` is one with
``b(t, x) = A(t) x + c(t)``, whose transitions, pinned bridges and gradients of the log transition
density are closed forms. Both keep their numbers in float64 and cast to the dtype and device of
the states that they act on. Times are floats, or float64 tensors of shape ``()`` or ``(batch,)``.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import final

import torch
from torch import Tensor

from sbridge.errors import InvalidInputError, UnsupportedError, number, shown
from sbridge.linear import LinearMap
from sbridge.time import snapped

Time = float | Tensor


class Process(ABC):
    """The process ``dX = b(t, X) dt + σ(t) dW``; σ does not depend on the state.

    Attributes:
        horizon: ``T > 0``.
    """

    horizon: float

    @property
    @abstractmethod
    def dim(self) -> int | None:
        """The dimension fixed by its coefficients, or ``None`` if any dimension is allowed."""

    @abstractmethod
    def drift(self, t: Time, x: Tensor) -> Tensor:
        """Computes ``b(t, x)``, shape ``(batch, dim)``."""

    @abstractmethod
    def scale(self, t: Time) -> LinearMap:
        """Returns ``σ(t)`` in float64."""

    @final
    def inverse_scale(self, t: Time) -> LinearMap:
        """Returns ``σ(t)⁻¹``; raises UnsupportedError if the noise does not enter every coordinate."""
        scale = self.scale(t)
        if scale.singular:
            raise UnsupportedError(
                f"this needs noise in every coordinate, and that of {type(self).__name__} enters velocities alone: its "
                "σ has no inverse. Controls u = σᵀ∇log φ, simulation and transitions need none."
            )
        return scale.inverse()


@dataclass(frozen=True, eq=False)
class Transition:
    """The Gaussian transition ``X_t | X_s = x ~ N(Φ x + k, Q)``.

    Args:
        map: ``Φ(t, s)``.
        offset: ``k(t, s)``, of shape ``(..., 1 | dim)``.
        covariance: ``Q(t, s)``.
    """

    map: LinearMap
    offset: Tensor
    covariance: LinearMap

    def mean(self, x: Tensor) -> Tensor:
        """Computes ``m(t | s, x) = Φ x + k``."""
        return self.map.to(x)(x) + repeat_per_row(self.offset, len(x)).to(x)

    def whitened(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Computes ``Q^{−½} m(t | s, x)`` and ``Q^{−½} y`` for rows at ``s`` and ``t``, in units of the noise.

        Computed in float64, and returned in the dtype of the rows.
        """
        moved, far = self.mean(x.double()), y.double()
        white = self.root.inverse().to(far)
        return white(moved).to(x), white(far).to(y)

    @cached_property
    def root(self) -> LinearMap:
        """``L`` with ``L Lᵀ = Q``."""
        return self.covariance.cholesky()

    @cached_property
    def precision(self) -> LinearMap:
        """``Q⁻¹``."""
        return self.covariance.inverse()


class LinearProcess(Process):
    """The linear process ``dX = (A(t) X + c(t)) dt + σ(t) dW``.

    Subclasses define ``linear``, ``offset``, ``scale`` and ``transition``; everything else follows. Results for times
    of shape ``(batch,)`` have that leading dimension; results for single times have none.
    """

    @abstractmethod
    def linear(self, t: Time) -> LinearMap:
        """Computes ``A(t)``."""

    @abstractmethod
    def offset(self, t: Time) -> Tensor:
        """Computes ``c(t)``, shape ``(..., 1 | dim)``."""

    @abstractmethod
    def transition(self, s: Time, t: Time) -> Transition:
        """Returns the distribution of ``X_t`` given ``X_s``, ``0 ≤ s ≤ t ≤ T``."""

    @final
    def drift(self, t: Time, x: Tensor) -> Tensor:
        """Computes ``A(t) x + c(t)``."""
        return self.linear(t).to(x)(x) + repeat_per_row(self.offset(t), len(x)).to(x)

    @final
    def pinned(self, t: Time, *, start: float = 0.0, end: float | None = None) -> Pinned:
        """Returns the distribution of ``X_t`` given the states at ``start`` and ``end``, by default both ends."""
        t, end = check_time(t, self.horizon), self.horizon if end is None else end
        return Pinned(self.transition(start, t), self.transition(t, end), self.transition(start, end))

    @final
    def guiding_term(self, t: Time, x: Tensor, x_end: Tensor) -> Tensor:
        """Gives ``∇_x log R(X_T = x_end | X_t = x) = Φᵀ Q⁻¹ (x_end − m(T | t, x))``, ``t < T``; computed in float64."""
        ahead = self.transition(t, self.horizon)
        gap = x_end.double() - ahead.mean(x.double())
        return (ahead.map.T @ ahead.precision).to(gap)(gap).to(x)

    @final
    def conditional_score(self, t: Time, x: Tensor, x_start: Tensor) -> Tensor:
        """``∇_x log R(X_t = x | X_0 = x_start) = −Q⁻¹ (x − m(t | 0, x_start))``, ``t > 0``; computed in float64."""
        behind = self.transition(0.0, t)
        gap = x.double() - behind.mean(x_start.double())
        return -behind.precision.to(gap)(gap).to(x)

    @final
    def log_transition(self, s: Time, x: Tensor, t: Time, y: Tensor) -> Tensor:
        """Computes ``log R(X_t = y | X_s = x)``, shape ``(batch,)``, ``s < t``, in float64."""
        law = self.transition(s, t)
        gap = y.double() - law.mean(x.double())
        whitened = law.root.inverse().to(gap)(gap)
        dim = x.shape[1]
        constant = repeat_per_row(law.root.log_abs_det(dim), len(x), 0) + 0.5 * dim * math.log(2 * math.pi)
        return (-0.5 * whitened.square().sum(1) - constant.to(gap)).to(x)


@dataclass(frozen=True, eq=False)
class Pinned:
    """The distribution ``X_t | X_0, X_T`` of a linear process, accurate near both ends and over long horizons.

    With ``Φ = Φ(T, t)``, ``Q = Q(T, t)``, ``Q_t = Q(t, 0)``, ``Q_T = Q(T, 0)`` and the residual
    ``r = X_T − m(T | 0, X_0)``::

        K = Q_t Φᵀ Q_T⁻¹                        mean = (I − KΦ) m(t | 0, X_0) + K (X_T − k(T, t))
        Γ = (I − KΦ) Q_t (I − KΦ)ᵀ + K Q Kᵀ     X_t = mean + Γ^½ ζ,  ζ ~ N(0, I)

    (conditioning of a Gaussian vector; ``Γ = Q_t − K Φ Q_t = (Q_t⁻¹ + Φᵀ Q⁻¹ Φ)⁻¹``, written as a sum of
    positive terms, which also holds where Φ is close to singular, as it is for a fast mean reversion).
    ``I − KΦ = Φ⁻¹ Q Q_T⁻¹ Φ`` is a difference of nearly equal numbers where the process grows, and the product is not;
    the product is inaccurate where the process contracts, and the difference is not.
    """

    behind: Transition
    ahead: Transition
    whole: Transition

    @cached_property
    def gain(self) -> LinearMap:
        """``K = Q_t Φᵀ Q_T⁻¹``."""
        return self.behind.covariance @ self.ahead.map.T @ self.whole.precision

    @cached_property
    def kept(self) -> LinearMap:
        """``I − KΦ``: the part of ``m(t | 0, X_0)`` that stays."""
        ahead, rest = self.ahead.map, self.ahead.covariance @ self.whole.precision
        if not ahead.dense and (ahead.dim is None or not rest.dense):
            return rest  # both commute
        one = LinearMap(torch.ones_like(self.whole.offset[..., :1]))
        difference = (one + -(self.gain @ ahead)).values
        grows = ahead.log_abs_det(difference.shape[-1]) > 0.0
        if not bool(grows.any()):
            return LinearMap(difference, dense=True)
        product = (ahead.inverse() @ rest @ ahead).values
        return LinearMap(torch.where(grows[..., None, None], product, difference), dense=True)

    @cached_property
    def stay(self) -> LinearMap:
        """``(I − KΦ) Φ(t, 0)``, which multiplies ``X_0`` in the mean."""
        return self.kept @ self.behind.map

    @cached_property
    def shift(self) -> Tensor:
        """``(I − KΦ) k(t, 0) − K k(T, t)``, which is added in the mean, shape ``(..., 1 | dim)``."""
        return applied(self.kept, self.behind.offset) - applied(self.gain, self.ahead.offset)

    @cached_property
    def covariance(self) -> LinearMap:
        """``Γ``."""
        gain, kept, ahead = self.gain, self.kept, self.ahead
        gamma = kept @ self.behind.covariance @ kept.T + gain @ ahead.covariance @ gain.T
        return LinearMap(0.5 * (gamma.values + gamma.values.mT), dense=True) if gamma.dense else gamma

    @cached_property
    def root(self) -> LinearMap:
        """``Γ^½``."""
        return self.covariance.cholesky()

    def mean(self, x_start: Tensor, x_end: Tensor) -> Tensor:
        """Computes ``E[X_t | X_0, X_T]``."""
        offset = repeat_per_row(self.shift, len(x_start)).to(x_start)
        return self.stay.to(x_start)(x_start) + self.gain.to(x_start)(x_end) + offset

    def sample(self, x_start: Tensor, x_end: Tensor, noise: Tensor) -> Tensor:
        """Computes ``mean + Γ^½ noise``."""
        return self.mean(x_start, x_end) + self.root.to(noise)(noise)

    @cached_property
    def residual_gain(self) -> LinearMap:
        """``Φᵀ Q_T⁻¹``, which acts on the residual in both gradients."""
        return self.ahead.map.T @ self.whole.precision

    @cached_property
    def noise_gain_forward(self) -> LinearMap:
        """``Φᵀ Q⁻¹ Φ Γ^½``, ``t < T``."""
        return self.ahead.map.T @ self.ahead.precision @ self.ahead.map @ self.root

    @cached_property
    def noise_gain_backward(self) -> LinearMap:
        """``Q_t⁻¹ Γ^½``, ``t > 0``."""
        return self.behind.precision @ self.root

    def _steady_part(self, x_start: Tensor, x_end: Tensor) -> Tensor:
        """Computes ``Φᵀ Q_T⁻¹ r`` in float64: ``m(T | 0, X_0)`` of a growing process leaves the range of float32."""
        residual = x_end.double() - self.whole.mean(x_start.double())
        return self.residual_gain.to(residual)(residual).to(x_start)

    def guiding_term(self, x_start: Tensor, x_end: Tensor, noise: Tensor) -> Tensor:
        """Computes ``∇_x log R(X_T | X_t = x)`` at ``x = sample(x_start, x_end, noise)``, for ``t < T``.

        ``Φᵀ(Q_T⁻¹ r − Q⁻¹ Φ Γ^½ ζ)``: the difference ``X_T − m(T | t, X_t)`` is never formed, so float32
        holds up to ``t → T``.
        """
        return self._steady_part(x_start, x_end) - self.noise_gain_forward.to(noise)(noise)

    def conditional_score(self, x_start: Tensor, x_end: Tensor, noise: Tensor) -> Tensor:
        """Computes ``∇_x log R(X_t = x | X_0)`` at the same ``x``: ``−(Φᵀ Q_T⁻¹ r + Q_t⁻¹ Γ^½ ζ)``, ``t > 0``."""
        return -(self._steady_part(x_start, x_end) + self.noise_gain_backward.to(noise)(noise))


def repeat_per_row(values: Tensor, rows: int, single: int = 1) -> Tensor:
    """Repeats values that are given once per time, so that each row has one.

    Values with ``single`` axes belong to one time and are returned unchanged.
    """
    return values if values.ndim == single else values.repeat_interleave(rows // len(values), 0)


def applied(one: LinearMap, vector: Tensor) -> Tensor:
    """Computes ``A v`` for one vector per time, ``(..., 1 | dim)``."""
    if not one.dense:
        return one.values * vector
    return (one.values @ vector.expand(*vector.shape[:-1], one.values.shape[-1]).unsqueeze(-1)).squeeze(-1)


def affine(matrix: Tensor, offset: Tensor, x: Tensor) -> Tensor:
    """Computes ``A x + c`` row by row, in the dtype and on the device of ``x``.

    Args:
        matrix: ``A``, shape ``(dim, dim)``, or one for each row, ``(batch, dim, dim)``.
        offset: ``c``, shape ``(dim,)``, or likewise.
        x: states, shape ``(batch, dim)``.
    """
    if matrix.ndim == 2:
        return x @ matrix.mT.to(x) + offset.to(x)
    return (matrix.to(x) @ x.unsqueeze(-1)).squeeze(-1) + repeat_per_row(offset, len(x)).to(x)


def check_horizon(horizon: float | int) -> float:
    """Returns ``horizon`` as a float; raises InvalidInputError unless it is positive and finite."""
    if not (isinstance(horizon, (int, float)) and math.isfinite(horizon) and horizon > 0):
        raise InvalidInputError(f"horizon must be a positive number, got {shown(horizon)}.")
    return float(horizon)


def check_time(t: Time, horizon: float) -> Time:
    """Returns ``t``, rounded to an end of ``[0, horizon]``; raises InvalidInputError if it is outside."""
    low, high = (float(t.detach().min()), float(t.detach().max())) if isinstance(t, Tensor) else (t, t)
    if low >= 0.0 and high <= horizon:
        return t
    if not (snapped(low, (0.0, horizon)) >= 0.0 and snapped(high, (0.0, horizon)) <= horizon):
        raise InvalidInputError(
            f"time must lie in [0, {number(horizon)}], got {number(low)}"
            + (f" … {number(high)}." if high > low else ".")
        )
    return t.clamp(0.0, horizon) if isinstance(t, Tensor) else min(max(t, 0.0), horizon)


def as_time(t: Time) -> Tensor:
    """Returns ``t`` in float64 on the CPU, like coefficients, with a trailing axis: shape ``(..., 1)``."""
    return torch.as_tensor(t, dtype=torch.float64, device="cpu").unsqueeze(-1)
