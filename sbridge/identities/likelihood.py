"""Likelihood, entropy and KL divergences of path measures: bounds, cases of equality, and refinements."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from sbridge.controls.base import Time
from sbridge.diffusion.conversions import Score
from sbridge.diffusion.reverse import end_distribution, moments
from sbridge.functionals import PathValues, denoising_elbo, entropy_change, integrate
from sbridge.identities.base import Kind, Outcome, identity
from sbridge.identities.settings import Setting
from sbridge.identities.tools.monte_carlo import (
    Noised,
    chi_square_controls,
    estimate_mean,
    noising,
    scores_to_check,
    sum_estimates,
)
from sbridge.laws import Gaussian, Samples
from sbridge.measures import Estimate, PathMeasure, partition_kl, path_kl
from sbridge.objectives import score_matching as losses
from sbridge.processes import BrownianMotion, LinearProcess, OrnsteinUhlenbeck
from sbridge.random import generator
from sbridge.time import TimeGrid

action_identity = partial(identity, group="action")
_SHARE = 0.6


@dataclass(frozen=True, eq=False)
class GaussianModel:
    """A reverse diffusion with a wrong score and Gaussian marginals: ``s = −share · P_t⁻¹(x − m_t)``.

    ``N(m_t, P_t)`` has the moments of the noised data; the prior is ``N(m_T, P_T)``. Two ordinary differential
    equations give the distribution generated at ``s_min``.
    """

    setting: Setting
    share: float = _SHARE

    def moments(self, t: float) -> tuple[Tensor, Tensor]:
        """Computes ``m_t`` and ``P_t``."""
        mean, covariance = (one.double() for one in moments(self.setting.data))
        law = self.setting.process.transition(0.0, t)
        phi = law.map.expanded(self.setting.dim)
        return law.mean(mean[None])[0], phi @ covariance @ phi.mT + law.covariance.expanded(self.setting.dim)

    def __call__(self, t: Time, x: Tensor) -> Tensor:
        """Computes the score at a single time."""
        mean, covariance = self.moments(float(t))
        return -self.share * torch.linalg.solve(covariance, (x - mean).mT).mT

    @cached_property
    def prior(self) -> Gaussian:
        """``π``."""
        return end_distribution(self.setting.process, self.setting.data)

    @cached_property
    def generated(self) -> Gaussian:
        """Computes the distribution generated at ``s_min``, integrated in ``log t``, where its rates are even."""
        dim, horizon = self.setting.dim, self.setting.horizon

        def rate(log_t: float, flat: np.ndarray) -> np.ndarray:
            t = min(math.exp(log_t), horizon)
            state = torch.as_tensor(flat, dtype=torch.float64).reshape(dim, dim + 1)
            return (-t * self._reverse_rates(t, state[:, 0], state[:, 1:])).flatten().numpy()  # t runs down

        start = torch.cat([self.prior.mean[:, None], self.prior.covariance], 1).double().flatten().numpy()
        span = (math.log(horizon), math.log(self.setting.s_min))
        solved = solve_ivp(rate, span, start, rtol=1e-9, atol=1e-11)
        state = torch.as_tensor(solved.y[:, -1]).reshape(dim, dim + 1)
        return Gaussian(state[:, 0].clone(), 0.5 * (state[:, 1:] + state[:, 1:].mT))

    def _reverse_rates(self, t: float, mean: Tensor, covariance: Tensor) -> Tensor:
        """Returns rates of mean and covariance in reversed time, for drift ``−(Ax + c) + σσᵀs`` and noise σ."""
        process, dim = self.setting.process, self.setting.dim
        linear, scale = process.linear(t).expanded(dim), process.scale(t).expanded(dim)
        spread, (centre, width) = scale @ scale.mT, self.moments(t)
        pull = -self.share * torch.linalg.solve(width, spread).mT  # σσᵀ times the score's Jacobian
        drift = pull - linear
        of_mean = pull @ (mean - centre) - linear @ mean - process.offset(t).expand(dim)
        return torch.cat([of_mean[:, None], drift @ covariance + covariance @ drift.mT + spread], 1)


@action_identity(
    statement="E ELBO_θ(X) ≤ E log p_θ(X)",
    equation="Huang, Lim & Courville 2021, arXiv:2106.02808, the continuous-time ELBO",
    kind=Kind.INEQUALITY,
    left="denoising ELBO along noising paths or at random times",
    right="log p_θ of a Gaussian model from its moment equations; E log ρ ≥ E log p_θ for other scores",
)
def elbo_is_below_the_log_likelihood(setting: Setting) -> Iterator[Outcome]:
    """Checks a Gaussian model with a wrong score, and the scores of the setting."""
    model = GaussianModel(setting)
    paths = noising(setting, 80).sample(setting.samples, seed=setting.seed_of("bound"))
    bound = denoising_elbo(paths, model, model.prior, s_min=setting.s_min)
    truth = model.generated.log_density(paths.x[1].double())
    slack = Estimate.of(bound.values - truth)
    value = float(truth.mean())
    yield Outcome(value + slack.value, value, slack.standard_error, bound.allowance, "a Gaussian model")
    for note, score in scores_to_check(setting, 1.0):
        right, end = _end_entropies(setting, note)
        left = sum_estimates(_bulk(setting, score, note, right.value, target=3.0), end)
        yield Outcome.of(left, right, note=f"{note}, prior ρ_T")


@action_identity(
    statement="ELBO = E log p for the true score and the prior ρ_T",
    equation="the verification theorem for the control problem of Premkumar 2023, §3.3",
    kind=Kind.EQUALITY,
    left="denoising ELBO at random times",
    right="log ρ in closed form",
)
def elbo_of_the_true_score_is_the_log_likelihood(setting: Setting) -> Outcome:
    """Checks that the bound is exact for the true score and the true prior."""
    density, end = _end_entropies(setting, "elbo")
    left = sum_estimates(_bulk(setting, setting.exact, "elbo", density.value), end)
    return Outcome.of(left, density)


@action_identity(
    statement="KL(ρ ‖ p_θ) ≤ path KL + KL(ρ_T ‖ π)",
    equation="Song et al. 2021, arXiv:2101.09258, thm. 1",
    kind=Kind.INEQUALITY,
    left="closed-form densities of a Gaussian model and of the noised data",
    right="explicit score matching at random times, closed-form densities at T",
)
def path_kl_bounds_the_likelihood(setting: Setting) -> Outcome:
    """Checks a Gaussian model with a wrong score."""
    model, exact = GaussianModel(setting), setting.exact
    first, last = _ends(setting, 4 * setting.samples, "bound")
    start = Estimate.of(exact.log_density(setting.s_min, first) - model.generated.log_density(first))
    end = Estimate.of(exact.log_density(setting.horizon, last) - model.prior.log_density(last))
    paths = noising(setting, 60, resolution=0.0).sample(min(setting.samples, 1000), seed=setting.seed_of("bound"))

    def error(t: Time, x: Tensor) -> Tensor:
        return losses.explicit(setting.process, t, model(t, x), exact(t, x))

    bulk = integrate(paths, error, start_time=setting.s_min)
    right = sum_estimates(bulk.estimate, end)
    return Outcome.of(start, right, bulk.allowance, "a Gaussian model")


@action_identity(
    statement="H(ρ_T) − H(ρ) = ∫ (½g² E|∇log ρ_s|² + E ∇·f) ds",
    equation="the value of the control problem of Premkumar 2023, §3.3, averaged",
    kind=Kind.EQUALITY,
    left="closed-form densities at both ends",
    right="closed-form scores at random times",
)
def entropy_balance(setting: Setting) -> Iterator[Outcome]:
    """Checks that entropy changes by the terms of score and drift, at independent states and along paths."""
    process, exact = setting.process, setting.exact

    def rows(one: Noised) -> Tensor:
        made = losses.implicit_constant(process, one.t, exact(one.t, one.x))
        return one.weight * (made + _drift_divergence(setting, one.t))

    density, end = _end_entropies(setting, "entropy")
    right = estimate_mean(setting, rows, "entropy", resolution=0.0, controls=chi_square_controls(setting))
    error = sum_estimates(right, density, end).standard_error
    yield Outcome(density.value - end.value, right.value, error, note="independent states")
    paths = noising(setting, 2).sample(20 * setting.samples, seed=setting.seed_of("entropy along paths"))
    along = entropy_change(paths, exact.log_density, s_min=setting.s_min)
    yield Outcome.of(along.estimate, right, note="both ends of a path")


def _bulk(setting: Setting, score: Score, note: str, value: float, target: float = 0.6) -> Estimate:
    """Estimates ``∫ E∇·b − E[½|σᵀ(s − τ)|² − ½|σᵀτ|²] ds``: the bound on ``E log p`` without ``E log π(X_T)``."""
    process = setting.process

    def rows(one: Noised) -> Tensor:
        matching = losses.denoising(process, one.t, score(one.t, one.x), one.noise)
        nothing = losses.denoising(process, one.t, torch.zeros_like(one.noise), one.noise)
        return one.weight * (_drift_divergence(setting, one.t) - matching + nothing)

    def both(one: Noised) -> Tensor:
        return 0.5 * (rows(one) + rows(one.opposite))

    controls = chi_square_controls(setting)
    return estimate_mean(setting, both, "bound", note, target=target, controls=controls, total=value)


def _drift_divergence(setting: Setting, t: Tensor) -> Tensor:
    return setting.process.linear(t).expanded(setting.dim).diagonal(dim1=-2, dim2=-1).sum(-1)


def _ends(setting: Setting, n: int, stream: str) -> tuple[Tensor, Tensor]:
    """Draws states at ``s_min`` and, independently, at ``T``."""
    g, found = generator(setting.seed_of("ends", stream)), []
    for t in (setting.s_min, setting.horizon):
        law, start = setting.process.transition(0.0, t), setting.data.sample(n, g).double()
        found.append(law.mean(start) + law.root(torch.randn(start.shape, generator=g, dtype=torch.float64)))
    return found[0], found[1]


def _end_entropies(setting: Setting, stream: str) -> tuple[Estimate, Estimate]:
    """Estimates ``E log ρ(X)`` at ``s_min`` and at ``T`` from many independent draws."""
    points = len(setting.data.rows) if isinstance(setting.data, Samples) else 1
    n = max(setting.samples, min(20 * setting.samples, 100_000_000 // points))
    first, last = _ends(setting, n, stream)
    start = Estimate.of(setting.exact.log_density(setting.s_min, first))
    return start, Estimate.of(setting.exact.log_density(setting.horizon, last))


@action_identity(
    statement="the KL divergence of distributions on a partition of [0, T] grows under refinement up to the path KL",
    equation="Premkumar 2023, eq. (3.18), (A.2)–(A.5)",
    kind=Kind.INEQUALITY,
    left="Gaussian transitions in closed form, on the coarser partition",
    right="the same on the finer partition; finally ½ E∫|u|² dt along exact paths",
)
def static_kl_is_below_pathwise_kl(setting: Setting) -> Iterator[Outcome]:
    """Checks partitions of 1 to 16 intervals."""
    drifting, free = _mean_reverting(setting)
    values = {n: _partition(setting, drifting, free, n) for n in (1, 2, 4, 8, 16)}
    for n in (1, 2, 4, 8):
        yield Outcome(values[n], values[2 * n], note=f"{n} → {2 * n} intervals")
    path = _pathwise(setting, drifting, 64)
    for n in (1, 16):
        yield Outcome(values[n], path.estimate.value, path.estimate.standard_error, path.allowance, f"{n} → paths")


@action_identity(
    statement="the KL divergence of distributions on a partition converges to ½ E∫|u|² dt under refinement",
    equation="Premkumar 2023, eq. (3.19), (A.5)",
    kind=Kind.EQUALITY,
    left="Gaussian transitions in closed form on 64 intervals",
    right="½ E∫|u|² dt along exact paths",
)
def partitions_tend_to_the_pathwise_kl(setting: Setting) -> Outcome:
    """Checks the limit of (A.5)."""
    drifting, free = _mean_reverting(setting)
    fine, coarse = (_partition(setting, drifting, free, n) for n in (64, 32))
    path = _pathwise(setting, drifting, 64)
    return Outcome(fine, path.estimate.value, path.estimate.standard_error, path.allowance + abs(fine - coarse))


@action_identity(
    statement="KL(P ‖ R) = ½ Σ Δ_k E|u_k|² for a chain with an affine control, exactly",
    equation="Premkumar 2023, eq. (3.19)",
    kind=Kind.EQUALITY,
    left="simulated paths",
    right="means and covariances of the chain, step by step",
)
def path_kl_of_a_chain_is_closed_form(setting: Setting) -> Outcome:
    """Checks the path KL of 32 steps towards the mean of the data."""
    drifting, free = _mean_reverting(setting)

    def control(t: Time, x: Tensor) -> Tensor:
        return drifting.scale(t).inverse().to(x)(drifting.drift(t, x))

    ours, theirs = (PathMeasure(free, u, setting.data, grid=_squares(32)) for u in (control, None))
    found = path_kl(ours, theirs, setting.samples, seed=setting.seed_of("chain"))
    mean, covariance = (one.double() for one in moments(setting.data))
    unit, total = torch.eye(setting.dim, dtype=torch.float64), 0.0
    chain = ours.chain(mean[None])
    for k, (t, width) in enumerate(zip(chain.step_times, chain.root_durations, strict=True)):
        root, offset = chain.root(k)(unit), control(t, torch.zeros_like(mean)[None])
        gain = control(t, unit) - offset  # rows: u = x · gain + offset
        moved = mean[None] @ gain + offset
        total += 0.5 * width**2 * float(moved.square().sum() + (gain.mT @ covariance @ gain).trace())
        step = unit + width * gain @ root
        mean = mean + (width * moved @ root)[0]
        covariance = step.mT @ covariance @ step + root.mT @ root
    return Outcome(found.value, total, found.standard_error)


def _mean_reverting(setting: Setting) -> tuple[OrnsteinUhlenbeck, BrownianMotion]:
    """Returns two processes with the noise of the setting: one reverts to the mean of the data, one has no drift."""

    def sigma(t: Tensor) -> Tensor:
        scale = setting.process.scale(t)
        return scale.values if scale.dense or scale.dim else scale.values[..., 0]

    mean, _ = moments(setting.data)
    rate = 1.5 / setting.horizon
    return OrnsteinUhlenbeck(rate, sigma, mean.double(), setting.horizon), BrownianMotion(sigma, setting.horizon)


def _squares(intervals: int) -> TimeGrid:
    """Returns the fractions ``(k/n)²``: finer towards 0, where noise is least, and nested when ``n`` doubles."""
    return TimeGrid(tuple((k / intervals) ** 2 for k in range(intervals + 1)))


def _pathwise(setting: Setting, drifting: OrnsteinUhlenbeck, steps: int) -> PathValues:
    measure = PathMeasure(drifting, None, setting.data, grid=_squares(steps))
    paths = measure.sample(3 * setting.samples, seed=setting.seed_of("pathwise"))

    def power(t: Time, x: Tensor) -> Tensor:
        return 0.5 * drifting.scale(t).inverse().to(x)(drifting.drift(t, x)).square().sum(1)

    return integrate(paths, power)


def _partition(setting: Setting, p: LinearProcess, q: LinearProcess, intervals: int) -> float:
    return partition_kl(p, q, setting.data, _squares(intervals).times(setting.horizon))
