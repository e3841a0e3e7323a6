"""Entropy production: its closed form for a rotating process, fluctuation theorems, and the second law of noising."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor

from sbridge.controls.base import Time
from sbridge.diffusion.exact import ExactScore
from sbridge.diffusion.reverse import moments
from sbridge.functionals import PathValues, dissipation, entropy_production, housekeeping_heat
from sbridge.identities.base import Kind, Outcome, identity
from sbridge.identities.settings import Setting
from sbridge.identities.tools.monte_carlo import noising, width
from sbridge.laws import Gaussian
from sbridge.measures import Estimate, PathMeasure, Paths
from sbridge.processes import OrnsteinUhlenbeck
from sbridge.random import derive, generator
from sbridge.time import TimeGrid

reversal_identity = partial(identity, group="reversal")
_STEPS = 80
_LARGEST = 8
_PRODUCTION = 0.5


@dataclass(frozen=True, eq=False)
class Rotation:
    """``dX = −(D + J) P⁻¹ (X − m) dt + σ dW``, ``D = ½σσᵀ``, stationary in ``N(m, P)`` for any antisymmetric ``J``.

    The stationary current velocity is ``−J P⁻¹ (x − m)``, and the rate of entropy production ``tr(P⁻¹ Jᵀ D⁻¹ J)``.

    Args:
        law: ``N(m, P)``, with the moments of the data.
        sigma: σ, a matrix, such that noise over the horizon is as wide as the data.
        turn: ``J``, such that the rotation produces half a nat over the horizon.
        horizon: ``T``.
    """

    law: Gaussian
    sigma: Tensor
    turn: Tensor
    horizon: float

    @classmethod
    def of(cls, setting: Setting) -> Rotation:
        """Makes the process of a setting, with fixed random matrices."""
        g, dim = generator(derive(20_262, "rotation", setting.dim)), setting.dim
        mean, covariance = (one.double() for one in moments(setting.data))
        sigma, turn = (torch.randn(dim, dim, generator=g, dtype=torch.float64) for _ in range(2))
        sigma = torch.eye(dim, dtype=torch.float64) + 0.3 * sigma / math.sqrt(dim)
        sigma = sigma * width(setting) / math.sqrt(setting.horizon)
        one = cls(Gaussian(mean, covariance), sigma, turn - turn.mT, setting.horizon)
        return cls(one.law, sigma, one.turn * math.sqrt(_PRODUCTION / one.production), setting.horizon)

    @property
    def production(self) -> float:
        """The entropy production over the horizon."""
        spread = 0.5 * self.sigma @ self.sigma.mT
        inner = torch.linalg.solve(self.law.covariance, self.turn.mT @ torch.linalg.solve(spread, self.turn))
        return self.horizon * float(inner.trace())

    @cached_property
    def process(self) -> OrnsteinUhlenbeck:
        """The process."""
        rate = torch.linalg.solve(self.law.covariance, 0.5 * self.sigma @ self.sigma.mT - self.turn).mT
        return OrnsteinUhlenbeck(rate, self.sigma, mean=self.law.mean, horizon=self.horizon)

    def paths(self, setting: Setting, start: Gaussian, stream: str) -> Paths:
        """Draws four times as many paths as samples of the setting, by exact transitions."""
        measure = PathMeasure(self.process, None, start, grid=TimeGrid.uniform(_STEPS))
        return measure.sample(4 * setting.samples, seed=setting.seed_of("rotation", stream))

    def log_density(self, t: Time, x: Tensor) -> Tensor:
        """Computes the stationary log density."""
        return self.law.log_density(x)

    def velocity(self, t: Time, x: Tensor) -> Tensor:
        """Computes the stationary current velocity."""
        return -torch.linalg.solve(self.law.covariance, (x - self.law.mean).mT).mT @ self.turn.mT


def _turns(setting: Setting) -> bool:
    return 2 <= setting.dim <= _LARGEST


@reversal_identity(
    statement="E log dP/dP̃ = T tr(P⁻¹ Jᵀ D⁻¹ J) for the stationary process of drift −(D + J) P⁻¹ (x − m)",
    equation="Seifert 2012, §2",
    kind=Kind.EQUALITY,
    left="log ratio of path and reversed path along stationary paths; the current velocity along the same paths",
    right="closed form",
    applies=_turns,
)
def entropy_production_of_rotation(setting: Setting) -> Iterator[Outcome]:
    """Checks the mean entropy production of a process that is not in detailed balance."""
    world = Rotation.of(setting)
    paths = world.paths(setting, world.law, "stationary")
    routes = {
        "log ratio": entropy_production(paths, None, world.log_density),
        "current velocity": dissipation(paths, world.velocity),
    }
    for note, made in routes.items():
        found = made.estimate
        yield Outcome(found.value, world.production, found.standard_error, made.allowance, note)


@reversal_identity(
    statement="E e^{−ΔS} = 1 for the entropy production and for its parts; P(ΔS < 0) = E[e^{−ΔS}; ΔS > 0]",
    equation="Seifert 2005; Speck & Seifert 2005; Hatano & Sasa 2001",
    kind=Kind.EQUALITY,
    left="log ratios of kernels along paths of exact transitions; exact at any step size",
    right="1, and for the last the mean over paths of positive entropy production",
    applies=_turns,
)
def fluctuation_theorems(setting: Setting) -> Iterator[Outcome]:
    """Checks the fluctuation theorems for paths that start out of the stationary distribution, and stationary ones."""
    world = Rotation.of(setting)
    scale = 1.0 + 0.4 / math.sqrt(setting.dim)
    start = Gaussian(world.law.mean, world.law.covariance / scale)
    paths = world.paths(setting, start, "displaced")
    whole = entropy_production(paths, None, ExactScore(world.process, start).log_density)
    kept = housekeeping_heat(paths, None, world.log_density)
    for note, part in {"whole": whole, "housekeeping": kept, "rest": whole - kept}.items():
        found = Estimate.of((-part.values).exp())
        yield Outcome(found.value, 1.0, found.standard_error, note=note)
    steady = world.paths(setting, world.law, "detailed")
    made = entropy_production(steady, None, world.log_density).values
    mirrored = torch.where(made > 0.0, (-made).exp(), 0.0)
    yield Outcome.paired((made < 0.0).double() - mirrored, mirrored, note="negative and positive")


@reversal_identity(
    statement="E log dP/dP̃ = ∫ E v·D⁻¹v ds ≥ 0 for noising, with v = f − D∇log ρ_s and D = ½g²",
    equation="Seifert 2012, §2; Premkumar 2023, §3.3",
    kind=Kind.EQUALITY,
    left="log ratio of noising paths and the same process run backwards, and closed-form densities at both ends",
    right="the current velocity from closed-form scores, along the same paths",
    applies=Setting.has_density,
)
def entropy_production_of_noising(setting: Setting) -> Outcome:
    """Checks that noising produces as much entropy as its current velocity says."""
    process, exact = setting.process, setting.exact

    def velocity(t: Time, x: Tensor) -> Tensor:
        scale = process.scale(t).to(x)
        return process.drift(t, x) - 0.5 * (scale @ scale.T)(exact(t, x))

    paths = noising(setting, _STEPS).sample(setting.samples, seed=setting.seed_of("entropy production"))
    made, lost = entropy_production(paths, None, exact.log_density), dissipation(paths, velocity)
    gap: PathValues = made - lost
    return Outcome.paired(gap.values, lost.values, gap.allowance)
