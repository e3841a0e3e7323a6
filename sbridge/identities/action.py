"""The action is the score-matching loss: its gap by five routes, for fixed perturbations and for trained networks.

All of it along the reversal of the noising process from ``s_min`` to ``T``; a score ``s`` is judged against the true
``∇log ρ_t``, which is a closed form for Gaussian mixtures and for sets of points alike.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from sbridge.diffusion.conversions import Score, ScoreControl
from sbridge.diffusion.reverse import end_law
from sbridge.functionals import PathValues, action_difference
from sbridge.identities.base import Kind, Outcome, identity
from sbridge.identities.draws import (
    Noised,
    explicit,
    matched_grid,
    noising_paths,
    precise,
    read_backwards,
    with_few_points,
)
from sbridge.identities.settings import Perturbed, Setting
from sbridge.laws import Samples
from sbridge.measures import Direction, Estimate, PathMeasure, log_ratio
from sbridge.objectives import score_matching as losses
from sbridge.random import generator

GAP = 10.0
"""Nats of the fixed perturbation, where noise that does not depend on it has to be small beside it."""
_EXACT_TRACE = 8  # dimensions up to which divergences are exact traces
_BINS = 8


def judged(setting: Setting, gap: float = GAP) -> Iterator[tuple[str, Score]]:
    """The fixed perturbation, sized for ``gap`` nats, and the trained network if there is one."""
    yield f"fixed perturbation of {gap:g} nats", Perturbed.sized(setting, gap)
    if setting.network is not None:
        yield "trained network", setting.network


@identity(
    group="action",
    statement="S[p*, u] − S[p*, u*] = ½∫ g² E|s_θ − ∇log ρ|² ds",
    equation="Premkumar 2023, eq. (3.36)–(3.37)",
    kind=Kind.EQUALITY,
    left="the action with J = −log ρ, differentiated automatically, along noising paths",
    right="closed-form scores at random times",
)
def action_gap_is_explicit_score_matching(setting: Setting) -> Iterator[Outcome]:
    """The gap of the action is explicit score matching."""
    setting, few = with_few_points(setting)
    best = ScoreControl(setting.process, setting.exact)
    paths = noising_paths(setting, 40, setting.samples * 3 // 2)
    for note, score in judged(setting, 1.0):
        control = ScoreControl(setting.process, score)
        left = action_difference(paths, control, best, _log_field(setting), start_time=setting.s_min)
        yield _outcome(left.estimate, explicit(setting, score, note), note + few, left.allowance)


def _log_field(setting: Setting):  # noqa: ANN202
    def field(t: float | Tensor, x: Tensor) -> Tensor:
        return -setting.exact.log_density(t, x)

    return field


@identity(
    group="action",
    statement="E log dP*/dP^θ = ½∫ g² E|s_θ − ∇log ρ|² ds",
    equation="Premkumar 2023, eq. (3.19), (3.37); Girsanov",
    kind=Kind.EQUALITY,
    left="Girsanov's log ratio with its martingale term, noising paths read backwards, extrapolated in the step",
    right="closed-form scores at random times",
)
def path_kl_is_explicit_score_matching(setting: Setting) -> Iterator[Outcome]:
    """The pathwise KL is explicit score matching."""
    setting, few = with_few_points(setting)
    best = ScoreControl(setting.process, setting.exact)
    paths = noising_paths(setting, 80, 2 * setting.samples)
    levels = [read_backwards(paths, every) for every in (1, 2, 4)]
    for note, score in judged(setting):
        control = ScoreControl(setting.process, score)
        with torch.no_grad():
            one, two, four = (log_ratio(level, best, control).double() for level in levels)
        left = PathValues(2.0 * one - two, 2.0 * two - four)  # the chains' error is of first order in the step
        yield _outcome(left.estimate, explicit(setting, score, note), note + few, left.allowance)


@identity(
    group="action",
    statement="½∫ g² E|s_θ − ∇log p(X|X₀)|² ds − C = ½∫ g² E|s_θ − ∇log ρ|² ds, C free of θ",
    equation="Premkumar 2023, eq. (3.43); Vincent 2011",
    kind=Kind.EQUALITY,
    left="denoising targets and the constant, from s_min, at random times with opposite noises",
    right="closed-form scores, other draws",
)
def denoising_is_explicit_score_matching(setting: Setting) -> Iterator[Outcome]:
    """Denoising score matching less C is explicit score matching."""
    process, exact = setting.process, setting.exact
    for note, score in judged(setting):
        trained = score is setting.network

        def rows(one: Noised, score: Score = score, trained: bool = trained) -> Tensor:  # noqa: FBT001
            # For a network, whose gap may be small, C as it is estimated with least noise: the value at the true score.
            true = exact(one.t, one.x)
            if trained:
                constant = losses.denoising(process, one.t, true, one.noise)
            else:
                constant = losses.denoising_constant(process, one.t, one.noise, true)
            return one.weight * (losses.denoising(process, one.t, score(one.t, one.x), one.noise) - constant)

        left = precise(setting, lambda one, rows=rows: 0.5 * (rows(one) + rows(one.opposite)), "denoising", note)
        yield _outcome(left, explicit(setting, score, note), note + (", C as the loss of the true score" * trained))


@identity(
    group="action",
    statement="½∫ g² E|∇log p(X|X₀) − ∇log ρ|² ds = C = ½∫ g² (E|∇log p(X|X₀)|² − E|∇log ρ|²) ds",
    equation="Premkumar 2023, §3.5; Vincent 2011",
    kind=Kind.EQUALITY,
    left="the denoising loss of the true score",
    right="the two squares, that of the target from the transition's covariance",
)
def denoising_constant_is_the_loss_of_the_true_score(setting: Setting) -> Outcome:
    """C is what denoising score matching costs the true score."""
    process, exact = setting.process, setting.exact

    def loss(one: Noised) -> Tensor:
        return one.weight * losses.denoising(process, one.t, exact(one.t, one.x), one.noise)

    def constant(one: Noised) -> Tensor:
        return one.weight * (target_mean(setting, one) - losses.implicit_constant(process, one.t, exact(one.t, one.x)))

    left = precise(setting, loss, "loss", resolution=0.0, controls=implicit_controls(setting))
    return _outcome(left, precise(setting, constant, "constant", resolution=0.0, controls=implicit_controls(setting)))


@identity(
    group="action",
    statement="∫ E[½g²|s_θ|² + ∇·(g²s_θ)] ds less its value at ∇log ρ = ½∫ g² E|s_θ − ∇log ρ|² ds",
    equation="Hyvärinen 2005; Song et al. 2021, arXiv:2101.09258",
    kind=Kind.EQUALITY,
    left="divergences by automatic differentiation at random times",
    right="closed-form scores, other draws",
)
def implicit_is_explicit_score_matching(setting: Setting) -> Iterator[Outcome]:
    """Implicit score matching differs from explicit by what does not depend on θ."""
    process, exact = setting.process, setting.exact
    for note, score in judged(setting):

        def rows(one: Noised, score: Score = score) -> Tensor:
            probes = trace_probes(setting, one)
            of_score = losses.implicit(process, one.t, one.x, score, probes)
            return one.weight * (of_score - losses.implicit(process, one.t, one.x, exact, probes))

        yield _outcome(precise(setting, rows, "implicit", note), explicit(setting, score, note), note)


@identity(
    group="action",
    statement="−∫ E[½g²|∇log ρ|² + ∇·(g²∇log ρ)] ds = ½∫ g² E|∇log ρ|² ds",
    equation="Hyvärinen 2005",
    kind=Kind.EQUALITY,
    left="divergences by automatic differentiation at random times",
    right="closed-form scores, other draws",
)
def implicit_constant_is_the_loss_of_the_true_score(setting: Setting) -> Outcome:
    """The constant between implicit and explicit score matching."""
    process, exact = setting.process, setting.exact

    def loss(one: Noised) -> Tensor:
        return -one.weight * losses.implicit(process, one.t, one.x, exact, trace_probes(setting, one))

    def square(one: Noised) -> Tensor:
        return one.weight * losses.implicit_constant(process, one.t, exact(one.t, one.x))

    controls = implicit_controls(setting)
    left = precise(setting, loss, "loss", resolution=0.0, controls=controls)
    return _outcome(left, precise(setting, square, "square", resolution=0.0, controls=controls))


@identity(
    group="action",
    statement="E e^{−log dP*/dP^θ} = 1",
    equation="Girsanov",
    kind=Kind.EQUALITY,
    left="Girsanov's log ratio along simulated paths of the exact reversal, exact for their chain",
    right="1",
)
def likelihood_ratio_has_mean_one(setting: Setting) -> Iterator[Outcome]:
    """Girsanov's exponential has mean one, at any step size."""
    setting, few = with_few_points(setting)
    process = setting.process
    best = ScoreControl(process, setting.exact)
    grid = matched_grid(setting, 20)
    reversal = PathMeasure(process, best, end_law(process, setting.data), Direction.BACKWARD, grid)
    for note, score in judged(setting, 0.5):
        control = ScoreControl(process, score)

        def weights(n: int, stream: str, control: ScoreControl = control, note: str = note) -> Estimate:
            g = generator(setting.seed_of("ends", stream, note))
            law, start = process.transition(0.0, setting.horizon), setting.data.sample(n, g).double()
            ends = law.mean(start) + law.root(torch.randn(start.shape, generator=g, dtype=torch.float64))
            paths = reversal.simulate(ends, seed=setting.seed_of("weights", stream, note))
            with torch.no_grad():
                return Estimate.of((-log_ratio(paths, best, control)).exp())

        found = weights(setting.samples, "pilot")
        if found.standard_error > 0.009:
            n = min(int(1.2 * setting.samples * (found.standard_error / 0.009) ** 2), 10 * setting.samples)
            found = weights(n, "main")
        yield Outcome(found.value, 1.0, found.standard_error, note=note + few)


