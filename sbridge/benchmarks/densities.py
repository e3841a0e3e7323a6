"""Unnormalised densities with known normalisers, for measuring samplers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sbridge.errors import UnsupportedError
from sbridge.laws import Density
from sbridge.random import Seed, derive, generator

LogDensity = Callable[[Tensor], Tensor]
Sampler = Callable[[int, torch.Generator], Tensor]

# Launch temperature in °F and whether an O-ring of a field joint was damaged, for the 23 flights of the Space Shuttle
# before that of January 1986 whose boosters were recovered, in order of flight. A public record: Report of the
# Presidential Commission on the Space Shuttle Challenger Accident (1986), vol. 1, ch. VI; Dalal, Fowlkes & Hoadley
# 1989, J. Am. Stat. Assoc. 84, 945, Table 1.
TEMPERATURES = (66, 70, 69, 68, 67, 72, 73, 70, 57, 63, 70, 78, 67, 53, 67, 75, 70, 81, 76, 79, 75, 76, 58)
DAMAGED = (0, 1, 0, 0, 0, 0, 0, 0, 1, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, 0, 1)
_LAUNCH = 31.0  # °F, on 28 January 1986
_PRIOR = 5.0  # standard deviation of intercept and slope


@dataclass(frozen=True, eq=False)
class Target:
    """The density ``e^{−E} / Z`` with ``Z`` known.

    Args:
        name: in tables.
        law: ``−E``, and the dimension.
        log_normaliser: ``log Z``, exact.
        observables: functions ``(batch, dim) → (batch, M)`` whose means tell whether the modes have their weights.
        expectations: their exact means, shape ``(M,)``.
        scale: a length beyond which there is next to no mass, from the origin: what a reference process has to reach.
        sampler: exact draws in float64, where there are any.
        mixture: the density itself, if it is a Gaussian mixture.
    """

    name: str
    law: Density
    log_normaliser: float
    observables: LogDensity
    expectations: Tensor
    scale: float
    sampler: Sampler | None = None
    mixture: IsotropicMixture | None = None

    @property
    def dim(self) -> int:
        """The dimension."""
        return self.law.dim

    def energy(self, x: Tensor) -> Tensor:
        """Computes ``E(x)``, shape ``(batch,)``."""
        return -self.law.log_density(x)

    def sample(self, n: int, *, seed: Seed) -> Tensor:
        """Draws ``n`` exact draws, float64.

        Raises:
            UnsupportedError: if there is no exact sampler.
        """
        if self.sampler is None:
            raise UnsupportedError(f"{self.name} has no exact sampler; its log normaliser and expectations are exact.")
        return self.sampler(n, generator(seed))

    def mean_observables(self, x: Tensor, weights: Tensor | None = None) -> Tensor:
        """Averages the observables over rows, with normalised weights ``(n,)`` if given; shape ``(M,)``, float64."""
        values = self.observables(x).double()
        return values.mean(0) if weights is None else weights.double() @ values


@dataclass(frozen=True, eq=False)
class IsotropicMixture:
    """The log density ``log Σ_k N(x; μ_k, v I) / K``, with responsibilities.

    Args:
        means: ``(K, dim)``.
        variance: ``v``.
    """

    means: Tensor
    variance: float

    def __call__(self, x: Tensor) -> Tensor:
        """Computes the log density, shape ``(batch,)``."""
        return torch.logsumexp(self._exponents(x), 1)

    def responsibilities(self, x: Tensor) -> Tensor:
        """Computes posterior probabilities of components, ``(batch, K)``: under the mixture their mean is ``1/K``."""
        return torch.softmax(self._exponents(x), 1)

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """Draws ``n`` draws."""
        count, dim = self.means.shape
        which = torch.randint(count, (n,), generator=generator)
        noise = torch.randn(n, dim, generator=generator, dtype=torch.float64)
        return self.means[which] + math.sqrt(self.variance) * noise

    def _exponents(self, x: Tensor) -> Tensor:
        count, dim = self.means.shape
        squares = (x.unsqueeze(1) - self.means.to(x)).square().sum(2)
        constant = 0.5 * dim * math.log(2.0 * math.pi * self.variance) + math.log(count)
        return -squares / (2.0 * self.variance) - constant


def nine_modes(log_normaliser: float = 0.0) -> Target:
    """Nine Gaussians of variance 0.3, means on ``{−5, 0, 5}²``: the modes of Zhang & Chen 2022 (arXiv:2111.15141)."""
    places = torch.tensor([-5.0, 0.0, 5.0], dtype=torch.float64)
    return _mixture("nine modes", IsotropicMixture(torch.cartesian_prod(places, places), 0.3), 8.0, log_normaliser)


def forty_modes(seed: int = 0, log_normaliser: float = 0.0) -> Target:
    """Forty Gaussians with means uniform on ``[−40, 40]²`` and standard deviation ``log(1 + e)``.

    The recipe of Midgley et al. 2023 (arXiv:2208.01893), with means drawn here from ``seed``.
    """
    draws = torch.rand(40, 2, generator=generator(derive(seed, "means")), dtype=torch.float64)
    mixture = IsotropicMixture(80.0 * draws - 40.0, math.log1p(math.e) ** 2)
    return _mixture("forty modes", mixture, 45.0, log_normaliser)


def funnel(dim: int = 10, sigma: float = 3.0) -> Target:
    """The funnel ``x_1 ~ N(0, σ²)``, ``x_i | x_1 ~ N(0, e^{x_1})`` (Neal 2003, Ann. Stat. 31, 705); ``Z = 1``.

    Observables: whether the first coordinate is below −σ, and whether it is above σ.
    """

    def log_density(x: Tensor) -> Tensor:
        first, rest = x[:, 0], x[:, 1:]
        top = -0.5 * (first / sigma).square() - 0.5 * math.log(2.0 * math.pi * sigma**2)
        below = -0.5 * rest.square().sum(1) * (-first).exp()
        return top + below - 0.5 * (dim - 1) * (first + math.log(2.0 * math.pi))

    def tails(x: Tensor) -> Tensor:
        return torch.stack([x[:, 0] < -sigma, x[:, 0] > sigma], 1).to(x)

    def draw(n: int, generator: torch.Generator) -> Tensor:
        noise = torch.randn(n, dim, generator=generator, dtype=torch.float64)
        first = sigma * noise[:, :1]
        return torch.cat([first, (0.5 * first).exp() * noise[:, 1:]], 1)

    tail = 0.5 * math.erfc(1.0 / math.sqrt(2.0))
    shares = torch.tensor([tail, tail], dtype=torch.float64)
    return Target("funnel", Density(log_density, dim), 0.0, tails, shares, 2.0 * sigma, draw)


def double_wells(dim: int = 5, wells: int = 5, separation: float = 4.0) -> Target:
    """Computes ``E = Σ_{i ≤ w} (x_i² − δ)² + ½ Σ_{i > w} x_i²`` (Richter & Berner 2024, arXiv:2307.01198).

    It has ``2^w`` modes. Observables: whether each of the first ``w`` coordinates is positive.
    """
    line = _Line(lambda x: (x.square() - separation).square(), math.sqrt(separation) + 3.0)

    def log_density(x: Tensor) -> Tensor:
        inner, outer = x[:, :wells], x[:, wells:]
        return -(inner.square() - separation).square().sum(1) - 0.5 * outer.square().sum(1)

    def draw(n: int, generator: torch.Generator) -> Tensor:
        inner = line.draw((n, wells), generator)
        return torch.cat([inner, torch.randn(n, dim - wells, generator=generator, dtype=torch.float64)], 1)

    log_normaliser = wells * line.log_normaliser + 0.5 * (dim - wells) * math.log(2.0 * math.pi)
    shares = torch.full((wells,), 0.5, dtype=torch.float64)
    name = f"double wells d={dim}"
    reach = math.sqrt(separation) + 1.0
    return Target(name, Density(log_density, dim), log_normaliser, _positive(wells), shares, reach, draw)


def many_well(pairs: int = 5) -> Target:
    """Computes ``E = Σ (x_{2i−1}⁴ − 6 x_{2i−1}² − ½ x_{2i−1} + ½ x_{2i}²)``: wells of unequal weight (Noé et al. 2019).

    Observables: whether each odd coordinate is positive.
    """
    line = _Line(lambda x: x.pow(4) - 6.0 * x.square() - 0.5 * x, 5.0)

    def log_density(x: Tensor) -> Tensor:
        odd, even = x[:, 0::2], x[:, 1::2]
        return (6.0 * odd.square() + 0.5 * odd - odd.pow(4) - 0.5 * even.square()).sum(1)

    def draw(n: int, generator: torch.Generator) -> Tensor:
        odd = line.draw((n, pairs), generator)
        return torch.stack([odd, torch.randn(n, pairs, generator=generator, dtype=torch.float64)], 2).reshape(n, -1)

    def positive(x: Tensor) -> Tensor:
        return (x[:, 0::2] > 0).to(x)

    log_normaliser = pairs * (line.log_normaliser + 0.5 * math.log(2.0 * math.pi))
    shares = torch.full((pairs,), line.positive, dtype=torch.float64)
    law = Density(log_density, 2 * pairs)
    return Target(f"many well d={2 * pairs}", law, log_normaliser, positive, shares, 3.0, draw)


def challenger() -> Target:
    """Bayesian logistic regression of O-ring damage on temperature: prior ``N(0, 5²)`` for intercept and slope.

    ``log Z`` is the log evidence, by quadrature on the plane; temperature is standardised. The observable is the
    probability of damage at 31 °F, the temperature at launch of 28 January 1986, with its posterior mean.
    """
    degrees = torch.tensor(TEMPERATURES, dtype=torch.float64)
    centre, spread = float(degrees.mean()), float(degrees.std(correction=0))
    z, damaged = (degrees - centre) / spread, torch.tensor(DAMAGED, dtype=torch.float64)

    def log_density(x: Tensor) -> Tensor:
        logits = x[:, :1] + x[:, 1:] * z.to(x)
        fit = (damaged.to(x) * logits - torch.nn.functional.softplus(logits)).sum(1)
        prior = -0.5 * (x / _PRIOR).square().sum(1) - math.log(2.0 * math.pi * _PRIOR**2)
        return fit + prior

    def at_launch(x: Tensor) -> Tensor:
        return torch.sigmoid(x[:, :1] + x[:, 1:] * ((_LAUNCH - centre) / spread))

    # Smooth and negligible at the edges: sums on a uniform grid are exact to rounding.
    line = torch.linspace(-12.0, 12.0, 481, dtype=torch.float64)
    plane = torch.cartesian_prod(line, line)
    logs = log_density(plane)
    log_normaliser = float(torch.logsumexp(logs, 0)) + 2.0 * math.log(float(line[1] - line[0]))
    mean = torch.softmax(logs, 0) @ at_launch(plane)
    return Target("Challenger regression", Density(log_density, 2), log_normaliser, at_launch, mean, 6.0)


def targets() -> tuple[Target, ...]:
    """Returns the targets of the benchmark."""
    return nine_modes(), forty_modes(), funnel(), double_wells(), many_well(), challenger()


def _mixture(name: str, mixture: IsotropicMixture, scale: float, log_normaliser: float) -> Target:
    count, dim = mixture.means.shape

    def log_density(x: Tensor) -> Tensor:
        return mixture(x) + log_normaliser

    shares = torch.full((count,), 1.0 / count, dtype=torch.float64)
    law = Density(log_density, dim)
    return Target(name, law, log_normaliser, mixture.responsibilities, shares, scale, mixture.draw, mixture)


def _positive(count: int) -> LogDensity:
    def positive(x: Tensor) -> Tensor:
        return (x[:, :count] > 0).to(x)

    return positive


class _Line:
    """A density ``e^{−E}`` on ``[−half, half]``, tabulated.

    Sums on the uniform grid are exact to rounding for the normaliser; draws invert the piecewise linear distribution
    function, whose error is that of the grid, 1e-4 of the interval.
    """

    _POINTS = 20_001

    def __init__(self, energy: LogDensity, half: float) -> None:
        self.grid = torch.linspace(-half, half, self._POINTS, dtype=torch.float64)
        logs = -energy(self.grid)
        width = float(self.grid[1] - self.grid[0])
        self.log_normaliser = float(torch.logsumexp(logs, 0)) + math.log(width)
        masses = torch.softmax(logs, 0)
        middle = self._POINTS // 2
        self.positive = float(masses[middle + 1 :].sum() + 0.5 * masses[middle])
        self.cumulative = (masses.cumsum(0) - 0.5 * masses).numpy()

    def draw(self, shape: tuple[int, int], generator: torch.Generator) -> Tensor:
        uniform = torch.rand(shape, generator=generator, dtype=torch.float64)
        return torch.from_numpy(np.interp(uniform.numpy(), self.cumulative, self.grid.numpy()))
