"""Doob transforms by mixtures of Gaussian weights, without sbridge.exact: a second route to it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sbridge.errors import InvalidInputError, UnsupportedError
from sbridge.laws import Gaussian, GaussianMixture, Law
from sbridge.processes import LinearProcess
from sbridge.processes.base import Time


@dataclass(frozen=True, eq=False)
class GaussianTilt:
    """A weight ``ψ(y) = Σ_k exp(c_k + η_kᵀ y − ½ yᵀ Λ_k y)``; ``g = −log ψ`` is the terminal cost that it stands for.

    The precisions Λ need not be positive: the quotient of two Gaussians is such a weight.

    Args:
        constants: ``c``, shape ``(K,)``.
        vectors: ``η``, shape ``(K, dim)``.
        precisions: ``Λ``, symmetric, shape ``(K, dim, dim)``.

    Raises:
        InvalidInputError: if the shapes do not fit.
    """

    constants: Tensor
    vectors: Tensor
    precisions: Tensor

    def __post_init__(self) -> None:
        count, dim = self.vectors.shape if self.vectors.ndim == 2 else (-1, -1)
        if self.constants.shape != (count,) or self.precisions.shape != (count, dim, dim):
            raise InvalidInputError(
                "a tilt needs constants (K,), vectors (K, dim) and precisions (K, dim, dim), got "
                f"{tuple(self.constants.shape)}, {tuple(self.vectors.shape)} and {tuple(self.precisions.shape)}."
            )

    @classmethod
    def of(cls, law: Law) -> GaussianTilt:
        """The density of a :class:`Gaussian` or a :class:`GaussianMixture`, in float64."""
        weights, means, covariances = _components(law)
        precisions = torch.linalg.inv(covariances)
        vectors = (precisions @ means.unsqueeze(-1)).squeeze(-1)
        volume = torch.linalg.slogdet(precisions).logabsdet - law.dim * math.log(2.0 * math.pi)
        return cls(weights.log() + 0.5 * (volume - (vectors * means).sum(1)), vectors, precisions)

    def over(self, law: Gaussian) -> GaussianTilt:
        """``ψ(y) / N(y; mean, covariance)``.

        As a tilt of a process that starts in a point, with ``law`` its law at ``T``, a normalised ``ψ`` is the law of
        ``X_T`` under the optimal control.
        """
        other = GaussianTilt.of(law)
        return GaussianTilt(
            self.constants - other.constants, self.vectors - other.vectors, self.precisions - other.precisions
        )

    @property
    def dim(self) -> int:
        """The dimension of ``y``."""
        return self.vectors.shape[1]

    def log_density(self, y: Tensor) -> Tensor:
        """``log ψ(y)``, shape ``(batch,)``."""
        constants, vectors, precisions = (one.to(y) for one in (self.constants, self.vectors, self.precisions))
        square = torch.einsum("bd,kde,be->bk", y, precisions, y)
        return torch.logsumexp(constants + y @ vectors.mT - 0.5 * square, 1)

    def cost(self, y: Tensor) -> Tensor:
        """``g = −log ψ(y)``, shape ``(batch,)``."""
        return -self.log_density(y)


@dataclass(frozen=True, eq=False)
class DoobControl:
    """The control that makes a linear process ``R`` the law ``ψ(X_T) R / φ(0, X_0)``: optimal for ``g = −log ψ`` alone.

    With ``Φ = Φ(T, t)``, ``Q = Q(T, t)``, ``m = m(T | t, x)`` and ``S_k = (I + Λ_k Q)⁻¹``::

        φ(t, x) = E_R[ψ(X_T) | X_t = x] = Σ_k φ_k,   ∇_m log φ_k = S_k (η_k − Λ_k m)
        log φ_k = c_k − ½ log det(I + Λ_k Q) + ½ [η_kᵀ Q S_k η_k + (2η_k − Λ_k m)ᵀ S_kᵀ m]
        u*(t, x) = σᵀ Φᵀ Σ_k (φ_k/φ) ∇_m log φ_k

    Regular on all of ``[0, T]``; for densities of a mixture, ``Λ = Σ⁻¹`` and ``∇_m log φ_k = (Σ_k + Q)⁻¹(μ_k − m)``.
    Computed in float64, returned like ``x``.

    Args:
        process: ``R``.
        tilt: ``ψ``.

    Raises:
        UnsupportedError: if the process is not linear.
        InvalidInputError: if dimensions differ, or ``E_R ψ(X_T)`` is infinite.
    """

    process: LinearProcess
    tilt: GaussianTilt

    def __post_init__(self) -> None:
        if not isinstance(self.process, LinearProcess):
            raise UnsupportedError(f"this Doob transform needs a linear process, got {type(self.process).__name__}.")
        if self.process.dim not in (None, self.tilt.dim):
            raise InvalidInputError(f"the process has dimension {self.process.dim}, the tilt {self.tilt.dim}.")
        root = self.process.transition(0.0, self.process.horizon).root.expanded(self.tilt.dim)
        inner = root.mT @ self.tilt.precisions.double().cpu() @ root
        if bool((torch.linalg.eigvalsh(0.5 * (inner + inner.mT)) <= -1.0).any()):
            raise InvalidInputError(
                "the expectation of this weight under the process is infinite: it grows faster than the transition "
                "density falls."
            )

    def __call__(self, t: Time, x: Tensor) -> Tensor:
        """``u*(t, x)``, shape ``(batch, dim)``."""
        if isinstance(t, Tensor) and t.ndim:
            found = torch.empty_like(x)
            for moment in t.unique():
                rows = (t == moment).to(x.device)
                found[rows] = self._at(float(moment), x[rows])[1].to(x)
            return found
        return self._at(float(t), x)[1].to(x)

    def log_potential(self, t: float, x: Tensor) -> Tensor:
        """``log φ(t, x)``, shape ``(batch,)``; ``−log φ(0, x)`` is the least cost from ``x``."""
        return self._at(t, x)[0].to(x.dtype)

    def _at(self, t: float, x: Tensor) -> tuple[Tensor, Tensor]:
        law, dim, tilt = self.process.transition(t, self.process.horizon), self.tilt.dim, self.tilt
        mean = law.mean(x.double())
        q = law.covariance.expanded(dim).to(mean)
        constants, vectors, precisions = (one.to(mean) for one in (tilt.constants, tilt.vectors, tilt.precisions))
        whole = torch.eye(dim, dtype=mean.dtype, device=mean.device) + precisions @ q
        # Rows: the vectors η, then the columns of Λ, each taken to S η and S Λ
        solved = torch.linalg.solve(whole, torch.cat([vectors.unsqueeze(-1), precisions], 2))
        pulls, bends = solved[..., 0], solved[..., 1:]
        gradients = pulls - torch.einsum("kde,be->bkd", bends, mean)
        constant = constants - 0.5 * torch.linalg.slogdet(whole).logabsdet + 0.5 * ((vectors @ q) * pulls).sum(1)
        exponents = constant + 0.5 * ((gradients + pulls) * mean.unsqueeze(1)).sum(2)
        gradient = torch.einsum("bk,bkd->bd", torch.softmax(exponents, 1), gradients)
        sigma = self.process.scale(t)
        return torch.logsumexp(exponents, 1), sigma.T.to(mean)(law.map.T.to(mean)(gradient))


def _components(law: Law) -> tuple[Tensor, Tensor, Tensor]:
    if isinstance(law, Gaussian):
        return law.mean.new_ones(1).double(), law.mean[None].double(), law.covariance[None].double()
    if isinstance(law, GaussianMixture):
        return law.weights.double(), law.means.double(), law.covariances.double()
    raise UnsupportedError(f"a tilt is made of a Gaussian or a GaussianMixture, got {type(law).__name__}.")
