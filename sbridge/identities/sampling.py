"""Samplers, Langevin dynamics, guidance and training objectives, called as users call them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from sbridge.diffusion.conversions import Score
from sbridge.diffusion.ddpm import DiscreteDenoising, StepVariance
from sbridge.diffusion.exact import ExactScore
from sbridge.diffusion.guidance import GuidedScore, LinearObservation, conditioned
from sbridge.diffusion.objectives import Action, Denoising, Implicit, ScoreObjective
from sbridge.diffusion.reverse import moments
from sbridge.diffusion.samplers import (
    AncestralSampler,
    FlowSampler,
    PredictorCorrector,
    Sampler,
    StochasticSampler,
    StopEarly,
    langevin,
)
from sbridge.identities.base import Kind, Outcome, identity
from sbridge.identities.kernels import is_ddpm
from sbridge.identities.settings import Setting
from sbridge.identities.tools.components import Components, Waves
from sbridge.identities.tools.derivatives import gradient
from sbridge.identities.tools.monte_carlo import explicit, scores_to_check, with_exact_rows
from sbridge.identities.tools.noising import (
    POINTS,
    bridge_of_one_point,
    bridge_until,
    direction,
    noising_states,
    span_note,
    spans,
)
from sbridge.laws import Gaussian
from sbridge.measures import Estimate
from sbridge.measures.measure import noise_for
from sbridge.processes import EulerMaruyama
from sbridge.random import generator
from sbridge.time import TimeGrid

reversal_identity = partial(identity, group="reversal")
action_identity = partial(identity, group="action")
_STEPS = (16, 32)
_SAMPLES = 2000
_STEP_SIZES = (0.1, 0.05)
_BATCHES, _ROWS = 16, 256

_SAMPLERS: dict[str, Callable[[TimeGrid], Sampler]] = {
    "StochasticSampler": lambda grid: StochasticSampler(grid=grid, last=StopEarly()),
    "StochasticSampler, Euler–Maruyama": lambda grid: StochasticSampler(EulerMaruyama(), grid, StopEarly()),
    "AncestralSampler": lambda grid: AncestralSampler(grid=grid, last=StopEarly()),
    "PredictorCorrector": lambda grid: PredictorCorrector(step_size=0.02, grid=grid, last=StopEarly()),
    "FlowSampler": lambda grid: FlowSampler(grid=grid, last=StopEarly()),
}


@reversal_identity(
    statement="every sampler of the reverse diffusion has the marginals of the noising process",
    equation="Anderson 1982; Song et al. 2021, arXiv:2011.13456; Ho et al. 2020",
    kind=Kind.EQUALITY,
    left="means over samples, from exact draws at T/2 to T/10 with the true score; the steps are halved",
    right="characteristic function of the noised data",
)
def samplers_return_the_noised_data(setting: Setting) -> Iterator[Outcome]:
    """Runs each sampler with 16 and 32 steps, equal in the logarithm of time."""
    s, t = spans(setting)[0]
    x, bridge = noising_states(setting, (t,), "samplers")[1][:_SAMPLES], bridge_until(setting, t)
    law = Components.of(setting.data).moved(setting.process.transition(0.0, s))
    waves = Waves.drawn(setting.dim, law.width)
    grids = [TimeGrid((0.0, *((s / t) ** (1.0 - k / n) for k in range(n)), 1.0)) for n in _STEPS]
    for name, make in _SAMPLERS.items():
        seeds = (setting.seed_of("sampler", name, n) for n in _STEPS)
        levels = [waves(make(grid)(bridge, x, seed=seed)) for grid, seed in zip(grids, seeds, strict=True)]
        yield Outcome.refined(levels, law.expected(waves), f"waves, {name}")


@reversal_identity(
    statement="an ancestral step of any length with the posterior variance reverses the noising of one point",
    equation="Ho et al. 2020, §3.2; Premkumar 2023, eq. (4.1)–(4.3)",
    kind=Kind.EQUALITY,
    left="whitened states after the step, and whitened increments to the states before it",
    right="mean square 1, as for the noising process",
)
def ancestral_step_of_one_point_is_exact(setting: Setting) -> Iterator[Outcome]:
    """Checks the marginal distribution at the end of a step, and the joint distribution at both of its ends."""
    point = setting.data.sample(1, generator(setting.seed_of("point"))).double()
    for s, t in spans(setting):
        whole, step = (setting.process.transition(r, t) for r in (0.0, s))
        start = setting.process.transition(0.0, s)
        draws = generator(setting.seed_of("one point", str(t)))
        noise = torch.randn(setting.samples, setting.dim, generator=draws, dtype=torch.float64)
        x = whole.mean(point) + whole.root(noise)
        sampler = AncestralSampler(StepVariance.POSTERIOR, TimeGrid((0.0, s / t, 1.0)), StopEarly())
        bridge = bridge_of_one_point(setting, point, t)
        found = sampler(bridge, x, seed=setting.seed_of("ancestral step", str(s)))
        for what, white in (
            ("states", start.root.inverse()(found - start.mean(point))),
            ("increments", step.root.inverse()(x - step.mean(found))),
        ):
            square = Estimate.of(white.square().mean(1))
            yield Outcome(square.value, 1.0, square.standard_error, note=f"{what}, {span_note(setting, s, t)}")


@reversal_identity(
    statement="a Langevin step changes means over ρ_t by o(h)",
    equation="Premkumar 2023, eq. (4.17)",
    kind=Kind.EQUALITY,
    left="mean of ψ(x after a step) − ψ(x) over h, less its term of first order in the noise; extrapolated to h = 0",
)
def langevin_step_keeps_the_law(setting: Setting) -> Iterator[Outcome]:
    """Runs :func:`~sbridge.diffusion.langevin` from exact draws at ``T/10``, with the same noise for two step sizes."""
    t = 0.1 * setting.horizon
    x = noising_states(setting, (t,), "langevin", 16)[1]
    law, seed = setting.process.transition(0.0, t), setting.seed_of("langevin noise")
    seen = Components.of(setting.data).moved(law)
    step = law.root(noise_for(x, 1, seed).step(0))
    moved = {
        h: langevin(setting.process, setting.exact, t, x, step_size=h, steps=1, seed=seed).detach() for h in _STEP_SIZES
    }

    def square(x: Tensor) -> Tensor:
        return 0.5 * (x - seen.mean()).square().sum(1) / seen.width**2

    for note, test in (("square", square), ("waves", Waves.drawn(setting.dim, seen.width))):
        free = x.detach().requires_grad_()
        slope = gradient(test(free), free).detach()
        coarse, fine = ((test(moved[h]) - test(x) - math.sqrt(h) * (step * slope).sum(1)) / h for h in _STEP_SIZES)
        unit = float((law.covariance(slope) * slope).sum(1).mean()) ** 0.5  # so that the left side has no unit
        found, change = Estimate.of((2.0 * fine - coarse) / unit), abs(float((fine - coarse).mean())) / unit
        yield Outcome(found.value, 0.0, found.standard_error, change, note)


@reversal_identity(
    statement="the guided score of Gaussian data is the score of the conditional distribution",
    equation="Song et al. 2023 (ΠGDM); Boys et al. 2023, arXiv:2310.06721",
    kind=Kind.RESIDUAL,
    left="largest relative difference between guidance by Tweedie's covariance and the score of X_0 | y in closed form",
)
def guided_score_of_a_gaussian_is_exact(setting: Setting) -> Iterator[Outcome]:
    """Observes one direction with noise, for a Gaussian with the moments of the data."""
    mean, covariance = (part.double() for part in moments(setting.data))
    data, seen = Gaussian(mean, covariance), direction(setting)[None]
    spread = float(seen @ covariance @ seen.mT) ** 0.5
    observation, y = LinearObservation(seen, 0.5 * spread), seen @ mean + spread
    wanted = ExactScore(setting.process, conditioned(data, observation, y))
    guided = GuidedScore(setting.process, ExactScore(setting.process, data), observation, y[None])
    for share in (0.1, 0.5):
        t = share * setting.horizon
        x = noising_states(setting, (t,), "guidance")[1][:POINTS]
        with torch.no_grad():
            gap = (guided(t, x) - wanted(t, x)).abs().max() / wanted(t, x).abs().mean()
        yield Outcome(float(gap), allowance=1e-6, note=f"t = {share:g} T")


@action_identity(
    statement="each training objective exceeds its value at the true score by ½∫ g² E|s_θ − ∇log ρ|² ds",
    equation="Premkumar 2023, eq. (3.36), (3.43), (4.16); Vincent 2011; Hyvärinen 2005",
    kind=Kind.EQUALITY,
    left="mean over random batches of the objective of s_θ minus that of the true score, with the same draws",
    right="closed-form scores at random times",
)
def training_objectives_are_score_matching(setting: Setting) -> Iterator[Outcome]:
    """Checks the objectives that train networks; those with a grid are extrapolated to step 0."""
    setting = with_exact_rows(setting)
    for note, score in scores_to_check(setting):
        right = explicit(setting, score, "objectives", note, target=3.0)
        for name, levels in _objectives(setting).items():
            coarse, fine = (_excess(setting, levels[k], score, f"{name}, {note}, {k}") for k in (0, -1))
            left, change = fine, 0.0
            if len(levels) > 1:  # the error of steps is of first order
                error = math.hypot(2.0 * fine.standard_error, coarse.standard_error)
                left, change = Estimate(2.0 * fine.value - coarse.value, error, fine.samples), fine.value - coarse.value
            yield Outcome.of(left, right, abs(change), f"{name}, {note}")


def _objectives(setting: Setting) -> dict[str, tuple[ScoreObjective, ...]]:
    found: dict[str, tuple[ScoreObjective, ...]] = {
        "Denoising": (Denoising(),),
        "Implicit": (Implicit(),),
        "Action": tuple(Action(steps, _ROWS) for steps in (40, 80)),
    }
    if is_ddpm(setting):
        share = setting.start_time
        grids = [TimeGrid((0.0, *(share ** (1.0 - k / n) for k in range(n)), 1.0)) for n in (200, 400)]
        found["DiscreteDenoising"] = tuple(DiscreteDenoising(grid, StepVariance.FORWARD) for grid in grids)
    return found


def _excess(setting: Setting, objective: ScoreObjective, score: Score, stream: str) -> Estimate:
    """Estimates the objective of ``score`` minus that of the true score."""
    values = []
    for part in range(_BATCHES):
        start = setting.data.sample(_ROWS, generator(setting.seed_of("rows", stream, part))).double()
        there, here = (
            objective(setting.process, one, start, setting.s_min, generator(setting.seed_of("draws", stream, part)))
            for one in (score, setting.exact)
        )
        values.append(float(there.detach() - here.detach()))
    return Estimate.of(Tensor(values).double())
