"""Processes with momentum: the equilibrium of the underdamped Langevin equation, its density and limit, and bridges."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from scipy.interpolate import CubicSpline
from torch import Tensor

from sbridge.exact import GaussianCoupling, GaussianMomentumCourse
from sbridge.identities.base import Kind, Outcome, identity
from sbridge.identities.settings import Setting
from sbridge.identities.tools.derivatives import Derivatives, divergence, gradient, relative_size
from sbridge.identities.tools.noising import POINTS, direction, noising_states
from sbridge.laws import Gaussian
from sbridge.laws.moments import sample_moments
from sbridge.measures import Estimate
from sbridge.processes import BrownianMotion, OrnsteinUhlenbeck, Transition, UnderdampedDrift, UnderdampedLangevin
from sbridge.random import generator

equation_identity = partial(identity, group="equations")
schroedinger_identity = partial(identity, group="Schrödinger")
_SMALL = 1e-6
_FRICTION = 400.0  # in units of 1/T: the limit is reached up to about 0.3 %


@equation_identity(
    statement="dv = (−γv − ∇U) dt + σ dW, dx = v dt keep the law ∝ exp(−(U + ½|v|²)/θ), θ = σ²/2γ",
    equation="Premkumar 2023, eq. (2.1); Kramers 1940",
    kind=Kind.EQUALITY,
    left="mean of (b·∇ + ½σσᵀ:∇²)ψ over draws of x from p = ρ_{T/10} = e^{−U/θ} and v from N(0, θ), for waves ψ(x, v)",
    applies=lambda setting: setting.dim <= 2,
)
def underdamped_langevin_keeps_its_equilibrium(setting: Setting) -> Iterator[Outcome]:
    """Checks that the generator has mean zero under the product law, for a force ``θ∇log p``."""
    t, dim = 0.1 * setting.horizon, setting.dim
    places = noising_states(setting, (t,), "momentum", 32)[1]
    temperature = float(places.var()) / setting.horizon**2
    friction = 2.0 / setting.horizon
    process = UnderdampedDrift(
        lambda _, x: temperature * setting.exact(t, x), friction, math.sqrt(2.0 * friction * temperature), positions=dim
    )
    noise = torch.randn(places.shape, generator=generator(setting.seed_of("velocities")), dtype=torch.float64)
    state = torch.cat([places, math.sqrt(temperature) * noise], 1)
    a = process.scale(0.0) @ process.scale(0.0).T
    for number in (1, 2):
        points = state.clone().requires_grad_()
        along = number * points[:, :dim] / places.std() + points[:, dim:] / math.sqrt(temperature)
        slope = gradient(torch.cos(along @ direction(setting) + 0.25 * math.pi), points)
        generated = 0.5 * divergence(a(slope), points) + (process.drift(0.0, state) * slope).sum(1).detach()
        found = Estimate.of(generated / float((a(slope) * slope).detach().sum(1).mean()))  # so that it has no unit
        yield Outcome(found.value, 0.0, found.standard_error, note=f"wave {number}")


@equation_identity(
    statement="∂_t p + v·∇_x p − ∇_v·((γv + ∇U)p) − ½σ²Δ_v p = 0",
    equation="Kramers 1940; Premkumar 2023, eq. (2.1)",
    kind=Kind.RESIDUAL,
    left="largest relative residual, by differentiating the transition density of a quadratic potential",
    applies=lambda setting: setting.dim <= 2,
)
def kramers_equation_residual(setting: Setting) -> Iterator[Outcome]:
    """Computes the residual at draws of the transition from one state, at three times."""
    process, dim = _oscillator(setting, 2.0), setting.dim
    g = generator(setting.seed_of("kramers"))
    start = torch.randn(1, 2 * dim, generator=g, dtype=torch.float64).expand(POINTS, -1)
    for share in (0.1, 0.5, 0.9):
        t = torch.full((POINTS,), share * setting.horizon, dtype=torch.float64)
        law = process.transition(0.0, t)
        x = law.mean(start) + law.root(torch.randn(POINTS, 2 * dim, generator=g, dtype=torch.float64))

        def ratio(t: Tensor, x: Tensor) -> Tensor:
            logs = process.log_transition(0.0, start, t, x)
            return (logs - logs.detach()).exp()  # derivatives of p over p

        seen = Derivatives.of(ratio, t, x)
        points = x.clone().requires_grad_()
        flow, growth = seen.along(process.drift(t, x)), divergence(process.drift(t, points), points)
        spread = seen.diffusion_term(process, t)
        gap = relative_size(seen.rate + flow + growth - spread, seen.rate, flow, growth, spread)
        yield Outcome(gap, allowance=_SMALL, note=f"t = {share:g} T")


@equation_identity(
    statement="γ → ∞ with σ → γσ, U → γU: the law of x tends to that of dx = −∇U dt + σ dW with order 1 in 1/γ",
    equation="Premkumar 2023, eq. (2.1)–(2.2); Kramers 1940",
    kind=Kind.ORDER,
    left="order of the error of mean and covariance of x_T when γ is doubled, from v_0 = 0",
    right="1",
    applies=lambda setting: setting.dim <= 2,
)
def overdamped_limit_has_order_one(setting: Setting) -> Iterator[Outcome]:
    """Compares transitions in closed form."""
    dim = setting.dim
    rate, sigma, mean = _overdamped(setting)
    exact = OrnsteinUhlenbeck(rate, sigma, mean, setting.horizon).transition(0.0, setting.horizon)
    errors = [_gaps(_oscillator(setting, gain * _FRICTION), exact, dim) for gain in (1.0, 2.0)]
    for note, coarse, fine in zip(("mean", "covariance"), *errors, strict=True):
        yield Outcome(math.log2(coarse / fine), 1.0, allowance=0.1, note=f"{note}, error {fine:.1e} at last")


@schroedinger_identity(
    statement="with v_0 ~ N(0, s²): the plan is Brownian with ε = s²e² + (σ²/γ²)(T − 2e + (1 − e^{−2γT})/2γ)",
    equation="Hong et al. 2025; e = (1 − e^{−γT})/γ",
    kind=Kind.RESIDUAL,
    left="difference of Cov(x_0, x_T) in the bridge with momentum from that of the Brownian bridge, relatively",
)
def plan_with_momentum_is_brownian(setting: Setting) -> Iterator[Outcome]:
    """Compares both plans between Gaussians with the moments of the data and of the noised data."""
    horizon, dim = setting.horizon, setting.dim
    ends = [Gaussian(*sample_moments(rows)) for rows in noising_states(setting, (0.5 * horizon,), "course")]
    size = math.sqrt(setting.variance)
    sigma, speed = size / horizon**1.5, 0.5 * size / horizon
    for gain in (0.0, 2.0):
        friction = gain / horizon
        process = UnderdampedLangevin(friction, sigma, horizon=horizon, positions=dim)
        course = GaussianMomentumCourse(tuple(ends), (0.0, horizon), process, speed)
        found = course.covariance(0.0, horizon)[:dim, :dim]
        epsilon = speed**2 * horizon**2 + sigma**2 * horizon**3 / 3.0
        if friction > 0.0:
            e = -math.expm1(-gain) / friction
            noise = horizon - 2.0 * e - math.expm1(-2.0 * gain) / (2.0 * friction)
            epsilon = speed**2 * e**2 + sigma**2 / friction**2 * noise
        brownian = BrownianMotion(math.sqrt(epsilon / horizon), horizon)
        (m0, a), (mT, b) = ((law.mean, law.covariance) for law in ends)
        wanted = GaussianCoupling(m0, a, mT, b, brownian).coupling
        yield Outcome(float((found - wanted).norm() / wanted.norm()), allowance=_SMALL, note=f"γ = {gain:g}/T")


@schroedinger_identity(
    statement="γ = 0, U = 0, any v_0: E x_t is the natural cubic spline through the means of the snapshots",
    equation="Chen et al. 2018, arXiv:1801.03186",
    kind=Kind.RESIDUAL,
    left="largest difference of the mean path from the spline, in units of its largest value",
)
def mean_with_momentum_is_the_natural_spline(setting: Setting) -> Iterator[Outcome]:
    """Compares four snapshots at unequal times, for two sizes of the noise."""
    horizon, dim = setting.horizon, setting.dim
    times = (0.0, 0.2 * horizon, 0.7 * horizon, horizon)
    laws = [Gaussian(*sample_moments(rows)) for rows in noising_states(setting, times[1:], "course")]
    knots = torch.stack([law.mean for law in laws]).numpy()
    spline = CubicSpline(times, knots, bc_type="natural")
    for share in (1.0, 0.2):
        sigma = share * math.sqrt(setting.variance) / horizon**1.5
        process = UnderdampedLangevin(0.0, sigma, horizon=horizon, positions=dim)
        course = GaussianMomentumCourse(tuple(laws), times, process)
        gaps = [abs(course.law(t).mean[:dim].numpy() - spline(t)).max() for t in np.linspace(0.0, horizon, 12)]
        yield Outcome(float(max(gaps) / abs(knots).max()), allowance=_SMALL, note=f"σ²T³ = {share**2:g} Var x_0")


def _oscillator(setting: Setting, gain: float) -> UnderdampedLangevin:
    """A coupled oscillator of friction ``γ = gain/T`` whose overdamped limit does not depend on ``gain``."""
    friction, (rate, sigma, mean) = gain / setting.horizon, _overdamped(setting)
    return UnderdampedLangevin(friction, friction * sigma, friction * rate, mean, setting.horizon)


def _overdamped(setting: Setting) -> tuple[Tensor, Tensor, Tensor]:
    """Rate matrix, σ and mean of the limit."""
    dim, horizon = setting.dim, setting.horizon
    rate = torch.full((dim, dim), 0.4, dtype=torch.float64) + torch.arange(1.0, dim + 1.0).double().diag()
    noise = setting.process.scale(0.5 * horizon).mean_square(dim).sqrt()
    return rate / horizon, noise * torch.linspace(1.0, 0.5, dim).double(), torch.linspace(0.3, -0.6, dim).double()


def _gaps(process: UnderdampedLangevin, exact: Transition, dim: int) -> tuple[float, float]:
    law = process.transition(0.0, process.horizon)
    start = torch.eye(2 * dim, dtype=torch.float64)[:dim]
    moved = law.mean(start)[:, :dim] - exact.mean(start[:, :dim])
    spread = law.covariance.values[:dim, :dim] - exact.covariance.expanded(dim)
    return float(moved.norm()), float(spread.norm())
