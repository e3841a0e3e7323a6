"""The plan between two Gaussian ends that may change, in closed form."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from sbridge.exact.gaussian import GaussianCoupling
from sbridge.laws import Gaussian
from sbridge.problems.ends import SoftEnds
from sbridge.processes import LinearProcess


@dataclass(frozen=True, eq=False)
class SoftGaussianCoupling:
    """``min KL(P ‖ R) + λ₀ KL(P_0 ‖ p_0) + λ_T KL(P_T ‖ p_T)`` between Gaussians, under a linear reference.

    The potentials are quadratic, so the plan is Gaussian, with joint precision ``[[X, −K], [−Kᵀ, Y]]``. With
    ``τ = λ/(1 + λ)``, the source ``N(a, A)``, the target ``N(b, B)``, and ``Φ``, ``Q`` of the reference over the
    horizon, ``K = ΦᵀQ⁻¹`` and::

        X = M + τ₀ K Y⁻¹ Kᵀ        M = (1 − τ₀) ΦᵀQ⁻¹Φ + A⁻¹
        Y = N + τ_T Kᵀ X⁻¹ K       N = (1 − τ_T) Q⁻¹ + (w + τ_T(1 − w)) B⁻¹

    In the singular vectors of ``M^{−½} K N^{−½}``, with singular values ``h`` and ``δ = τ_T − τ₀``, these are the
    scalars ``x² − (1 − δh²)x − τ_T h² = 0`` and ``y = 1 + τ_T h²/x``. Nothing is inverted that may be singular. For
    equal penalties, a Brownian reference and ``w = 1`` it is the formula of Janati et al. 2020 (arXiv:2006.02572).

    Args:
        source, target: ``N(a, A)`` and ``N(b, B)``.
        process: ``R``, started at the source.
        penalties: ``λ₀`` and ``λ_T``.
        power: ``w``, 0 or 1. The reference is ``R p_T(X_T)^w``. With ``w = 1`` it is the product of the ends times the
            kernel, as for samples, whose target density is not known. For a hard target both are the same.
    """

    source: Gaussian
    target: Gaussian
    process: LinearProcess
    penalties: SoftEnds
    power: float = 0.0

    @cached_property
    def ends(self) -> tuple[Gaussian, Gaussian]:
        """The ends ``P_0`` and ``P_T`` of the answer, normalised; a hard end is returned as it is."""
        (mean0, cov0), (meanT, covT) = self._moments
        start, end = self.source, self.target
        if not math.isinf(self.penalties.source):
            start = Gaussian(mean0.to(start.mean), cov0.to(start.covariance))
        if not math.isinf(self.penalties.target):
            end = Gaussian(meanT.to(end.mean), covT.to(end.covariance))
        return start, end

    @cached_property
    def coupling(self) -> GaussianCoupling:
        """The balanced bridge between :attr:`ends`, which is the answer over probabilities."""
        start, end = self.ends
        return GaussianCoupling(start.mean, start.covariance, end.mean, end.covariance, self.process)

    @cached_property
    def value(self) -> float:
        """The least value ``D`` over probabilities, in nats."""
        start, end = self.ends
        total = self.coupling.value
        if not math.isinf(self.penalties.source):
            total += (1.0 + self.penalties.source) * divergence(start, self.source)
        if not math.isinf(self.penalties.target):
            total += self.penalties.target * divergence(end, self.target)
        return total - self.power * mean_log_density(self.target, end)

    @cached_property
    def mass(self) -> float:
        """The mass of the answer over measures, ``e^{−D/(1 + λ₀ + λ_T)}`` for ends of mass 1."""
        return math.exp(-self.value / (1.0 + self.penalties.source + self.penalties.target))

    @cached_property
    def _moments(self) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        dim, whole = self.source.dim, self.process.transition(0.0, self.process.horizon)
        precision, phi = whole.precision.expanded(dim), whole.map.expanded(dim)
        a, b = self.source.mean.double().cpu(), self.target.mean.double().cpu()
        inverse_a, inverse_b = (torch.linalg.inv(one.covariance.double().cpu()) for one in (self.source, self.target))
        tau0, tauT = (_damping(one) for one in (self.penalties.source, self.penalties.target))
        k = phi.mT @ precision
        root_m = torch.linalg.cholesky((1.0 - tau0) * k @ phi + inverse_a)
        root_n = torch.linalg.cholesky((1.0 - tauT) * precision + (self.power + tauT * (1.0 - self.power)) * inverse_b)
        half = torch.linalg.solve_triangular(root_m, k, upper=False)
        u, h, vt = torch.linalg.svd(torch.linalg.solve_triangular(root_n, half.mT, upper=False).mT)
        square, q = h.square(), 1.0 - (tauT - tau0) * h.square()
        root = (q.square() + 4.0 * tauT * square).sqrt()
        x = torch.where(q >= 0.0, 0.5 * (q + root), 2.0 * tauT * square / (root - q).clamp(min=1e-300))
        y = 1.0 + tauT * square / x
        # X⁻¹ = left/x leftᵀ, Y⁻¹ = right/y rightᵀ and K = root_m u h vᵀ root_nᵀ.
        left = torch.linalg.solve_triangular(root_m.mT, u, upper=True)
        right = torch.linalg.solve_triangular(root_n.mT, vt.mT, upper=True)
        cov0 = left / (1.0 - (1.0 - tau0) * square / y) @ left.mT
        covT = right / (1.0 - (1.0 - tauT) * square / x) @ right.mT
        # About the means of the ends, where hard ends leave nothing to add.
        gap, eye = phi @ a + whole.offset - b, torch.eye(dim, dtype=torch.float64, device="cpu")
        onto, back = tau0 * k @ (right / y @ right.mT), tauT * k.mT @ (left / x @ left.mT)
        system = torch.cat([torch.cat([eye, onto], 1), torch.cat([back, eye], 1)])
        slopes = torch.linalg.solve(system, torch.cat([(tau0 - 1.0) * k @ gap, (1.0 - tauT) * precision @ gap]))
        xi, eta = slopes[:dim], slopes[dim:]
        mean0 = a + cov0 @ (xi + k @ (right / y @ right.mT) @ eta)
        meanT = b + covT @ (eta + k.mT @ (left / x @ left.mT) @ xi)
        return (mean0, 0.5 * (cov0 + cov0.mT)), (meanT, 0.5 * (covT + covT.mT))


def divergence(p: Gaussian, q: Gaussian) -> float:
    """Computes ``KL(p ‖ q)`` in nats."""
    (m, s), (n, t) = ((one.mean.double().cpu(), one.covariance.double().cpu()) for one in (p, q))
    ratio, gap = torch.linalg.solve(t, s), n - m
    log_volume = torch.linalg.slogdet(t).logabsdet - torch.linalg.slogdet(s).logabsdet
    return float(0.5 * (ratio.trace() - len(m) + gap @ torch.linalg.solve(t, gap) + log_volume))


def mean_log_density(of: Gaussian, under: Gaussian) -> float:
    """Computes ``E log of(X)`` for ``X`` distributed as ``under``."""
    volume = torch.linalg.slogdet(2.0 * math.pi * under.covariance.double().cpu()).logabsdet
    return -divergence(under, of) - float(0.5 * volume) - 0.5 * under.dim


def _damping(penalty: float) -> float:
    """Returns ``λ/(1 + λ)``."""
    return 1.0 if math.isinf(penalty) else penalty / (1.0 + penalty)
