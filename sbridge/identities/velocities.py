"""Nelson's velocities of a bridge against the moments of its marginals."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from sbridge.diffusion.reverse import end_distribution, moments
from sbridge.exact.gaussian import GaussianCoupling
from sbridge.fitting import solve
from sbridge.identities.base import Kind, Outcome, identity
from sbridge.identities.settings import Setting
from sbridge.laws import Gaussian
from sbridge.problems import BridgeProblem
from sbridge.random import generator
from sbridge.solvers import GaussianBridge

_POINTS = 32
_LARGEST = 64
_ALLOWANCE = 1e-5


@identity(
    group="Schrödinger",
    statement="½σ(u + û) = ½σσᵀ∇log p_t and b + ½σ(u − û) = ṁ + K(x − m), KP + PKᵀ = Ṗ, for p_t = N(m, P)",
    equation="Nelson 1966",
    kind=Kind.RESIDUAL,
    left="largest relative difference of the velocities, from both controls of a Gaussian bridge, and the fields "
    "of the moments of its marginals",
    applies=lambda setting: setting.dim <= _LARGEST,
)
def velocities_of_a_gaussian_bridge(setting: Setting) -> Iterator[Outcome]:
    """Checks both velocities of a bridge from the Gaussian of the data to another end than that of noising."""
    process, end = setting.process, end_distribution(setting.process, setting.data)
    mean, covariance = (one.double() for one in moments(setting.data))
    target = Gaussian(end.mean + 0.5 * covariance.diagonal().sqrt(), 0.6 * end.covariance)
    bridge = solve(BridgeProblem(Gaussian(mean, covariance), target, process), GaussianBridge(), seed=0)
    coupling = GaussianCoupling(mean, covariance, target.mean, target.covariance, process)
    g = generator(setting.seed_of("velocities"))
    for fraction in (0.3, 0.8):
        t, h = fraction * setting.horizon, 1e-4 * setting.horizon
        m, p = coupling.marginal(t)
        x = m + torch.randn(_POINTS, setting.dim, generator=g, dtype=torch.float64) @ torch.linalg.cholesky(p).mT
        scale = process.scale(t).expanded(setting.dim)
        expected = -0.5 * torch.linalg.solve(p, (x - m).mT).mT @ (scale @ scale.mT)
        gap = (bridge.osmotic_velocity(t, x) - expected).abs().max() / expected.abs().max()
        yield Outcome(float(gap), allowance=_ALLOWANCE, note=f"osmotic, t = {fraction:g} T")
        (before, narrow), (after, wide) = coupling.marginal(t - h), coupling.marginal(t + h)
        probes = torch.cat([torch.zeros(1, setting.dim, dtype=torch.float64), torch.linalg.cholesky(p).mT]) + m
        v = bridge.current_velocity(t, probes)
        mixed = torch.linalg.cholesky(p) @ (v[1:] - v[0])  # P Kᵀ, from a field that is affine in x
        rate = (wide - narrow) / (2 * h)
        gap = (mixed + mixed.mT - rate).abs().max() / rate.abs().max()
        drift = (v[0] - (after - before) / (2 * h)).abs().max() / v.abs().max()
        yield Outcome(float(torch.maximum(gap, drift)), allowance=_ALLOWANCE, note=f"current, t = {fraction:g} T")
