"""Settings in which identities are checked: a noising process, data, a score to check, and numbers of draws."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from sbridge.controls import MLP
from sbridge.controls.base import Time
from sbridge.diffusion.conversions import ControlScore, Score
from sbridge.diffusion.exact import ExactScore
from sbridge.diffusion.reverse import end_distribution, moments
from sbridge.diffusion.training import ScoreMatching
from sbridge.errors import InvalidInputError, check_at_least
from sbridge.fitting import solve
from sbridge.laws import GaussianMixture, Law, Samples
from sbridge.measures import PathMeasure, Paths
from sbridge.modes import standard_modes
from sbridge.problems import BridgeProblem
from sbridge.processes import LinearProcess, OrnsteinUhlenbeck, VarianceExploding, VariancePreserving
from sbridge.random import derive, generator
from sbridge.time import TimeGrid
from sbridge.training import Optimisation


@dataclass(frozen=True, eq=False)
class Setting:
    """A setting in which identities are checked.

    Args:
        name: for tables, such as ``"mixture d=2, VP"``.
        process: the noising process.
        data: the distribution at ``t = 0``.
        seed: of all draws.
        samples: number of paths or points in a Monte Carlo mean.
        steps: number of steps of the coarse time grid; what depends on the grid is also computed with twice as many.
        start_time: ``s_min``, the lower limit of integrals over time, as a fraction of the horizon.
        network: a trained score, if there is one; it is checked in addition to the fixed perturbation.
    """

    name: str
    process: LinearProcess
    data: Law
    seed: int = 0
    samples: int = 4000
    steps: int = 100
    start_time: float = 1e-2
    network: Score | None = None

    def __post_init__(self) -> None:
        if not 0.0 < self.start_time < 1.0:
            raise InvalidInputError(f"start_time is a fraction of the horizon in (0, 1), got {self.start_time}.")
        check_at_least(self, 2, "samples", "steps")

    @property
    def dim(self) -> int:
        """The dimension of the data."""
        return self.data.dim

    def has_density(self) -> bool:
        """Whether the data distribution has a density (a mixture) rather than being a set of points."""
        return not isinstance(self.data, Samples)

    def has_density_on_line(self) -> bool:
        """Whether the data are one-dimensional and have a density."""
        return self.has_density() and self.dim == 1

    @property
    def horizon(self) -> float:
        """The duration ``T``."""
        return self.process.horizon

    @property
    def s_min(self) -> float:
        """The lower limit of time integrals."""
        return self.start_time * self.horizon

    @cached_property
    def exact(self) -> ExactScore:
        """The true score."""
        return ExactScore(self.process, self.data)

    @cached_property
    def perturbed(self) -> Perturbed:
        """The true score plus a fixed smooth field, sized for a gap of about one nat."""
        return Perturbed.sized(self)

    def scores(self) -> Iterator[tuple[str, Score]]:
        """Yields the scores to check: the fixed perturbation, and the trained network if there is one."""
        yield "fixed perturbation", self.perturbed
        if self.network is not None:
            yield "trained network", self.network

    def grid(self, refinement: int = 1) -> TimeGrid:
        """Makes the grid ``0``, then ``refinement · steps`` steps from ``s_min`` to ``T``, equal in :attr:`_clock`."""
        fractions, clock = self._clock
        wanted = torch.linspace(0.0, 1.0, refinement * self.steps + 1, dtype=torch.float64)[1:-1]
        knots = np.interp(wanted.numpy(), clock.numpy(), fractions.numpy())
        return TimeGrid((0.0, self.start_time, *knots.tolist(), 1.0))

    @cached_property
    def _clock(self) -> tuple[Tensor, Tensor]:
        """Fractions of the horizon, and a clock from 0 to 1 that runs fast where scores change fast.

        The clock is the mean of two clocks: ``log t``, because scores change fast near the data, and
        ``∫ tr σσᵀ/tr Cov(X_t) dt``, the rate at which noise replaces the state.
        """
        fractions = self.start_time ** torch.linspace(1.0, 0.0, 2049, dtype=torch.float64)
        fractions[-1] = 1.0
        middle = self.horizon * 0.5 * (fractions[1:] + fractions[:-1])
        step = self.process.transition(0.0, middle)
        width = self.variance * step.map.mean_square(self.dim) + step.root.mean_square(self.dim)
        noise = self.process.scale(middle).mean_square(self.dim) / width * fractions.diff()
        rates = fractions.log().diff() / -math.log(self.start_time) + noise / noise.sum()
        clock = torch.cat([rates.new_zeros(1), rates.cumsum(0)])
        return fractions, clock / clock[-1]

    @cached_property
    def variance(self) -> float:
        """The variance of the data per coordinate."""
        mean, covariance = moments(self.data)
        variance = float(covariance.diagonal().mean())
        if not variance > 1e-24 * float(mean.square().sum()):
            raise InvalidInputError(
                "all samples of the data are equal, so there is only noise to check. Give at least two different ones."
            )
        return variance

    def noising(self, refinement: int = 1, *, stream: str = "noising") -> Paths:
        """Simulates paths of the noising process from the data, exact at the knots of :meth:`grid`."""
        measure = PathMeasure(self.process, None, self.data, grid=self.grid(refinement))
        return measure.sample(self.samples, seed=self.seed_of(stream))

    def again(self) -> Setting:
        """Returns the same setting with other, independent draws, four times as many."""
        return replace(self, seed=derive(self.seed, "again"), samples=4 * self.samples)

    def trained(self, updates: int = 300) -> Setting:
        """Returns the same setting with a small network, trained for a few seconds when it is first called."""
        return replace(self, network=TrainedScore(self, updates))

    def seed_of(self, *stream: str | int) -> int:
        """Returns the seed of a named stream of draws."""
        return derive(self.seed, self.name, *stream)


@dataclass(frozen=True, eq=False)
class TrainedScore:
    """A small network, trained by denoising score matching when it is first called."""

    setting: Setting
    updates: int

    def __call__(self, t: Time, x: Tensor) -> Tensor:
        """Computes the learned score."""
        return self.score(t, x)

    @cached_property
    def score(self) -> Score:
        """The network."""
        setting, process = self.setting, self.setting.process
        solver = ScoreMatching(updates=self.updates, network=MLP(64, 2), optimisation=Optimisation(learning_rate=3e-3))
        problem = BridgeProblem(setting.data, end_distribution(process, setting.data), process)
        with torch.enable_grad():  # the first caller may have switched gradients off
            control = solve(problem, solver, seed=setting.seed_of("network")).backward.control
        if control is None:
            raise InvalidInputError("training returned no control; this is an error in sbridge.")
        return ControlScore(process, control)


@dataclass(frozen=True, eq=False)
class Perturbed:
    """The score ``s(t, x) + size · (W sin(V x/ℓ_t) + c)/ℓ_t`` with fixed matrices: smooth, bounded, not a gradient.

    ``ℓ_t`` is the root mean square width of ``ρ_t``, so that the perturbation has the same relative size at all times.
    """

    exact: ExactScore
    size: float
    inner: Tensor
    outer: Tensor
    shift: Tensor
    variance: float

    @classmethod
    def sized(cls, setting: Setting, gap: float = 1.0) -> Perturbed:
        """Sets the size so that ``½∫ E|σᵀ δ|² ds`` is about ``gap`` nats."""
        g, dim = generator(derive(20_260, "perturbation", setting.dim)), setting.dim
        rows = setting.data.sample(512, generator(setting.seed_of("perturbation"))).double()
        inner = torch.randn(dim, dim, generator=g, dtype=torch.float64) / math.sqrt(dim)
        outer = torch.randn(dim, dim, generator=g, dtype=torch.float64) / math.sqrt(dim)
        shift = 0.5 * torch.randn(dim, generator=g, dtype=torch.float64)
        unit = cls(setting.exact, 1.0, inner, outer, shift, setting.variance)
        total, times = 0.0, [setting.horizon * f for f in setting.grid().fractions[1:]]
        for before, after in pairwise(times):
            step = setting.process.transition(0.0, after)
            noise = torch.randn(rows.shape, generator=g, dtype=torch.float64)
            moved = unit.offset(after, step.mean(rows) + step.root(noise))
            total += (after - before) * 0.5 * float(setting.process.scale(after).T(moved).square().sum(1).mean())
        return cls(setting.exact, math.sqrt(gap / total), inner, outer, shift, setting.variance)

    def __call__(self, t: Time, x: Tensor) -> Tensor:
        """Computes the perturbed score."""
        return self.exact(t, x) + self.size * self.offset(t, x)

    def offset(self, t: Time, x: Tensor) -> Tensor:
        """Computes the added field, for size 1."""
        step = self.exact.process.transition(0.0, t)
        dim = x.shape[1]
        square = self.variance * step.map.mean_square(dim) + step.root.mean_square(dim)
        width = square.sqrt().reshape(-1, 1).to(x)
        field = torch.sin((x / width) @ self.inner.to(x).mT) @ self.outer.to(x).mT
        return (field + self.shift.to(x)) / width


def mixture(dim: int, components: int = 4, *, seed: int = 7) -> GaussianMixture:
    """Makes a fixed Gaussian mixture: means of length two, randomly rotated axes of widths .3 to .7, uneven weights."""
    g = generator(derive(seed, "mixture", dim))
    means = torch.randn(components, dim, generator=g, dtype=torch.float64)
    means = 2.0 * means / means.norm(dim=1, keepdim=True)
    turns = torch.linalg.qr(torch.randn(components, dim, dim, generator=g, dtype=torch.float64)).Q
    widths = 0.3 + 0.4 * torch.rand(components, dim, generator=g, dtype=torch.float64)
    weights = torch.arange(1, components + 1, dtype=torch.float64)
    return GaussianMixture(weights / weights.sum(), means, turns @ torch.diag_embed(widths.square()) @ turns.mT)


PROCESSES: dict[str, LinearProcess] = {
    "OU": OrnsteinUhlenbeck(rate=1.0, sigma=math.sqrt(2.0), horizon=1.5),
    "VP": VariancePreserving(),
    "VE": VarianceExploding(0.1, 5.0),
}


@standard_modes()
def standard_settings(*, seed: int = 0, samples: int = 4000) -> list[Setting]:
    """Makes Gaussian mixtures in d = 1, 2, 8 under Ornstein–Uhlenbeck, variance-preserving and -exploding noise.

    All three processes on the line, and each once more in two or eight dimensions. The last setting has matrix
    coefficients: an asymmetric rate, dense noise, a mean, columns of unequal scale, and another horizon.
    """
    found = [
        Setting(f"mixture d={dim}, {name}", PROCESSES[name], mixture(dim), seed=seed, samples=samples)
        for dim, name in ((1, "OU"), (1, "VP"), (1, "VE"), (2, "VP"), (8, "OU"), (8, "VE"))
    ]
    return [*found, Setting("columns d=2, matrix OU", matrix_process(), columns(), seed=seed, samples=samples)]


def matrix_process() -> OrnsteinUhlenbeck:
    """Makes a process whose formulas need every transpose, offset and order of factors."""
    rate = torch.tensor([[1.2, 0.5], [-0.9, 0.8]], dtype=torch.float64)
    sigma = torch.tensor([[1.4, 0.0], [1.6, 2.5]], dtype=torch.float64)
    return OrnsteinUhlenbeck(rate, sigma, torch.tensor([0.7, -1.0], dtype=torch.float64), horizon=0.8)


def columns() -> GaussianMixture:
    """Makes the mixture in two dimensions with columns of unequal scale and a mean far from zero."""
    law, scale = mixture(2), torch.tensor([0.8, 2.0], dtype=torch.float64)
    means = scale * law.means + torch.tensor([1.0, -2.0], dtype=torch.float64)
    return GaussianMixture(law.weights, means, scale[:, None] * law.covariances * scale)
