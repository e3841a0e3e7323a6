"""The Schrödinger bridge between two Gaussians under any linear reference, in closed form."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from sbridge.errors import InvalidInputError, UnsupportedError
from sbridge.linear import LinearMap
from sbridge.processes.base import LinearProcess, Pinned, Time
from sbridge.storage.registry import register


@register
@dataclass(frozen=True, eq=False)
class GaussianCoupling:
    """The bridge from ``N(m0, A)`` at 0 to ``N(mT, B)`` at T that is closest to a linear process R.

    Only ``Φ = Φ(T, 0)``, ``k`` and ``Q = Q(T, 0)`` of the reference shape the static plan. With roots
    ``A = L_A L_Aᵀ``, ``B = L_B L_Bᵀ`` and the singular values of ``L_Bᵀ Q⁻¹ Φ L_A = U diag(n) Vᵀ``, the
    optimality condition (the off-diagonal block of the joint precision is ``−ΦᵀQ⁻¹``) becomes one quadratic
    equation per canonical pair, solved by::

        y = 2 / (1 + √(1 + 4n²))        ρ = n y      (canonical correlations; 1 − ρ² = y)
        C = Cov(X_0, X_T) = L_A V diag(ρ) Uᵀ L_Bᵀ
        Cov(X_T | X_0) = L_B U diag(y) Uᵀ L_Bᵀ       Cov(X_0 | X_T) = L_A V diag(y) Vᵀ L_Aᵀ

    No matrix is inverted that may be singular (as Φ of a fast mean reversion is, to rounding), and there is no
    cancellation. For a Brownian reference it is the formula of Bunne et al. 2023 (arXiv:2202.05722, Thm. 3) and
    Janati et al. 2020 (arXiv:2006.02572). Numbers are float64; times are floats or tensors ``()`` or
    ``(batch,)``, and what depends on time has their shape in front.

    Args:
        m0: mean at 0, ``(dim,)``.
        A: covariance at 0, ``(dim, dim)``, positive definite.
        mT: mean at T, ``(dim,)``.
        B: covariance at T, ``(dim, dim)``, positive definite.
        process: the reference R.

    Raises:
        UnsupportedError: if the process is not linear.
        InvalidInputError: if shapes do not fit, or a covariance is not symmetric positive definite.
    """

    m0: Tensor
    A: Tensor
    mT: Tensor
    B: Tensor
    process: LinearProcess

    def __post_init__(self) -> None:
        if not isinstance(self.process, LinearProcess):
            raise UnsupportedError(
                f"a Gaussian bridge in closed form needs a LinearProcess, got {type(self.process).__name__}."
            )
        for name in ("m0", "A", "mT", "B"):
            value = getattr(self, name).detach().to(dtype=torch.float64, device="cpu")
            object.__setattr__(self, name, value)
        dim = self.m0.shape[0] if self.m0.ndim == 1 else -1
        shapes = [tuple(value.shape) for value in (self.m0, self.A, self.mT, self.B)]
        if shapes != [(dim,), (dim, dim), (dim,), (dim, dim)] or self.process.dim not in (None, dim):
            raise InvalidInputError(
                "means (dim,), covariances (dim, dim) and a process of the same dimension are needed, got "
                f"{', '.join(map(str, shapes))} and a process of dimension {self.process.dim}."
            )
        for name, value in (("A", self.A), ("B", self.B)):
            symmetric = torch.allclose(value, value.mT, rtol=1e-5, atol=1e-6 * float(value.abs().max()))
            if not symmetric or int(torch.linalg.cholesky_ex(value).info):
                raise InvalidInputError(f"covariance {name} must be symmetric and positive definite.")
            object.__setattr__(self, name, 0.5 * (value + value.mT))

    @property
    def dim(self) -> int:
        """The dimension of the states."""
        return self.m0.shape[0]

    @cached_property
    def coupling(self) -> Tensor:
        """The cross covariance ``C = Cov(X_0, X_T)``, shape ``(dim, dim)``."""
        static = self._static
        return (static.root0 @ static.v * static.rho) @ (static.rootT @ static.u).mT

    @cached_property
    def end_covariance(self) -> Tensor:
        """The conditional covariance ``Cov(X_T | X_0)``, shape ``(dim, dim)``."""
        side = self._static.rootT @ self._static.u
        return side * self._static.y @ side.mT

    @cached_property
    def start_covariance(self) -> Tensor:
        """The conditional covariance ``Cov(X_0 | X_T)``, shape ``(dim, dim)``."""
        side = self._static.root0 @ self._static.v
        return side * self._static.y @ side.mT

    def end_given_start(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns mean ``(batch, dim)`` and covariance ``(dim, dim)`` of ``X_T | X_0 = x``, in the dtype of ``x``."""
        mean = self.mT.to(x) + (x - self.m0.to(x)) @ self._forward_regression.mT.to(x)
        return mean, self.end_covariance.to(x)

    def start_given_end(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns mean ``(batch, dim)`` and covariance ``(dim, dim)`` of ``X_0 | X_T = x``, in the dtype of ``x``."""
        mean = self.m0.to(x) + (x - self.mT.to(x)) @ self._backward_regression.mT.to(x)
        return mean, self.start_covariance.to(x)

    def marginal(self, t: Time) -> tuple[Tensor, Tensor]:
        """Returns mean ``(..., dim)`` and covariance ``(..., dim, dim)`` of ``X_t``: pinned bridges under the plan."""
        return self._marginal(self.process.pinned(t))

    def forward_gain(self, t: Time) -> tuple[Tensor, Tensor]:
        """Returns the forward control ``u*(t, x) = G x + g``: ``G`` is ``(..., dim, dim)``, ``g`` is ``(..., dim)``.

        ``u* = σᵀΦᵀ(Q_T⁻¹ r̄ − (I + ΛQ)⁻¹ Λ Φ (x − m_t))`` with ``Φ = Φ(T, t)``, ``Q = Q(T, t)``,
        ``r̄ = m_T − m(T | 0, m_0)`` and ``Λ = Cov(X_T | X_0)⁻¹ − Q_T⁻¹``: regular on all of ``[0, T]``.
        """
        return self.marginal_and_gain(t)[1]

    def marginal_and_gain(self, t: Time) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Returns :meth:`marginal` and :meth:`forward_gain` at the cost of one."""
        pinned = self.process.pinned(t)
        matrix, steady = self._forward_around_mean(t, pinned)
        marginal = self._marginal(pinned)
        return marginal, (matrix, steady - _apply(matrix, marginal[0]))

    def backward_gain(self, t: Time) -> tuple[Tensor, Tensor]:
        """Returns the backward control ``û*(t, x) = G x + g`` in the same form, at bridge time ``t``.

        ``û* = σᵀ∇log p_t − u*``: both terms are regular on ``[0, T]``.
        """
        pinned = self.process.pinned(t)
        mean, covariance = self._marginal(pinned)
        matrix, steady = self._forward_around_mean(t, pinned)
        score = -torch.linalg.solve(covariance, self._full(self.process.scale(t))).mT
        return score - matrix, _apply(matrix - score, mean) - steady

    @cached_property
    def value(self) -> float:
        """Computes ``V* = min KL(P ‖ R)`` in nats, R started at ``N(m0, A)``: ``½ E∫|u*|² dt``.

        Computed as the mean over ``X_0`` of the divergence of ``X_T | X_0`` under the plan from that under R.
        """
        static = self._static
        volume = -torch.linalg.slogdet(static.precision).logabsdet - 2.0 * static.rootT.diagonal().log().sum()
        return float(0.5 * (self.mean_square_residual - self.dim + volume - static.y.log().sum()))

    @cached_property
    def mean_square_residual(self) -> float:
        """``E (X_T − m)ᵀ Q⁻¹ (X_T − m)`` of the plan, with the mean ``m(T | 0, X_0)`` and ``Q`` of the reference.

        ``dim`` if the plan is that of the reference itself.
        """
        static = self._static
        precision, shift = static.precision, self._forward_regression - static.phi
        around_mean = precision @ (shift @ self.A @ shift.mT + self.end_covariance)
        return float(static.residual @ precision @ static.residual + around_mean.trace())

    @cached_property
    def _static(self) -> _Static:
        whole = self.process.transition(0.0, self.process.horizon)
        precision, phi = self._full(whole.precision), self._full(whole.map)
        root0, rootT = torch.linalg.cholesky(self.A), torch.linalg.cholesky(self.B)
        u, n, vt = torch.linalg.svd(rootT.mT @ precision @ phi @ root0)
        y = 2.0 / (1.0 + (1.0 + 4.0 * n.square()).sqrt())
        residual = self.mT - phi @ self.m0 - whole.offset
        return _Static(phi, precision, residual, root0, rootT, u, vt.mT, n * y, y)

    @cached_property
    def _forward_regression(self) -> Tensor:
        """Returns ``Cᵀ A⁻¹``."""
        return torch.linalg.solve(self.A, self.coupling).mT

    @cached_property
    def _backward_regression(self) -> Tensor:
        """Returns ``C B⁻¹``."""
        return torch.linalg.solve(self.B, self.coupling.mT).mT

    def _marginal(self, pinned: Pinned) -> tuple[Tensor, Tensor]:
        full = self._full
        gain = full(pinned.gain)
        stay = full(pinned.stay)
        cross = stay @ self.coupling @ gain.mT
        covariance = stay @ self.A @ stay.mT + cross + cross.mT + gain @ self.B @ gain.mT + full(pinned.covariance)
        mean = _apply(stay, self.m0) + _apply(gain, self.mT) + pinned.shift
        return mean, 0.5 * (covariance + covariance.mT)

    def _forward_around_mean(self, t: Time, pinned: Pinned) -> tuple[Tensor, Tensor]:
        """Returns ``G`` and ``u*(t, m_t)`` of ``u* = u*(t, m_t) + G (x − m_t)``."""
        static, precision = self._static, self._static.precision
        phi = self._full(pinned.ahead.map)
        pull = (phi @ self._full(self.process.scale(t))).mT
        side = torch.linalg.solve_triangular(static.rootT.mT, static.u, upper=True)
        end = side / static.y @ side.mT  # Cov(X_T | X_0)⁻¹
        # I + ΛQ without the difference in Λ, which cancels where the plan is close to the reference
        behind = phi @ self._full(pinned.behind.covariance) @ phi.mT
        inner = precision @ behind + end @ self._full(pinned.ahead.covariance)
        # Beyond the range of float64 the matrix is singular on some processors; callers refuse NaN.
        solved, failed = torch.linalg.solve_ex(inner, (end - precision) @ phi)
        matrix = -pull @ torch.where((failed == 0)[..., None, None], solved, math.nan)
        return matrix, _apply(pull @ precision, static.residual)

    def _full(self, one: LinearMap) -> Tensor:
        return one.expanded(self.dim)


@dataclass(frozen=True, eq=False)
class _Static:
    """Quantities of the plan; letters as in :class:`GaussianCoupling`, ``residual`` is ``r̄``."""

    phi: Tensor
    precision: Tensor
    residual: Tensor
    root0: Tensor
    rootT: Tensor
    u: Tensor
    v: Tensor
    rho: Tensor
    y: Tensor


def _apply(matrices: Tensor, vectors: Tensor) -> Tensor:
    """Computes ``M v``, for ``vectors`` of shape ``(dim,)`` or with the leading dimensions of ``matrices``."""
    return (matrices @ vectors.unsqueeze(-1)).squeeze(-1)