def combined(*parts: Estimate) -> Estimate:
    """The sum of independent estimates."""
    error = sum(part.standard_error**2 for part in parts) ** 0.5
    return Estimate(sum(part.value for part in parts), error, min(part.samples for part in parts))


def _outcome(left: Estimate, right: Estimate, note: str = "", allowance: float = 0.0) -> Outcome:
    return Outcome(left.value, right.value, combined(left, right).standard_error, allowance, note)


def trace_probes(setting: Setting, one: Noised) -> Tensor | None:
    """Hutchinson's probes where an exact trace would take long: many dimensions, or many points to sum over."""
    few = setting.dim <= (2 if isinstance(setting.data, Samples) else _EXACT_TRACE)
    return None if few else losses.rademacher(one.x, 1, one.generator)


def target_mean(setting: Setting, one: Noised) -> Tensor:
    """``½ E|σᵀL^{−ᵀ}ε|² = ½ tr(σσᵀQ⁻¹)``."""
    root = setting.process.transition(0.0, one.t).root
    return 0.5 * setting.dim * (root.inverse() @ setting.process.scale(one.t)).mean_square(setting.dim)


def implicit_controls(setting: Setting):
    """Control variates: ``½|σᵀL^{−ᵀ}ε|²`` less its mean, apart for eight ranges of time."""

    def controls(one: Noised) -> Tensor:
        target = losses.denoising_target(setting.process, one.t, one.noise)
        excess = 0.5 * losses.likelihood_units(setting.process, one.t, target).square().sum(1)
        excess = one.weight * (excess - target_mean(setting, one))
        order = torch.argsort(torch.argsort(one.t))
        return excess[:, None] * torch.nn.functional.one_hot(order * _BINS // len(order), _BINS)

    return controls
