"""The reverse process: its marginals, its joint distribution at two times, and dynamics that do not reverse."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from torch import Tensor

from sbridge.controls.base import Time
from sbridge.diffusion.conversions import ScoreControl, mean_field_drift
from sbridge.diffusion.reverse import reverse_diffusion
from sbridge.diffusion.samplers import denoised
from sbridge.identities.base import Kind, Outcome, identity
from sbridge.identities.settings import Setting
from sbridge.identities.tools.components import Components, Waves
from sbridge.identities.tools.line import mean_and_std
from sbridge.identities.tools.reverse_paths import Reversal, exactly_reversed, flowed, noised, observed_times, run_back
from sbridge.measures import Estimate
from sbridge.pde import Grid, heat_kernel, heat_spectral
from sbridge.random import generator

reversal_identity = partial(identity, group="reversal")
_ANDERSON = "Anderson 1982; Premkumar 2023, eq. (3.35)"
_CAO = "Cao et al. 2025"
_CELLS = 128


def _is_line(setting: Setting) -> bool:
    return setting.dim == 1


@reversal_identity(
    statement="the reverse SDE has the marginals of the noising process",
    equation=_ANDERSON,
    kind=Kind.EQUALITY,
    left="means over simulated reverse paths",
    right="characteristic function of the noised data; mean log density of exact draws",
)
def reverse_sde_marginals(setting: Setting) -> Iterator[Outcome]:
    """Compares the marginals at ``T/2``, ``T/10`` and ``s_min``."""
    return _marginals(setting, *exactly_reversed(setting))


@reversal_identity(
    statement="the probability-flow ODE has the marginals of the noising process",
    equation="Song et al. 2021, arXiv:2011.13456; Nelson 1966",
    kind=Kind.EQUALITY,
    left="means over the flow of exact draws of X_T",
    right="characteristic function of the noised data; mean log density of exact draws",
)
def ode_marginals(setting: Setting) -> Iterator[Outcome]:
    """Compares the marginals at ``T/2``, ``T/10`` and ``s_min``."""
    return _marginals(setting, *flowed(setting))


@reversal_identity(
    statement="the reverse SDE has the joint distribution of the noising process at two times",
    equation="Anderson 1982, for path measures",
    kind=Kind.EQUALITY,
    left="whitened increments of simulated reverse paths",
    right="mean square 1; characteristic function of the state with independent noise",
)
def two_times_of_the_sde(setting: Setting) -> Iterator[Outcome]:
    """Checks that ``L⁻¹(X_t − Φ X_s − k)`` is standard normal and independent of ``X_s``."""
    coarse, fine = exactly_reversed(setting)
    pairs = [_increments(setting, one) for one in (coarse, fine)]
    squares = [noise.square().mean(1) for _, noise in pairs]
    yield Outcome.refined(squares, 1.0, "mean square of increments, T/10 → T/2")
    before = Components.of(setting.data).moved(setting.process.transition(0.0, coarse.times[2]))
    joint, waves = before.rescaled(1.0 / before.width).beside_noise(), Waves.drawn(2 * setting.dim, 1.0)
    seen = [waves(torch.cat([x / before.width, noise], 1)) for x, noise in pairs]
    yield Outcome.refined(seen, joint.expected(waves), "waves in state and increment")


@reversal_identity(
    statement="the probability-flow ODE has a different joint distribution at two times",
    equation="Song et al. 2021, arXiv:2011.13456: marginals only",
    kind=Kind.DIFFERENCE,
    left="mean square of whitened increments along the flow",
    right="1, as for the noising process",
)
def two_times_of_the_ode(setting: Setting) -> Outcome:
    """Checks that the flow has no noise between two times."""
    _, noise = _increments(setting, flowed(setting)[1])
    found = Estimate.of(noise.square().mean(1))
    return Outcome(found.value, 1.0, found.standard_error, note="mean square of increments, T/10 → T/2")


@reversal_identity(
    statement="the noising SDE run backwards without the score does not return the data distribution",
    equation=f"Premkumar 2023, eq. (3.35) without the score; {_CAO}",
    kind=Kind.DIFFERENCE,
    left="fraction of simulated ends where the density at s_min is below its 5 % quantile",
    right="the same fraction of exact draws",
)
def naive_reversal(setting: Setting) -> Iterator[Outcome]:
    """Runs paths back without the score, with drift ``−b`` and with drift ``+b``."""
    start, process = noised(setting, setting.horizon, "start"), setting.process

    def forward_drift(t: Time, x: Tensor) -> Tensor:
        return 2.0 * process.scale(t).inverse().to(x)(process.drift(t, x))

    for control, note in ((None, "drift −b"), (forward_drift, "drift +b")):
        back = run_back(setting, control, start, note)[1]
        yield _unlikely(setting, back.states[-1], noised(setting, setting.s_min, "control"), note)


@reversal_identity(
    statement="the backward heat equation amplifies mode k by e^{σ²k²t/2}, so its solution is not a density",
    equation=f"Premkumar 2023, eq. (2.7), run back; {_CAO}",
    kind=Kind.RESIDUAL,
    left="log growth of a ripple over σ²k²t/2, minus 1; Gaussian kernels on a circle, inverted as a matrix",
    applies=_is_line,
)
def backward_heat_amplifies(setting: Setting) -> Iterator[Outcome]:
    """Runs a Gaussian with a small ripple back; the ripple has a ten thousandth of the mean height.

    σ = 1, and in the time ``t`` the kernel becomes 1.25 cells wide; ``k`` is at most half the highest of the grid.
    """
    centre, width = mean_and_std(setting, 1.0)
    grid = Grid.of(centre - 6.0 * width, centre + 6.0 * width, _CELLS)
    duration = (1.25 * grid.widths[0]) ** 2
    thrice = Grid.of(centre - 18.0 * width, centre + 18.0 * width, 3 * _CELLS)  # three periods of the circle
    spread = [heat_kernel(thrice, np.tile(one, 3), 1.0, duration)[_CELLS : 2 * _CELLS] for one in np.eye(_CELLS)]
    kernel = np.stack(spread, 1)
    law = np.exp(-0.5 * ((grid.centres[0] - centre) / width) ** 2)
    for cycles in (_CELLS // 16, _CELLS // 8, _CELLS // 4):
        k = 2.0 * math.pi * cycles / (_CELLS * grid.widths[0])
        ripple = 1e-4 * law.mean() * np.cos(k * (grid.centres[0] - centre))
        grown = np.linalg.solve(kernel, kernel @ law + ripple) - law
        growth = math.log(float(grown @ ripple) / float(ripple @ ripple))
        lowest = float((law + grown).min() / law.max())
        note = f"{cycles} waves in {_CELLS} cells; lowest value / highest: {lowest:.1e}"
        yield Outcome(growth / (0.5 * k**2 * duration) - 1.0, allowance=1e-6, note=note)
        back = heat_spectral(grid, kernel @ law + ripple, 1.0, -duration)
        gap = np.abs(back - law - grown).max() / np.abs(grown).max()
        yield Outcome(float(gap), allowance=1e-6, note=f"heat_spectral, {cycles} waves")


@reversal_identity(
    statement="the conditional density of X_s given X_t = y is the transition density of the reverse process",
    equation=f"{_CAO}, theorem 1",
    kind=Kind.EQUALITY,
    left="means over reverse paths from y",
    right="Bayes' formula for the noising process",
)
def past_is_future(setting: Setting) -> Iterator[Outcome]:
    """Runs paths from two states ``y`` at ``T/2`` back to ``T/10``."""
    control, (t, s) = ScoreControl(setting.process, setting.exact), observed_times(setting)[1:3]
    before = Components.of(setting.data).moved(setting.process.transition(0.0, s))
    for place, y in enumerate(noised(setting, t, "y")[:2]):
        law = before.given(setting.process.transition(s, t), y)
        waves, rows = Waves.drawn(setting.dim, law.width), y.expand(setting.samples, -1)
        ends = [one.states[1] for one in run_back(setting, control, rows, f"past {place}", first=1)]
        note = f"y number {place + 1}, T/2 → T/10"
        yield Outcome.refined([waves(x) for x in ends], law.expected(waves), f"waves, {note}")
        squares = [(x - law.mean()).square().mean(1) / law.width**2 for x in ends]
        yield Outcome.refined(squares, 1.0, f"variance, {note}")


@reversal_identity(
    statement="the reverse drift from the score equals the reverse drift from E[X_0 | X_t]",
    equation=f"{_CAO}; Efron 2011",
    kind=Kind.RESIDUAL,
    left="largest relative difference from Bayes' formula: of Tweedie's mean, and of −b + σσᵀ∇log ρ",
)
def score_form_is_mean_field_form(setting: Setting) -> Iterator[Outcome]:
    """Compares both forms at three times, at points of the noised distribution."""
    process, data = setting.process, Components.of(setting.data)
    bridge = reverse_diffusion(process, setting.data, setting.exact)
    for t in observed_times(setting)[1:]:
        x = noised(setting, t, "points")[:32].requires_grad_()
        (gradient,) = torch.autograd.grad(setting.exact.log_density(t, x).sum(), x)
        x, scale, step = x.detach(), process.scale(t), process.transition(0.0, t)
        by_score = (scale @ scale.T)(gradient) - process.drift(t, x)
        starts = torch.stack([data.given(step, row).mean() for row in x])
        tweedie = float((denoised(bridge, t, x) - starts).abs().max() / data.width)
        yield Outcome(tweedie, allowance=1e-6, note=f"E[X_0 | X_t] of the bridge, t = {t / setting.horizon:g} T")
        gap = mean_field_drift(process, t, x, starts) - by_score
        relative = float(gap.norm(dim=1).max() / by_score.norm(dim=1).mean())
        yield Outcome(relative, allowance=1e-6, note=f"drifts, t = {t / setting.horizon:g} T")


@reversal_identity(
    statement="log φ(0, y) = log φ(T, Y) − ∫(½|u|² + ∇·b) − ∫u·dW on every path of the reverse SDE",
    equation="Premkumar 2023, eq. (3.24)–(3.26), Itô's formula",
    kind=Kind.EQUALITY,
    left="mean of the right-hand side along simulated reverse paths",
    right="mean of log ρ_T at the starts of the paths",
)
def pathwise_value(setting: Setting) -> Outcome:
    """Compares both sides on the same paths."""
    coarse, fine = (_pathwise_gap(setting, back) for back in exactly_reversed(setting))
    start = setting.exact.log_density(setting.horizon, exactly_reversed(setting)[1].states[0])
    allowance = abs(float((fine - coarse).mean()))  # the error of either is of first order in the step
    return Outcome.paired(2.0 * fine - coarse, start, allowance, "φ at T is ρ at s_min; extrapolated")


@reversal_identity(
    statement="both sides of pathwise_value agree on every path as the time step tends to 0",
    equation="Premkumar 2023, eq. (3.24)–(3.26), Itô's formula",
    kind=Kind.ORDER,
    left="order in the step of the standard deviation of their difference",
    right="½, as for Itô integrals of a smooth control",
)
def pathwise_variance(setting: Setting) -> Outcome:
    """Checks that the standard deviation of the difference falls like the square root of the step."""
    coarse, fine = (float(_pathwise_gap(setting, back).std()) for back in exactly_reversed(setting))
    return Outcome(math.log2(coarse / fine), 0.5, allowance=0.25, note=f"standard deviation {fine:.3g} nat at last")


def _has_equilibrium(setting: Setting) -> bool:
    return _equilibrium(setting) is not None


@reversal_identity(
    statement="the equilibrium of the noising process is not an equilibrium of the reverse dynamics",
    equation=_CAO,
    kind=Kind.DIFFERENCE,
    left="fraction of simulated ends where the density at s_min is below its 5 % quantile",
    right="the same fraction of draws of the equilibrium",
    applies=_has_equilibrium,
)
def equilibrium_is_left(setting: Setting) -> Iterator[Outcome]:
    """Runs reverse dynamics from the equilibrium at ``T/2``."""
    law = _equilibrium(setting)
    if law is None:
        return
    mean, std = law
    g = generator(setting.seed_of("equilibrium"))
    draws = mean + std * torch.randn(2, setting.samples, setting.dim, generator=g, dtype=torch.float64)
    control = ScoreControl(setting.process, setting.exact)
    back = run_back(setting, control, draws[0], "equilibrium", first=1)[1]
    yield _unlikely(setting, back.states[-1], draws[1], "N(m, κ² I) from T/2 to s_min")


def _equilibrium(setting: Setting) -> tuple[Tensor, Tensor] | None:
    """Returns mean and standard deviations of the stationary distribution, if it exists with independent axes."""
    whole, half = (setting.process.transition(0.0, f * setting.horizon) for f in (1.0, 0.5))
    if whole.map.dense or whole.covariance.dense:
        return None
    phi = whole.map.values
    if not bool((phi.abs() < 1.0).all()):
        return None
    mean, variance = whole.offset / (1.0 - phi), whole.covariance.values / (1.0 - phi.square())
    kept = half.map.values * mean + half.offset, half.map.values.square() * variance + half.covariance.values
    if not (torch.allclose(kept[0], mean) and torch.allclose(kept[1], variance)):
        return None
    return mean, variance.sqrt()


def _marginals(setting: Setting, coarse: Reversal, fine: Reversal) -> Iterator[Outcome]:
    data = Components.of(setting.data)
    for place, t in list(enumerate(coarse.times))[1:]:
        label = f"t = {t / setting.horizon:g} T"
        law = data.moved(setting.process.transition(0.0, t))
        waves = Waves.drawn(setting.dim, law.width)
        states = coarse.states[place], fine.states[place]
        yield Outcome.refined([waves(x) for x in states], law.expected(waves), f"waves, {label}")
        allowance = abs(float((_log_density(setting, states[0], t) - _log_density(setting, states[1], t)).mean()))
        yield _log_densities(setting, states[1], t, f"log density, {label}", allowance)


def _log_density(setting: Setting, x: Tensor, t: float) -> Tensor:
    return setting.exact.log_density(t, x)


def _log_densities(setting: Setting, x: Tensor, t: float, note: str, allowance: float = 0.0) -> Outcome:
    """Compares ``E log ρ_t`` over ``x`` with the same over many exact draws."""
    left = Estimate.of(_log_density(setting, x, t))
    right = Estimate.of(_log_density(setting, noised(setting, t, "exact draws", multiple=4), t))
    return Outcome.of(left, right, allowance, note)


def _unlikely(setting: Setting, left: Tensor, right: Tensor, note: str) -> Outcome:
    """Compares the fractions of two point sets whose ``log ρ`` at ``s_min`` is below its 5 % quantile."""
    t = setting.s_min
    level = setting.exact.log_density(t, noised(setting, t, "exact draws", multiple=4)).quantile(0.05)
    low, other = (Estimate.of((setting.exact.log_density(t, x) < level).double()) for x in (left, right))
    return Outcome.of(low, other, note=note)


def _increments(setting: Setting, back: Reversal) -> tuple[Tensor, Tensor]:
    """Returns states at ``T/10``, and the standard normal noise between them and the states at ``T/2``."""
    (t, s), (y, x) = back.times[1:3], back.states[1:3]
    step = setting.process.transition(s, t)
    return x, step.root.inverse()(y - step.mean(x))


def _pathwise_gap(setting: Setting, back: Reversal) -> Tensor:
    end = setting.exact.log_density(setting.s_min, back.states[-1])
    return end - back.work - setting.exact.log_density(setting.horizon, back.states[0])
