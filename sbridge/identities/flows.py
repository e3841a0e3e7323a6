"""The probability flow: DDIM as its discretisation, and its log likelihood."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial

import torch

from sbridge.controls import Hutchinson
from sbridge.diffusion.conversions import noise_from_score
from sbridge.diffusion.likelihood import log_likelihood
from sbridge.diffusion.samplers import DDIMSampler, StopEarly
from sbridge.identities.base import Kind, Outcome, identity
from sbridge.identities.settings import Setting
from sbridge.identities.tools.noising import POINTS, bridge_until, is_scalar, noising_states, span_note, spans
from sbridge.simulation.ode import DormandPrince, Euler, flow
from sbridge.time import TimeGrid

reversal_identity = partial(identity, group="reversal")


@reversal_identity(
    statement="a DDIM step is a step of Euler's method for d(x/α)/d(√v/α) = ε_θ",
    equation="Song et al. 2021 (DDIM), eq. (13)–(14)",
    kind=Kind.RESIDUAL,
    left="largest relative difference between the sampler's step and the ODE solver's",
    applies=is_scalar,
)
def ddim_is_an_euler_step(setting: Setting) -> Iterator[Outcome]:
    """Compares both steps for every scalar linear process, with ``α = Φ`` and ``v = Q``."""
    process = setting.process
    for s, t in spans(setting):
        x = noising_states(setting, (t,), "ddim")[1][:POINTS]
        step = DDIMSampler(grid=TimeGrid((0.0, s / t, 1.0)), last=StopEarly())(bridge_until(setting, t), x, seed=0)
        before, after = (process.transition(0.0, r) for r in (s, t))
        clock = torch.cat([law.root.values / law.map.values for law in (after, before)])
        noise = noise_from_score(process, t, setting.exact(t, x))
        straight = (x - after.offset) / after.map.values
        end = flow(lambda c, y, noise=noise: noise, straight, clock, Euler()).x
        gap = (before.mean(end) - step).abs().max() / step.abs().mean()
        yield Outcome(float(gap), allowance=1e-9, note=span_note(setting, s, t))


@reversal_identity(
    statement="DDIM converges to the probability flow with order 1",
    equation="Song et al. 2021 (DDIM), §4.3",
    kind=Kind.ORDER,
    left="order of the distance between the states of DDIM and an accurate solution of the flow",
    right="1",
    applies=is_scalar,
)
def ddim_order(setting: Setting) -> Outcome:
    """Measures the order from ``T/2`` to ``T/10`` in 100 and 200 steps, by the median distance."""
    s, t = spans(setting)[0]
    x, bridge = noising_states(setting, (t,), "ddim")[1][:POINTS], bridge_until(setting, t)
    exact = flow(bridge.current_velocity, x, torch.tensor([t, s], dtype=torch.float64), DormandPrince(1e-9, 1e-9)).x
    gaps = []
    for steps in (100, 200):
        grid = TimeGrid((0.0, *((s + (t - s) * k / steps) / t for k in range(steps)), 1.0))
        gaps.append(float((DDIMSampler(grid, StopEarly())(bridge, x, seed=0) - exact).norm(dim=1).median()))
    return Outcome(math.log2(gaps[0] / gaps[1]), 1.0, allowance=0.2, note=f"median distance {gaps[1]:.2g} at last")


@reversal_identity(
    statement="the log-likelihood of the probability flow is the log density of the data",
    equation="Song et al. 2021, arXiv:2011.13456, eq. (39)",
    kind=Kind.RESIDUAL,
    left="largest difference between ∫∇·v along the flow (exact trace) and the closed form",
    applies=Setting.has_density,
)
def flow_likelihood_is_exact(setting: Setting) -> Outcome:
    """Checks the likelihood with the mixture at ``T`` as prior."""
    x = noising_states(setting, (), "likelihood")[0][:POINTS]
    found = log_likelihood(bridge_until(setting, setting.horizon), x, method=DormandPrince(1e-9, 1e-9))
    exact = setting.exact.log_density(0.0, x)
    return Outcome(float((found.values - exact).abs().max()), allowance=1e-6, note=f"{found.evaluations} evaluations")


@reversal_identity(
    statement="Hutchinson's divergence estimator gives an unbiased log-likelihood",
    equation="Song et al. 2021, arXiv:2011.13456, eq. (40); Grathwohl et al. 2019",
    kind=Kind.EQUALITY,
    left="mean log-likelihood with one Rademacher probe per path",
    right="mean log density of the same points in closed form",
    applies=lambda setting: setting.has_density() and setting.dim > 1,
)
def hutchinson_likelihood_is_unbiased(setting: Setting) -> Outcome:
    """Compares both sides at the same points."""
    x = noising_states(setting, (), "hutchinson")[0]
    found = log_likelihood(
        bridge_until(setting, setting.horizon),
        x,
        method=DormandPrince(1e-5, 1e-5),
        divergence=Hutchinson(),
        seed=setting.seed_of("probes"),
    )
    exact = setting.exact.log_density(0.0, x)
    return Outcome.paired(found.values - exact, exact, 1e-4, "allowance: tolerance of the flow")
