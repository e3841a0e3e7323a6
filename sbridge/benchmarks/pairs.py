"""Pairs of ends whose Schrödinger bridge is known: plan, drift and conditional moments, in any dimension."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from sbridge.errors import InvalidInputError
from sbridge.exact import MixtureControl, MixtureKernel, MixturePotential
from sbridge.exact.gaussian import GaussianCoupling
from sbridge.laws import Gaussian, GaussianMixture
from sbridge.measures import Direction, Estimate, PathMeasure
from sbridge.problems.costs import Quadratic, quadratic_reference
from sbridge.processes import BrownianMotion, LinearProcess, OrnsteinUhlenbeck
from sbridge.random import Seed, derive, generator
from sbridge.solvers.gaussian import GaussianControl, GaussianKernel
from sbridge.time import TimeGrid

_COMPONENTS, _RADIUS, _EIGENVALUES = 5, 5.0, (0.5, 2.0)
_MOMENT_ROWS = 100_000
_VALUE_ROWS = 1_000_000


@dataclass(frozen=True)
class MixturePair:
    """``p_0 = N(0, I)``, Brownian reference with ``σ² = ε``, and ``p_1`` the end distribution of a mixture potential.

    The potential is the density of five equally likely Gaussians: means uniform on the sphere of radius 5,
    covariances with random axes and eigenvalues log-uniform in [½, 2].

    Args:
        dim: dimension.
        epsilon: ε, with ``T = 1``.
        seed: of means and covariances.
    """

    dim: int
    epsilon: float
    seed: int = 0

    def __post_init__(self) -> None:
        if self.dim < 1 or not (self.epsilon > 0 and math.isfinite(self.epsilon)):
            raise InvalidInputError(f"a positive dim and epsilon are needed, got {self.dim} and {self.epsilon}.")

    @property
    def reference(self) -> LinearProcess:
        """The reference, Brownian motion with ``σ = √ε``."""
        return BrownianMotion(math.sqrt(self.epsilon))

    @property
    def source(self) -> Gaussian:
        """``N(0, I)``."""
        return Gaussian(torch.zeros(self.dim, dtype=torch.float64), torch.eye(self.dim, dtype=torch.float64))

    @cached_property
    def potential(self) -> MixturePotential:
        """The potential that makes the pair."""
        draws = generator(derive(self.seed, "mixture pair", self.dim))
        normal = torch.randn(_COMPONENTS, self.dim, generator=draws, dtype=torch.float64)
        means = _RADIUS * normal / normal.norm(dim=1, keepdim=True)
        square = torch.randn(_COMPONENTS, self.dim, self.dim, generator=draws, dtype=torch.float64)
        axes, upper = torch.linalg.qr(square)
        axes = axes * upper.diagonal(dim1=1, dim2=2).sign().unsqueeze(1)  # uniform on the orthogonal group
        low, high = (math.log(value) for value in _EIGENVALUES)
        uniform = torch.rand(_COMPONENTS, self.dim, generator=draws, dtype=torch.float64)
        covariances = (axes * (low + (high - low) * uniform).exp().unsqueeze(1)) @ axes.mT
        weights = torch.full((_COMPONENTS,), 1.0 / _COMPONENTS, dtype=torch.float64)
        return MixturePotential.of(
            self.reference, GaussianMixture(weights, means, 0.5 * (covariances + covariances.mT))
        )

    @property
    def truth(self) -> PathMeasure:
        """The exact bridge, forward."""
        control, kernel = MixtureControl(self.potential), MixtureKernel(self.potential)
        return PathMeasure(self.reference, control, self.source, end_kernel=kernel)

    def sample(self, n: int, *, seed: Seed) -> tuple[Tensor, Tensor]:
        """Draws ``n`` independent rows of either end, unpaired, in float32."""
        draws = generator(seed)
        x0, other = (self.source.sample(n, draws).float() for _ in range(2))
        return x0, self.truth.transport(other, seed=draws)

    @cached_property
    def value(self) -> Estimate:
        """``E_{p_1} g − E_{p_0} log c = KL(P* ‖ R)`` over a million draws of each end."""
        draws = generator(derive(self.seed, "value"))
        x, other = (self.source.sample(_VALUE_ROWS, draws) for _ in range(2))
        above = Estimate.of(self.potential(self.truth.transport(other, seed=draws)))
        below = Estimate.of(self.potential.log_normaliser(x))
        error = math.hypot(above.standard_error, below.standard_error)
        return Estimate(above.value - below.value, error, _VALUE_ROWS)

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Computes mean ``(n, dim)`` and covariance ``(n, dim, dim)`` of ``X_1`` given ``X_0 = x``, float64."""
        plan = self.potential.conditional(x.double())
        return plan.mean(), plan.covariance()

    @cached_property
    def end_moments(self) -> tuple[Tensor, Tensor]:
        """Mean and covariance of ``p_1``: exact conditional moments, averaged over 100 000 draws of ``X_0``."""
        rows = self.source.sample(_MOMENT_ROWS, generator(derive(self.seed, "end moments")))
        mean, square = torch.zeros(self.dim, dtype=torch.float64), torch.zeros(self.dim, self.dim, dtype=torch.float64)
        for part in rows.split(max(1, 2**22 // (self.dim * self.potential.components))):
            plan = self.potential.conditional(part)
            weights, centres = plan.weights, plan.means
            mean += torch.einsum("nk,nkd->d", weights, centres) / len(rows)
            square += torch.einsum("k,kde->de", weights.sum(0), plan.covariances[0]) / len(rows)
            for k in range(self.potential.components):
                square += (weights[:, k : k + 1] * centres[:, k]).mT @ centres[:, k] / len(rows)
        return mean, square - torch.outer(mean, mean)


@dataclass(frozen=True)
class StateCostPair(MixturePair):
    """The ends and the plan of a mixture pair of another ε, under Brownian motion with ``V = ½ω²|x|²/ε``.

    Tilted by ``e^{−∫V}``, Brownian motion is an Ornstein–Uhlenbeck process of rate ω, whose plans are those of
    Brownian motion with ``ε_eff = ε sinh(ω)/ω``: its kernel differs by a function of either end. The same ends under
    the same plan are therefore the plain ``MixturePair(dim, ε_eff, seed)``.

    Args:
        omega: ω.
    """

    omega: float = 1.5

    @property
    def brownian(self) -> BrownianMotion:
        """The reference without the cost."""
        return BrownianMotion(math.sqrt(self.epsilon))

    @property
    def state_cost(self) -> Quadratic:
        """``V``."""
        return Quadratic.isotropic(0.5 * self.omega**2 / self.epsilon, self.dim)

    @property
    def reference(self) -> LinearProcess:
        """The reference that contains the cost."""
        return quadratic_reference(self.brownian, self.state_cost)

    @property
    def plain(self) -> MixturePair:
        """The pair of the same ends and plan without a cost."""
        return MixturePair(self.dim, self.epsilon * math.sinh(self.omega) / self.omega, self.seed)

    @cached_property
    def potential(self) -> MixturePotential:
        """The potential of the plain pair, relative to the kernel of the other reference."""
        plain, whole = self.plain.potential, self.reference.transition(0.0, 1.0)
        # log kernels: −½y²/ε_eff and −½y²/Q beside the same xᵀy, and functions of x
        excess = float(whole.precision.values) - 1.0 / self.plain.epsilon
        eye = torch.eye(self.dim, dtype=torch.float64)
        return MixturePotential(self.reference, plain.logits, plain.shifts, plain.precisions - excess * eye)


@dataclass(frozen=True, eq=False)
class GaussianPair:
    """Gaussian ends under a linear reference: ``N(0, I)`` and a Gaussian with random axes.

    Args:
        reference: Brownian, Ornstein–Uhlenbeck, …
        dim: dimension.
        seed: of mean and covariance of the target.
    """

    reference: LinearProcess
    dim: int
    seed: int = 0

    @cached_property
    def coupling(self) -> GaussianCoupling:
        """The bridge in closed form."""
        draws = generator(derive(self.seed, "gaussian pair", self.dim))
        mean = torch.randn(self.dim, generator=draws, dtype=torch.float64)
        axes, _ = torch.linalg.qr(torch.randn(self.dim, self.dim, generator=draws, dtype=torch.float64))
        low, high = (math.log(value) for value in _EIGENVALUES)
        sizes = (low + (high - low) * torch.rand(self.dim, generator=draws, dtype=torch.float64)).exp()
        zero, identity = torch.zeros(self.dim, dtype=torch.float64), torch.eye(self.dim, dtype=torch.float64)
        return GaussianCoupling(zero, identity, mean, (axes * sizes) @ axes.mT, self.reference)

    @property
    def source(self) -> Gaussian:
        """``N(0, I)``."""
        return Gaussian(self.coupling.m0, self.coupling.A)

    @property
    def target(self) -> Gaussian:
        """The other end."""
        return Gaussian(self.coupling.mT, self.coupling.B)

    @property
    def truth(self) -> PathMeasure:
        """The exact bridge, forward."""
        control = GaussianControl(self.coupling, Direction.FORWARD)
        kernel = GaussianKernel(self.coupling, Direction.FORWARD)
        return PathMeasure(self.reference, control, self.source, grid=TimeGrid.uniform(100), end_kernel=kernel)

    @property
    def value(self) -> Estimate:
        """``V*`` in closed form."""
        return Estimate(self.coupling.value, 0.0, 1)

    def sample(self, n: int, *, seed: Seed) -> tuple[Tensor, Tensor]:
        """Draws ``n`` independent rows of either end, unpaired, in float32."""
        draws = generator(seed)
        return self.source.sample(n, draws).float(), self.target.sample(n, draws).float()

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Computes mean ``(n, dim)`` and covariance ``(n, dim, dim)`` of ``X_T`` given ``X_0 = x``, float64."""
        mean, covariance = self.coupling.end_given_start(x.double())
        return mean, covariance.expand(len(x), self.dim, self.dim)

    @property
    def end_moments(self) -> tuple[Tensor, Tensor]:
        """Mean and covariance of the target."""
        return self.coupling.mT, self.coupling.B


def turning_reference(dim: int, epsilon: float, seed: int = 0) -> OrnsteinUhlenbeck:
    """``dX = −A X dt + σ dW`` with ``A = ½I + K``, ``K`` antisymmetric, and a triangular σ with ``tr σσᵀ = ε dim``.

    ``A`` and ``σσᵀ`` do not commute and ``A`` is not symmetric: no change of coordinates makes it a Brownian motion.
    """
    draws = generator(derive(seed, "turning reference", dim))
    square = torch.randn(dim, dim, generator=draws, dtype=torch.float64) / math.sqrt(dim)
    root = (
        torch.eye(dim, dtype=torch.float64) + 0.3 * torch.randn(dim, dim, generator=draws, dtype=torch.float64).tril()
    )
    root = root * math.sqrt(epsilon * dim) / root.norm()
    rate = 0.5 * torch.eye(dim, dtype=torch.float64) + 0.5 * (square - square.mT)
    return OrnsteinUhlenbeck(rate=rate, sigma=root)
