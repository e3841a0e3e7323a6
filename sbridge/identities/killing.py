"""Killed diffusion: path KL with killing, the surviving mass, and Feynman–Kac by weights and by killing.

In a quadratic well, ``V = ½k²|x − c|²``, under Brownian noise everything is a closed form (Cameron & Martin 1945)::

    φ(0, x) = E[e^{−∫V dt} | X_0 = x] = cosh(kσT)^{−d/2} exp(−(k/2σ) tanh(kσT) |x − c|²)
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from sbridge.controls.base import Time
from sbridge.diffusion.reverse import moments
from sbridge.functionals import feynman_kac, kill, killed_log_ratio
from sbridge.identities.base import Kind, Outcome, identity
from sbridge.identities.settings import Setting
from sbridge.identities.tools.monte_carlo import width
from sbridge.measures import Direction, Estimate, PathMeasure, Paths
from sbridge.processes import BrownianMotion
from sbridge.processes.chain import Chain, default_rule
from sbridge.random import NormalNoise, derive
from sbridge.simulation import simulate
from sbridge.time import TimeGrid

action_identity = partial(identity, group="action")
_STEPS = 128


@dataclass(frozen=True, eq=False)
class Well:
    """Brownian motion from the data, killed at a rate that grows with the distance from their mean.

    Args:
        sigma: σ, such that noise over the horizon is as wide as the data.
        k: such that killing costs about one nat.
        centre: ``c``, shape ``(dim,)``.
        horizon: ``T``.
        pull: the rate at which the linear control of the checks reverts to the centre.
    """

    sigma: float
    k: float
    centre: Tensor
    horizon: float
    pull: float

    @classmethod
    def of(cls, setting: Setting, strength: float = 1.0) -> Well:
        """Makes the well of a setting; ``strength`` is relative to the optimal control for ``T → ∞``."""
        mean, _ = moments(setting.data)
        sigma = width(setting) / math.sqrt(setting.horizon)
        depth = min(1.0, math.sqrt(2.0 / setting.dim))
        k = depth / (sigma * setting.horizon)
        return cls(sigma, k, mean.double(), setting.horizon, strength * k * sigma)

    @property
    def process(self) -> BrownianMotion:
        """Returns the process without killing."""
        return BrownianMotion(self.sigma, self.horizon)

    def rate(self, t: Time, x: Tensor) -> Tensor:
        """Computes the killing rate ``V``."""
        return 0.5 * self.k**2 * (x - self.centre).square().sum(1)

    def log_mass(self, x: Tensor) -> Tensor:
        """Computes ``log φ(0, x)``."""
        angle, dim = self.k * self.sigma * self.horizon, x.shape[1]
        square = (x - self.centre).square().sum(1)
        return -0.5 * dim * math.log(math.cosh(angle)) - 0.5 * self.k / self.sigma * math.tanh(angle) * square

    def control(self, t: Time, x: Tensor) -> Tensor:
        """Computes ``−(pull/σ)(x − c)``, which is not the optimal control."""
        return -self.pull / self.sigma * (x - self.centre)

    def mean_integral(self, x: Tensor) -> Tensor:
        """Computes ``E ∫ |X − c|² dt`` from each ``x`` under the control: an Ornstein–Uhlenbeck process."""
        twice, dim = 2.0 * self.pull, x.shape[1]
        share = -math.expm1(-twice * self.horizon) / twice
        steady = dim * self.sigma**2 / twice
        return share * (x - self.centre).square().sum(1) + steady * (self.horizon - share)


@action_identity(
    statement="KL(P^u ‖ R killed at V) = ½E∫|u|² dt + E∫V dt",
    equation="Premkumar 2023, eq. (3.19)",
    kind=Kind.EQUALITY,
    left="Girsanov's log ratio with its martingale term and ∫V along simulated paths, extrapolated to step 0",
    right="moments of an Ornstein–Uhlenbeck process in closed form",
)
def killing_adds_to_the_path_kl(setting: Setting) -> Outcome:
    """Checks the path KL with killing."""
    well = Well.of(setting)
    fine, coarse, coarser = _ratios(setting, well)
    start = fine.starts
    expected = 0.5 * (well.k**2 + (well.pull / well.sigma) ** 2) * well.mean_integral(start)
    one, two, four = (level.values for level in (fine, coarse, coarser))
    allowance = abs(float((2.0 * one - 3.0 * two + four).mean()))
    return Outcome.paired(2.0 * one - two - expected, expected, allowance)


@action_identity(
    statement="E_{P^u} e^{−log dP^u/dR} is the surviving mass of R",
    equation="Premkumar 2023, eq. (2.29), (3.19)",
    kind=Kind.EQUALITY,
    left="Girsanov's log ratio with killing along simulated paths",
    right="closed form",
)
def killed_ratio_has_the_mean_of_the_surviving_mass(setting: Setting) -> Outcome:
    """Checks that the mean is the surviving mass, not one."""
    well = Well.of(setting, 0.4)
    fine, coarse, _ = _ratios(setting, well)
    mass = well.log_mass(fine.starts).exp()
    allowance = abs(float(((-fine.values).exp() - (-coarse.values).exp()).mean()))
    return Outcome.paired((-fine.values).exp() - mass, mass, allowance)


@action_identity(
    statement="KL(P^u ‖ R killed at V) ≥ −E log φ(0, X₀) for every control",
    equation="Premkumar 2023, eq. (3.25)–(3.26); Dai Pra & Pavon 1990",
    kind=Kind.INEQUALITY,
    left="closed form",
    right="Girsanov's log ratio with killing along simulated paths",
)
def free_energy_bounds_the_killed_path_kl(setting: Setting) -> Outcome:
    """Checks the bound given by the log transform of the control problem."""
    well = Well.of(setting)
    fine, coarse, _ = _ratios(setting, well)
    least = -well.log_mass(fine.starts)
    slack = Estimate.of(fine.values - least)
    allowance = abs(float((fine.values - coarse.values).mean()))
    value = float(least.mean())
    return Outcome(value, value + slack.value, slack.standard_error, allowance)


@action_identity(
    statement="φ(0, x) = E[e^{−∫V dt} | X₀ = x]",
    equation="Premkumar 2023, eq. (2.28)–(2.33); Feynman–Kac",
    kind=Kind.EQUALITY,
    left="weights along exact paths (trapezoidal rule in time), and simulated killing",
    right="closed form",
)
def feynman_kac_is_the_closed_form(setting: Setting) -> Iterator[Outcome]:
    """Compares weights and killing with the closed form."""
    well = Well.of(setting)
    measure = PathMeasure(well.process, None, setting.data, grid=TimeGrid.uniform(_STEPS // 2))
    paths = measure.sample(setting.samples, seed=setting.seed_of("weights"))
    mass = well.log_mass(paths.x[0].double()).exp()
    weights = feynman_kac(paths, lambda x: torch.ones_like(x[:, 0]), well.rate)
    yield Outcome.paired(weights.values - mass, mass, weights.allowance, "weights")
    killed = kill(paths, well.rate, seed=setting.seed_of("clocks")).survived.double()
    yield Outcome.paired(killed - mass, mass, weights.allowance, "killing")


@dataclass(frozen=True, eq=False)
class _Ratios:
    starts: Tensor
    values: Tensor


def _ratios(setting: Setting, well: Well) -> tuple[_Ratios, _Ratios, _Ratios]:
    """Returns log ratios with killing along controlled paths, at steps Δ, 2Δ and 4Δ, from the same noise."""
    n, process = 2 * setting.samples, well.process
    start = PathMeasure(process, None, setting.data).starts(n, seed=setting.seed_of("killed")).double()
    seed = derive(setting.seed_of("killed"), "noise")
    noise = NormalNoise(seed, _STEPS, *start.shape, dtype=torch.float64).stored()
    found = []
    for steps in (_STEPS, _STEPS // 2, _STEPS // 4):
        times = TimeGrid.uniform(steps).times(well.horizon)
        chain = Chain(process, times, Direction.FORWARD, default_rule(process), start)
        states, controls = simulate(chain, well.control, start, noise)
        ratio = killed_log_ratio(Paths(states, noise, controls, chain), well.control, None, well.rate)
        found.append(_Ratios(start, ratio.values))
        noise = (noise[0::2] + noise[1::2]) / math.sqrt(2.0)
    return found[0], found[1], found[2]
