"""Exact draws of the noising process at chosen times, and the bridge and test functions of the kernel identities."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sbridge.controls.base import Time
from sbridge.diffusion.reverse import end_distribution, reverse_diffusion
from sbridge.identities.settings import Setting
from sbridge.laws import Samples
from sbridge.linear import LinearMap
from sbridge.processes import LinearProcess, Transition
from sbridge.random import derive, generator
from sbridge.solutions import Bridge

POINTS = 32
"""Number of points at which a residual is computed."""
SPANS = ((0.1, 0.5), (0.25, 0.3))
"""A long and a short step back, as fractions of the horizon."""


@dataclass(frozen=True, eq=False)
class _Truncated(LinearProcess):
    """A process with an earlier horizon, at which samplers start."""

    process: LinearProcess
    horizon: float

    @property
    def dim(self) -> int | None:
        return self.process.dim

    def linear(self, t: Time) -> LinearMap:
        return self.process.linear(t)

    def offset(self, t: Time) -> Tensor:
        return self.process.offset(t)

    def scale(self, t: Time) -> LinearMap:
        return self.process.scale(t)

    def transition(self, s: Time, t: Time) -> Transition:
        return self.process.transition(s, t)


def bridge_until(setting: Setting, horizon: float) -> Bridge:
    """Makes the reverse diffusion with the true score from ``horizon`` on; data with a density have an exact prior."""
    process = _Truncated(setting.process, horizon)
    prior = setting.exact.marginal(horizon) if setting.has_density() else None
    return reverse_diffusion(process, setting.data, setting.exact, prior=prior)


def bridge_of_one_point(setting: Setting, point: Tensor, horizon: float) -> Bridge:
    """Makes the reverse diffusion of the noising of one ``point``, shape ``(1, dim)``, from ``horizon`` on."""
    process, twice = _Truncated(setting.process, horizon), Samples(torch.cat([point, point]))
    prior = end_distribution(process, twice)
    return reverse_diffusion(
        process, twice, lambda t, x: process.conditional_score(t, x, point.expand_as(x)), prior=prior
    )


def spans(setting: Setting) -> list[tuple[float, float]]:
    """Returns :data:`SPANS` in the time unit of the process."""
    return [(s * setting.horizon, t * setting.horizon) for s, t in SPANS]


def span_note(setting: Setting, s: float, t: float) -> str:
    """Describes the span in words."""
    return f"from {t / setting.horizon:g} T to {s / setting.horizon:g} T"


def noising_states(setting: Setting, times: tuple[float, ...], stream: str, multiple: int = 1) -> list[Tensor]:
    """Draws ``multiple · samples`` exact paths of the noising process at 0 and at ``times``, float64."""
    g = generator(setting.seed_of("kernels", stream, *map(str, times)))
    x = setting.data.sample(multiple * setting.samples, g).double()
    states, before = [x], 0.0
    for t in times:
        step = setting.process.transition(before, t)
        x = step.mean(x) + step.root(torch.randn(x.shape, generator=g, dtype=torch.float64))
        states.append(x)
        before = t
    return states


def noise_knots(setting: Setting, steps: int) -> Tensor:
    """Returns ``steps + 1`` knots from 0 to the horizon, denser where noise replaces the state faster."""
    fine = torch.linspace(0.0, setting.horizon, 1025, dtype=torch.float64)
    step = setting.process.transition(0.0, fine[1:])
    width = setting.variance * step.map.mean_square(setting.dim) + step.root.mean_square(setting.dim)
    rate = setting.process.scale(fine[1:]).mean_square(setting.dim) / width
    share = torch.cat([rate.new_zeros(1), (3.0 * rate / rate.sum() + 1.0 / len(rate)).cumsum(0)])
    wanted = torch.linspace(0.0, float(share[-1]), steps + 1, dtype=torch.float64)[1:-1]
    inner = torch.from_numpy(np.interp(wanted.numpy(), share.numpy(), fine.numpy()))
    return torch.cat([fine[:1], inner, fine[-1:]])


def direction(setting: Setting) -> Tensor:
    """Returns a fixed unit vector."""
    g = generator(derive(20_261, "direction", setting.dim))
    e = torch.randn(setting.dim, generator=g, dtype=torch.float64)
    return e / e.norm()


def wave(setting: Setting, x: Tensor, number: int = 1) -> Tensor:
    """Computes ``cos(k·x/w + ¼π)`` with a fixed vector ``k`` of length ``number`` and the width ``w`` of the states."""
    width = x.detach().var(0).mean().sqrt()
    return torch.cos(number * (x @ direction(setting)) / width + 0.25 * math.pi)


def is_scalar(setting: Setting) -> bool:
    """Returns whether noise acts equally on every coordinate."""
    law = setting.process.transition(0.0, setting.horizon)
    return law.map.dim is None and law.covariance.dim is None
