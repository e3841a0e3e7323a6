"""The score in physics: the force of an equilibrium, and the mean displacement in noise-and-average."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial

import torch

from sbridge.diffusion.exact import ExactScore
from sbridge.diffusion.posterior import noise_and_average
from sbridge.identities.base import Kind, Outcome, identity
from sbridge.identities.settings import Setting
from sbridge.identities.tools.derivatives import divergence, gradient
from sbridge.identities.tools.noising import POINTS, is_scalar, noising_states, wave
from sbridge.measures import Estimate
from sbridge.processes import BrownianMotion
from sbridge.random import generator

reversal_identity = partial(identity, group="reversal")


@reversal_identity(
    statement="p is stationary under the force ½σσᵀ∇log p",
    equation="Premkumar 2023, eq. (4.17)",
    kind=Kind.EQUALITY,
    left="mean of ½ tr(σσᵀ∇²ψ) + force·∇ψ over draws of p = ρ_{T/10}, for cosine waves ψ",
)
def equilibrium_force_keeps_the_law(setting: Setting) -> Iterator[Outcome]:
    """Checks that the generator of the Langevin equation has mean zero under its stationary distribution."""
    t = 0.1 * setting.horizon
    x, scale = noising_states(setting, (t,), "equilibrium", 32)[1], setting.process.scale(t)
    a = scale @ scale.T
    for number in (1, 2):
        points = x.detach().requires_grad_()
        slope = gradient(wave(setting, points, number), points)
        generated = 0.5 * divergence(a(slope), points) + 0.5 * (a(setting.exact(t, x)) * slope).sum(1).detach()
        unit = float((a(slope) * slope).detach().sum(1).mean())  # so that the left side has no unit
        found = Estimate.of(generated.detach() / unit)
        yield Outcome(found.value, 0.0, found.standard_error, note=f"wave {number}")


def _has_equilibrium(setting: Setting) -> bool:
    return is_scalar(setting) and float(setting.process.transition(0.0, setting.horizon).map.values) < 1.0


@reversal_identity(
    statement="a process with the stationary density p_eq has the drift ½σσᵀ∇log p_eq",
    equation="Premkumar 2023, eq. (4.17)",
    kind=Kind.RESIDUAL,
    left="largest relative difference between the drift and the force of the stationary Gaussian",
    applies=_has_equilibrium,
)
def drift_is_the_equilibrium_force(setting: Setting) -> Iterator[Outcome]:
    """Computes ``p_eq`` from ``m = Φm + k`` and ``P = Φ²P + Q`` and compares its force with the drift."""
    process, law = setting.process, setting.process.transition(0.0, setting.horizon)
    mean = law.offset / (1.0 - law.map.values)
    variance = law.covariance.values / (1.0 - law.map.values.square())
    for fraction in (0.1, 1.0):
        t = fraction * setting.horizon
        x = noising_states(setting, (t,), "force")[1][:POINTS].requires_grad_()
        force = 0.5 * process.scale(t).values.square() * gradient(-0.5 * (x - mean).square().sum(1) / variance, x)
        drift = process.drift(t, x)
        gap = (force - drift).abs().max() / drift.abs().mean()
        yield Outcome(float(gap.detach()), allowance=1e-9, note=f"t = {fraction:g} T")


@reversal_identity(
    statement="noise and average: E[x_0 − x | x_0 + v z = x] = v²∇log ρ(x)",
    equation="Premkumar 2023, §4.3, eq. (4.20)",
    kind=Kind.EQUALITY,
    left="mean displacement of data points, weighted by the probability that noise moves them to x",
    right="gradient of the log density of the noised data",
)
def noise_averages_to_the_score(setting: Setting) -> Iterator[Outcome]:
    """Compares both sides at two points, along the score there."""
    rows = noising_states(setting, (), "flux", 32)[0]
    v = float(rows.var(0).mean())
    noised = ExactScore(BrownianMotion(math.sqrt(v)), setting.data)
    g = generator(setting.seed_of("places"))
    for number in (1, 2):
        start = setting.data.sample(1, g).double()
        x = start + math.sqrt(v) * torch.randn(start.shape, generator=g, dtype=torch.float64)
        free = x.requires_grad_()
        score = gradient(noised.log_density(1.0, free), free).detach()
        x, along = x.detach(), (score / score.norm()).squeeze(0)
        parts = torch.stack([noise_and_average(part, x, math.sqrt(v)) @ along for part in rows.chunk(32)])
        found = Estimate.of(parts[:, 0])
        yield Outcome(found.value, v * float(score.norm()), found.standard_error, note=f"point {number}, v² = {v:.3g}")
