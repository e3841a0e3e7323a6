"""The score in physics: the force of an equilibrium, and the mean displacement of an experiment."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from sbridge.diffusion.exact import ExactScore
from sbridge.identities.base import Kind, Outcome, identity
from sbridge.identities.settings import Setting
from sbridge.identities.trails import (
    POINTS,
    divergence,
    gradient,
    is_scalar,
    trail,
    wave,
)
from sbridge.measures import Estimate
from sbridge.processes import BrownianMotion
from sbridge.random import generator

GROUP = "reversal"


@identity(
    group=GROUP,
    statement="the force ½σσᵀ∇log p keeps p in equilibrium",
    equation="Premkumar 2023, eq. (4.17)",
    kind=Kind.EQUALITY,
    left="mean over draws of p = ρ_{T/10} of ½ tr(σσᵀ∇²ψ) + force·∇ψ, ψ a wave",
    right="0",
)
def equilibrium_force_keeps_the_law(setting: Setting) -> Iterator[Outcome]:
    """Checks that the generator of Langevin's equation has mean zero under its equilibrium."""
    t = 0.1 * setting.horizon
    x, scale = trail(setting, (t,), "equilibrium", 32)[1], setting.process.scale(t)
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


@identity(
    group=GROUP,
    statement="the drift of a process that has an equilibrium is ½σσᵀ∇log p_eq",
    equation="Premkumar 2023, eq. (4.17)",
    kind=Kind.RESIDUAL,
    left="largest relative difference at points: drift against the stationary Gaussian of the transitions",
    right="0",
    applies=_has_equilibrium,
)
def drift_is_the_equilibrium_force(setting: Setting) -> Iterator[Outcome]:
    """Computes ``p_eq`` from ``m = Φm + k`` and ``P = Φ²P + Q`` and compares its force with the drift."""
    process, law = setting.process, setting.process.transition(0.0, setting.horizon)
    mean = law.offset / (1.0 - law.map.values)
    variance = law.covariance.values / (1.0 - law.map.values.square())
    for fraction in (0.1, 1.0):
        t = fraction * setting.horizon
        x = trail(setting, (t,), "force")[1][:POINTS].requires_grad_()
        force = 0.5 * process.scale(t).values.square() * gradient(-0.5 * (x - mean).square().sum(1) / variance, x)
        drift = process.drift(t, x)
        gap = (force - drift).abs().max() / drift.abs().mean()
        yield Outcome(float(gap.detach()), allowance=1e-9, note=f"t = {fraction:g} T")


@identity(
    group=GROUP,
    statement="noise and average: E[x_0 − x | x_0 + √v z = x] = v∇log ρ_v(x)",
    equation="Premkumar 2023, §4.3, eq. (4.20)",
    kind=Kind.EQUALITY,
    left="mean displacement of data moved to x by noise, weighted by its probability",
    right="log density of the noised data, differentiated",
)
def noise_and_average(setting: Setting) -> Iterator[Outcome]:
    """Compares both sides at two points, along the score there."""
    rows = trail(setting, (), "flux", 32)[0]
    v = float(rows.var(0).mean())
    noised = ExactScore(BrownianMotion(math.sqrt(v)), setting.data)
    g = generator(setting.seed_of("places"))
    for number in (1, 2):
        start = setting.data.sample(1, g).double()
        x = (start + math.sqrt(v) * torch.randn(start.shape, generator=g, dtype=torch.float64)).requires_grad_()
        score = gradient(noised.log_density(1.0, x), x).detach()
        x, along = x.detach(), (score / score.norm()).squeeze(0)
        weights = torch.softmax(-0.5 * (rows - x).square().sum(1) / v, 0)
        moved = (rows - x) @ along
        mean = float(weights @ moved)
        error = math.sqrt(float((weights * (moved - mean)).square().sum()))
        yield Outcome(mean, v * float(score.norm()), error, note=f"point {number}, v = {v:.3g}")
