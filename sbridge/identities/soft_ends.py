"""Ends that may change at a price: the plan of points, the closed form of Gaussians, and the bridge that is left."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
import torch

from sbridge.diffusion.reverse import moments
from sbridge.exact import SoftGaussianCoupling, balanced
from sbridge.identities.base import Kind, Outcome, identity
from sbridge.identities.equations import log_mehler
from sbridge.identities.killing import Well
from sbridge.identities.settings import Setting
from sbridge.identities.tools.monte_carlo import width
from sbridge.identities.tools.noising import noising_states
from sbridge.laws import Gaussian, Samples
from sbridge.pde import Grid, log_density_on, solve_killed
from sbridge.problems import BridgeProblem, SoftEnds
from sbridge.time import TimeGrid
from sbridge.transport import EntropicProblem, Sinkhorn, sinkhorn, unbalanced

schroedinger_identity = partial(identity, group="Schrödinger")
_CHIZAT = "Chizat, Peyré, Schmitzer & Vialard 2018, arXiv:1607.05816"
_PENALTIES = (2.0, 0.7)
_CELLS, _REACH = 160, 7.0


@schroedinger_identity(
    statement="min KL(P ‖ R) + λ₀KL(P_0 ‖ p_0) + λ_T KL(P_T ‖ p_T) is the bridge between its own ends",
    equation=_CHIZAT,
    kind=Kind.RESIDUAL,
    left="L1 distance of the unbalanced plan, normalised, from the balanced plan between the ends of `balanced`",
)
def soft_ends_are_a_bridge_between_other_ends(setting: Setting) -> Outcome:
    """Checks data points and states of other paths, 40 each."""
    process, horizon = setting.process, setting.horizon
    x, y = noising_states(setting, (), "soft")[0][:40], noising_states(setting, (horizon,), "soft ends")[1][:40]
    problem = BridgeProblem(Samples(x), Samples(y), process, balance=SoftEnds(*_PENALTIES))
    ends = balanced(problem)
    law = process.transition(0.0, horizon)
    near, far = law.root.inverse()(law.mean(x)), law.root.inverse()(y)
    plan = unbalanced(EntropicProblem(near, far, 1.0), *_PENALTIES, tolerance=1e-9).plan
    weights = [end.weights for end in (ends.source, ends.target) if isinstance(end, Samples)]
    hard = sinkhorn(EntropicProblem(near, far, 1.0, a=weights[0], b=weights[1]), Sinkhorn(tolerance=1e-9)).plan()
    return Outcome(float((plan / plan.sum() - hard).abs().sum()), allowance=1e-5)


@schroedinger_identity(
    statement="soft ends between Gaussians have Gaussian answers in closed form",
    equation="Janati, Muzellec, Peyré & Cuturi 2020, arXiv:2006.02572",
    kind=Kind.RESIDUAL,
    left="largest difference of means and standard deviations from those of the unbalanced plan on a fine grid",
    applies=lambda setting: setting.dim == 1,
)
def soft_ends_of_gaussians_are_closed_form(setting: Setting) -> Iterator[Outcome]:
    """Checks Gaussians with the moments of the data and, at the other end, a mean that noising does not reach."""
    process, law = setting.process, setting.process.transition(0.0, setting.horizon)
    mean, covariance = (one.double() for one in moments(setting.data))
    width = float(covariance + law.map.values**-2 * law.covariance.values) ** 0.5 * float(law.map.values)
    source, target = Gaussian(mean, covariance), Gaussian(law.mean(mean[None])[0] + width, covariance + width**2)
    closed = SoftGaussianCoupling(source, target, process, SoftEnds(*_PENALTIES), power=1.0)
    places = [
        end.mean + end.covariance.sqrt() * torch.linspace(-_REACH, _REACH, _CELLS, dtype=torch.float64)[:, None]
        for end in (source, target)
    ]
    weights = [torch.softmax(end.log_density(x), 0) for end, x in zip((source, target), places, strict=True)]
    near, far = law.root.inverse()(law.mean(places[0])), law.root.inverse()(places[1])
    plan = unbalanced(EntropicProblem(near, far, 1.0, a=weights[0], b=weights[1]), *_PENALTIES, tolerance=1e-9).plan
    for note, x, share, end in zip(("source", "target"), places, (plan.sum(1), plan.sum(0)), closed.ends, strict=True):
        share = share / share.sum()
        centre = share @ x
        spread = (share @ (x - centre).square()).sqrt()
        std = end.covariance.sqrt().flatten()
        gap = torch.maximum((centre - end.mean).abs(), (spread - std).abs()) / std
        yield Outcome(float(gap), allowance=1e-6, note=note)


@schroedinger_identity(
    statement="a bridge to the survivors of a killed process is that process: x dies with 1 − E[e^{−∫V dt} | X_0 = x]",
    equation="Chen, Georgiou & Pavon 2021, arXiv:2108.02879; Cameron & Martin 1945",
    kind=Kind.EQUALITY,
    left="mean probability of death times cos of the start, from the killed bridge solved by finite volumes",
    right="the same from the closed form of a quadratic well; survivors by quadrature with Mehler's kernel",
    applies=Setting.has_density_on_line,
)
def bridge_to_the_own_survivors_is_the_killed_process(setting: Setting) -> Outcome:
    """Solves on two grids; the allowance is the change of the left side."""
    well, centre, wide = Well.of(setting), float(Well.of(setting).centre), width(setting)
    values, wanted = [], 0.0
    for cells, steps in ((120, 24), (240, 48)):
        grid = Grid.of(centre - 7.0 * wide, centre + 7.0 * wide, cells)
        x = grid.points
        start = np.exp(log_density_on(setting.data, grid))
        moved, whole = x - centre, torch.tensor(well.horizon, dtype=torch.float64)
        pairs = log_mehler(well, whole, moved.repeat_interleave(cells, 0), moved.repeat(cells, 1))
        living = start @ pairs.exp().reshape(cells, cells).numpy() * grid.volume
        survival = grid.integrate(living)
        ends, times = (start, living / survival), TimeGrid.uniform(steps)
        found = solve_killed(well.process, *ends, grid, rate=well.rate, survival=survival, times=times)
        test = start * np.cos(2.0 * (grid.centres[0] - centre) / wide)
        values.append(grid.integrate(test * found.death_probability))
        wanted = grid.integrate(test * grid.field(1.0 - well.log_mass(x).exp()))
    return Outcome(values[1], wanted, allowance=abs(values[1] - values[0]))
