"""Kernels of the reverse process, and the score-matching objective in discrete steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from sbridge.diffusion.conversions import checked_score, start_from_score
from sbridge.diffusion.ddpm import DiscreteNoise, StepVariance
from sbridge.diffusion.pinned import draw_earlier, log_pinned_kernel, pinned_kernel, pinned_kl
from sbridge.diffusion.samplers import AncestralSampler, StopEarly
from sbridge.errors import UnsupportedError
from sbridge.identities.base import Kind, Outcome, identity
from sbridge.identities.settings import Setting
from sbridge.identities.tools.derivatives import divergence, gradient
from sbridge.identities.tools.noising import POINTS, bridge_until, direction, noising_states, span_note, spans, wave
from sbridge.measures import Estimate
from sbridge.processes import LinearProcess, VariancePreserving
from sbridge.processes.coefficients import gauss_legendre
from sbridge.random import generator
from sbridge.time import TimeGrid

reversal_identity = partial(identity, group="reversal")


@reversal_identity(
    statement="the pinned kernel is Bayes' formula: q(x_s|x_0,x_t) = p(x_t|x_s) p(x_s|x_0)/p(x_t|x_0)",
    equation="Premkumar 2023, eq. (4.1)",
    kind=Kind.RESIDUAL,
    left="largest difference between log densities from Gaussian conditioning and from three transitions",
)
def pinned_kernel_is_bayes(setting: Setting) -> Iterator[Outcome]:
    """Compares log densities at points of the noising process."""
    for s, t in spans(setting):
        x_start, x_s, x_t = (x[:POINTS] for x in noising_states(setting, (s, t), "pinned"))
        gap = log_pinned_kernel(setting.process, s, t, x_start, x_s, x_t) - _bayes(setting, s, t, x_start, x_s, x_t)
        yield Outcome(float(gap.abs().max()), allowance=1e-6, note=span_note(setting, s, t))


@reversal_identity(
    statement="the pinned kernel solves the Fokker–Planck equation of the drift −b + σσᵀ∇log p(x_s|x_0)",
    equation="Premkumar 2023, eq. (4.2)–(4.4)",
    kind=Kind.RESIDUAL,
    left="largest relative residual, by differentiating Bayes' formula",
)
def pinned_kernel_flows_back(setting: Setting) -> Iterator[Outcome]:
    """Checks ``∂_τ log q = −∇·β − β·∇log q + ½ tr(σσᵀ∇²log q) + ½|σᵀ∇log q|²`` in reversed time ``τ``."""
    process, h = setting.process, 2e-3
    for s, t in spans(setting):
        x_start, x, x_t = (x[:POINTS] for x in noising_states(setting, (s, t), "pinned"))

        def log_q(s: float, x: Tensor, x_start: Tensor = x_start, x_t: Tensor = x_t, t: float = t) -> Tensor:
            return _bayes(setting, s, t, x_start, x, x_t)

        step = h * min(s, t - s)
        far, near = (log_q(s - k * step, x) - log_q(s + k * step, x) for k in (2, 1))
        change = (8.0 * near - far) / (12.0 * step)
        x = x.requires_grad_()
        slope = gradient(log_q(s, x), x)
        push = gradient(process.log_transition(0.0, x_start, s, x), x)
        a = process.scale(s) @ process.scale(s).T
        drift = a(push) - process.drift(s, x)
        terms = [
            divergence(drift, x),
            (drift * slope).sum(1),
            -0.5 * divergence(a(slope), x),
            -0.5 * (a(slope) * slope).sum(1),
        ]
        size = change.abs().mean() + sum(term.abs().mean() for term in terms)
        gap = (change + torch.stack(terms).sum(0)).abs().max() / size
        yield Outcome(float(gap.detach()), allowance=1e-6, note=span_note(setting, s, t))


@reversal_identity(
    statement="the mean of the pinned kernel over x_0|x_t reverses the noising process in one step of any length",
    equation="Premkumar 2023, eq. (4.5)",
    kind=Kind.EQUALITY,
    left="draws of X_s: X_0 from its posterior given X_t, then the pinned kernel",
    right="mean square 1 of the noise between X_s and X_t; mean log density of exact draws",
)
def averaged_kernels_reverse(setting: Setting) -> Iterator[Outcome]:
    """Checks the distribution of ``X_s`` and its joint distribution with ``X_t``."""
    for s, t in spans(setting):
        x_t = noising_states(setting, (t,), "averaged", 8)[1]
        x_s = draw_earlier(setting.exact, s, t, x_t, seed=setting.seed_of("earlier", str(s)))
        step, note = setting.process.transition(s, t), span_note(setting, s, t)
        noise = Estimate.of(step.root.inverse()(x_t - step.mean(x_s)).square().mean(1))
        yield Outcome(noise.value, 1.0, noise.standard_error, note=f"mean square, {note}")
        left = Estimate.of(setting.exact.log_density(s, x_s))
        right = Estimate.of(setting.exact.log_density(s, noising_states(setting, (s,), "exact", 8)[1]))
        yield Outcome.of(left, right, note=f"log density, {note}")


@reversal_identity(
    statement="KL of averaged kernels ≤ mean KL of pinned kernels",
    equation="Premkumar 2023, eq. (4.6)–(4.7)",
    kind=Kind.INEQUALITY,
    left="E log p(x_s|x_t) − log q(x_s|x̂_0,x_t) along noising paths, with x̂_0 from a perturbed score",
    right="E ½|Γ^{−½}L(x_0 − x̂_0)|²",
)
def kernel_bound(setting: Setting) -> Iterator[Outcome]:
    """Compares one pinned kernel to a predicted start with the posterior mean of pinned kernels."""
    process, exact = setting.process, setting.exact
    for s, t in spans(setting):
        x_start, x_s, x_t = noising_states(setting, (s, t), "bound")
        predicted = start_from_score(process, t, x_t, checked_score(setting.perturbed, t, x_t))
        truth = process.log_transition(s, x_s, t, x_t) + exact.log_density(s, x_s) - exact.log_density(t, x_t)
        model = process.log_transition(s, x_s, t, x_t) + process.log_transition(0.0, predicted, s, x_s)
        model = model - process.log_transition(0.0, predicted, t, x_t)
        left, right = truth - model, pinned_kl(process, s, t, x_start, predicted)
        yield Outcome.paired(left - right, right, note=f"perturbed, {span_note(setting, s, t)}")


@reversal_identity(
    statement="the mean of an ancestral step is E[X_s|X_t] for steps of any length",
    equation="Ho et al. 2020, eq. (11); Efron 2011",
    kind=Kind.EQUALITY,
    left="E[x_s·e ψ(x_t)] along noising paths",
    right="the same mean with Φ⁻¹(x_t − c + Qs) of the sampler in place of x_s",
)
def ancestral_mean_is_exact(setting: Setting) -> Iterator[Outcome]:
    """Checks the weak form for waves ``ψ``; the two sides share ``x_t``."""
    for s, t in spans(setting):
        _, x_s, x_t = noising_states(setting, (s, t), "ancestral", 4)
        step = AncestralSampler(grid=TimeGrid((0.0, s / t, 1.0)), last=StopEarly())
        # the noise of the sampler has mean zero and only adds to the standard error
        moved = step(bridge_until(setting, t), x_t, seed=setting.seed_of("ancestral noise", str(s)))
        test, e = wave(setting, x_t), direction(setting)
        yield Outcome.paired(((x_s - moved) @ e) * test, (moved @ e) * test, note=span_note(setting, s, t))


def is_ddpm(setting: Setting) -> bool:
    """Returns whether the process is that of denoising diffusion models: variance preserving, in standard units."""
    process = setting.process
    return isinstance(process, VariancePreserving) and bool(process.stationary_std == 1.0) and bool(process.mean == 0.0)


@reversal_identity(
    statement="steps, variances and weights of a discrete chain are those of the process at its knots",
    equation="Ho et al. 2020, eq. (4)–(12); Song et al. 2021 (DDIM), eq. (12); Premkumar 2023, eq. (4.16)",
    kind=Kind.RESIDUAL,
    left="largest relative difference between formulas in α, β and Gaussian conditioning on two transitions",
    applies=is_ddpm,
)
def discrete_steps_are_those_of_the_process(setting: Setting) -> Iterator[Outcome]:
    """Checks one step, from a predicted noise that is wrong."""
    process = setting.process
    for s, t in spans(setting):
        knots = TimeGrid((0.0, s / setting.horizon, t / setting.horizon, 1.0))
        chain, (before, after) = _chain(process, knots), (process.transition(0.0, r) for r in (s, t))
        step, kernel = process.transition(s, t), pinned_kernel(process, s, t)
        start, noise, other = (_fresh(setting, torch.zeros(POINTS, setting.dim), f"discrete {s}")(k) for k in range(3))
        x = after.mean(start) + after.root(noise)
        wrong = after.map.inverse()(x - after.offset - after.root(other))  # the start that the wrong noise predicts
        variances = chain.step_variances(StepVariance.POSTERIOR)[1] * torch.ones(1, dtype=torch.float64)
        bound = pinned_kl(process, s, t, start, wrong)
        square = (noise - other).square().sum(1)
        forward = bound * kernel.covariance.values / step.covariance.values
        for what, found, wanted in (
            ("noised", chain.noised(2, start, noise), x),
            ("posterior mean", chain.posterior_mean(2, start, x), kernel.mean(start, x)),
            ("ancestral mean", chain.ancestral_mean(2, x, other), kernel.mean(wrong, x)),
            ("DDIM", chain.ddim(2, x, other), before.mean(wrong) + before.root(other)),
            ("posterior variance", variances, kernel.covariance.values),
            ("posterior weight", chain.weights(StepVariance.POSTERIOR)[1] * square, bound),
            ("forward weight", chain.weights(StepVariance.FORWARD)[1] * square, forward),
        ):
            gap = float((found - wanted).abs().max() / wanted.abs().mean())
            yield Outcome(gap, allowance=1e-9, note=f"{what}, {span_note(setting, s, t)}")


@reversal_identity(
    statement="the DDPM objective converges to denoising score matching as β → 0",
    equation="Premkumar 2023, eq. (4.16) and (3.43)",
    kind=Kind.EQUALITY,
    left="Σ_k β_k²/(2σ_k²α_k(1−ᾱ_k)) E|ε − ε_θ|², σ_k² = β_k",
    right="½∫β(s) E|s_θ − ∇log p(x_s|x_0)|² ds by Gauss–Legendre quadrature, independent draws",
    applies=is_ddpm,
)
def ddpm_objective_is_score_matching(setting: Setting) -> Outcome:
    """Checks the perturbed score with independent noise at every time, extrapolated to β = 0."""
    x, other = (noising_states(setting, (), f"objective {i}", 2)[0] for i in (1, 2))
    coarse, fine = (
        _discrete_objective(setting, n, x, _fresh(setting, x, str(n))) for n in (setting.steps, 2 * setting.steps)
    )
    right = Estimate.of(_score_matching(setting, other, _fresh(setting, other, "score matching")))
    allowance = abs(float((fine - coarse).mean()))
    left = Estimate.of(2.0 * fine - coarse)
    return Outcome.of(left, right, allowance, "fixed perturbation, from s_min; extrapolated")


@reversal_identity(
    statement="the DDPM objective differs from denoising score matching by O(β)",
    equation="Premkumar 2023, eq. (4.16) and (3.43)",
    kind=Kind.ORDER,
    left="order of the difference in the step size, from the same draws",
    right="1",
    applies=is_ddpm,
)
def ddpm_objective_order(setting: Setting) -> Outcome:
    """Extrapolates the order; the difference is smooth in the step because all times share their draws."""
    x = noising_states(setting, (), "order")[0][:250]
    noise = _fresh(setting, x, "order")(0)
    exact = float(_score_matching(setting, x, lambda k: noise).mean())
    gaps = [
        float(_discrete_objective(setting, n * setting.steps, x, lambda k: noise).mean()) - exact for n in (2, 4, 8)
    ]
    first, second = (math.log2(abs(a / b)) for a, b in pairwise(gaps))
    return Outcome(2.0 * second - first, 1.0, allowance=0.15, note=f"difference {gaps[2]:.3g} nat at last")


def _chain(process: LinearProcess, grid: TimeGrid) -> DiscreteNoise:
    if not isinstance(process, VariancePreserving):
        raise UnsupportedError(f"a discrete chain needs a VariancePreserving process, got {type(process).__name__}.")
    return DiscreteNoise.of(process, grid)


def _bayes(setting: Setting, s: float, t: float, x_start: Tensor, x_s: Tensor, x_t: Tensor) -> Tensor:
    """Computes ``log p(x_t|x_s) + log p(x_s|x_0) − log p(x_t|x_0)``."""
    process = setting.process
    there = process.log_transition(0.0, x_start, s, x_s) + process.log_transition(s, x_s, t, x_t)
    return there - process.log_transition(0.0, x_start, t, x_t)


def _fresh(setting: Setting, x: Tensor, stream: str) -> Callable[[int], Tensor]:
    """Returns ``k ↦`` standard normal noise like ``x``."""
    return lambda k: torch.randn(
        x.shape, generator=generator(setting.seed_of("kernels", "noise", stream, k)), dtype=torch.float64
    )


def _discrete_objective(setting: Setting, steps: int, x: Tensor, noise_of: Callable[[int], Tensor]) -> Tensor:
    """Computes ``Σ_k w_k |ε_k − ε_θ|²`` for each row, over steps that grow geometrically from ``s_min``."""
    grid = TimeGrid((0.0, *(setting.start_time ** (1.0 - k / steps) for k in range(steps)), 1.0))
    chain = _chain(setting.process, grid)
    total = x.new_zeros(len(x))
    for k in range(2, steps + 2):
        noise = noise_of(k)
        noised = chain.noised(k, x, noise)
        predicted = -chain.variances[k].sqrt() * setting.perturbed(float(chain.times[k]), noised)
        total += chain.weights(StepVariance.FORWARD)[k - 1] * (predicted - noise).square().sum(1)
    return total


def _score_matching(setting: Setting, x: Tensor, noise_of: Callable[[int], Tensor]) -> Tensor:
    """Computes ``½∫ |σᵀ(s_θ − ∇log p(x_s|x_0))|² ds`` from ``s_min`` for each row; nodes in the logarithm of time."""
    process, total = setting.process, x.new_zeros(len(x))
    length = -math.log(setting.start_time)
    for k, (place, weight) in enumerate(zip(*(one.tolist() for one in gauss_legendre(3)), strict=True)):
        noise, t = noise_of(k), setting.horizon * math.exp(length * (place - 1.0))
        law = process.transition(0.0, t)
        target = -law.root.T.inverse()(noise)
        error = setting.perturbed(t, law.mean(x) + law.root(noise)) - target
        total += 0.5 * length * t * weight * process.scale(t).T(error).square().sum(1)
    return total
